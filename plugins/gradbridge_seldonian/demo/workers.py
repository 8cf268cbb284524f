"""A story over the workers of a Ray cluster, beside the same in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradbridge_seldonian.demo.story import Outcome, Setting, both, run
from gradbridge_seldonian.model import SeldonianModel
from gradbridge_seldonian.workers import over_workers


def shared_out(
    model: Callable[[], SeldonianModel], make_spec: Callable[..., Any], setting: Setting
) -> tuple[list[Outcome], Any, list[str], bool]:
    """`story.both` over workers.

    Returns:
        The outcomes, the safety data, sentences on what the workers did and how far that is from one process,
        and whether it is what it must be.
    """
    assert setting.workers is not None

    def nudged(model: Any, free: bool) -> Any:
        spec = make_spec(model, free=free)
        start = spec.initial_solution_fn
        spec.initial_solution_fn = lambda *data: start(*data) * (1 + 2.0**-52)
        return spec

    alone = run("in one process", model(), make_spec, lambda: None)
    near = run("from a start one rounding away", model(), nudged, lambda: None)
    over = over_workers(model(), setting.workers)
    try:
        outcomes, safety = both(lambda: over, make_spec, setting.tick)
        did = "; ".join(
            f"worker {i + 1}: {one.rows:,} rows in {one.forwards:,} forwards, {one.seconds:.2f} s, "
            f"{one.restarts} restarts"
            for i, one in enumerate(over.bridge.status().values())
        )
    finally:
        over.bridge.close()
    begun, end, other = (
        float(np.max(np.abs(ours - theirs)))
        for ours, theirs in (
            (_losses(outcomes[0]), _losses(alone)),
            (outcomes[0].theta, alone.theta),
            (near.theta, alone.theta),
        )
    )
    notes = [
        f"Rows over {setting.workers} workers. {did}.",
        f"In its first {_FIRST} iterations the loss differs from that of one process by {begun:.0e}; in the end θ differs by "
        f"{end:.0e}, since this optimizer magnifies rounding: from a start one rounding away it ends {other:.0e} away.",
    ]
    return outcomes, safety, notes, begun < 1e-12


#: Iterations in which rounding is not yet magnified.
_FIRST = 25


def _losses(outcome: Outcome) -> np.ndarray:
    return np.asarray(outcome.selection["f_vals"][:_FIRST], np.float64)
