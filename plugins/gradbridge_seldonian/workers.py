"""Models of the engine whose rows are computed by the workers of a Ray cluster."""

from __future__ import annotations

import copy
from typing import Any

from gradbridge_seldonian.model import REUSE, SeldonianModel
from gradbridge_seldonian.outputs import SpecError


def over_workers(model: Any, workers: int | None) -> Any:
    """The same model over workers; the given one stays as it is.

    The features that the engine hands it, the same ones in each iteration, are placed with the workers once.

    Args:
        model: a `SeldonianModel` in eval mode.
        workers: how many; None gives the model itself. Its `bridge` tells what they do, and ends them with `close`.

    Raises:
        SpecError: another kind of model, or one that is over workers already.
        BackendUnavailableError: Ray is not installed.
        GradbridgeError: what `gradbridge_ray.shard_rows` raises.
    """
    if workers is None:
        return model
    if not isinstance(model, SeldonianModel):
        raise SpecError(
            f"workers={workers} was asked for, and a {type(model).__name__} computes in its own way; wrap its native model, "
            f"SeldonianModel(model)"
        )
    from gradbridge_ray import ShardedBridge, shard_rows

    if isinstance(model.bridge, ShardedBridge):
        raise SpecError(
            f"workers={workers} was asked for, and the model is over {model.bridge.workers} workers already; leave one out"
        )
    sharded = copy.copy(model)
    sharded.bridge = shard_rows(model.bridge, workers, remember_rows=REUSE)
    return sharded
