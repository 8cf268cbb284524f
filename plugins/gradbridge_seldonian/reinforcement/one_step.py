"""Whether a policy is the same one step at a time, as it acts, and all steps at once, as it is estimated.

One that looks at the other rows of its batch, at the previous observation or at their mean, has no
probabilities of its own: an estimate would be of something that nobody can play.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradbridge import Bridge
from gradbridge.derivatives.independence import close, visible_precision
from gradbridge.protocol import Array
from gradbridge_seldonian.evaluation.rows import seem_dependent
from gradbridge_seldonian.reinforcement.distributions import PolicyError

# Steps that are looked at: the first ones, which follow each other, and as many from anywhere.
_FOLLOWING = 32

_WHY = (
    "A policy is asked for one step at a time when it acts, so that a sequence of steps must be part of the "
    "observation, not of the batch"
)


def check_steps(
    bridge: Bridge, encode: Callable[[Array], list[Any]], observations: Array, theta: Array
) -> None:
    """Compare steps together with the same steps one by one.

    Args:
        bridge: the network.
        encode: n observations → the network's inputs, n rows each.
        observations: two or more.
        theta: (P,) the network's parameters, near which it is looked at.

    Raises:
        PolicyError: rows of `encode`, or of the network, that depend on each other.
    """
    n = len(observations)
    first = np.arange(min(n, _FOLLOWING))
    others = np.random.default_rng(0).choice(n, min(n, _FOLLOWING), replace=False)
    some = np.unique(np.concatenate([first, others]))
    together = [np.asarray(x)[some] for x in encode(observations)]
    single = [encode(observations[i : i + 1]) for i in some]
    for x, rows in zip(together, zip(*single)):
        alone = np.concatenate([np.asarray(row) for row in rows]) if _fit(x, rows) else np.empty(0)
        if not close(x, alone, visible_precision([x, alone])):
            raise PolicyError(
                f"encode gives other rows for {n} observations together than for each by itself, so that they depend "
                f"on each other or on chance. {_WHY}"
            )
    if seem_dependent(bridge, together, theta):
        raise PolicyError(
            f"the rows of {bridge.adapter.label} are not independent of each other: its outputs for an observation "
            f"are others alone than among {n} of them, or are drawn anew each time. {_WHY}; give a network that takes "
            f"each row by itself, in mode='eval'"
        )


def _fit(x: Array, rows: Any) -> bool:
    return all(np.shape(row) == (1, *x.shape[1:]) for row in rows)
