"""The surroundings that tinygrad code runs in: alone, in its own mode, and without random numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from tinygrad import Tensor
from tinygrad.helpers import Context

from gradbridge.extend import GuestError

# tinygrad's scheduler and its list of living tensors are global, so its code takes turns.
turns = threading.RLock()


class Isolated:
    """A part of every `Model` of tinygrad's."""

    label: str
    training: bool

    def isolated(
        self, thunk: Callable[[], Any], inputs: Sequence[Any], noise: int | None, record: bool
    ) -> Any:
        """Run a step in the mode that was asked for. Random numbers are one global sequence: none may be drawn.

        Raises:
            GuestError: some were.
        """
        with turns, Context(TRAINING=int(self.training)):
            # Away with the counters: what a computed draw did to them cannot be seen in them.
            seed, seeds, counters = Tensor._seed, Tensor._device_seeds, Tensor._device_rng_counters
            Tensor._device_seeds, Tensor._device_rng_counters = {}, {}
            try:
                result = thunk()
                drew = bool(Tensor._device_rng_counters)
            finally:
                Tensor._seed, Tensor._device_seeds, Tensor._device_rng_counters = seed, seeds, counters
        if drew:
            raise GuestError(
                f"{self.label} draws tinygrad's random numbers, so that its gradient would belong to other ones than "
                f"its value; draw them outside and pass them as an input"
            )
        return result
