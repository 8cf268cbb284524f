"""Running a model so that torch's global state is neither changed nor trusted (law 9).

Grad mode, inference mode and autocast are per thread and cheap to pin. The default dtype and the
random state are global to the process, so they are touched only when they must be, under a lock,
and put back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")

# One lock for the process: the state behind it is the process's.
_globals = threading.RLock()


class Isolation:
    """How one adapter's model is run.

    Args:
        device: where it computes.
        stochastic: whether it is known to draw random numbers. One that is not is watched, and
            found out the first time it does.
    """

    def __init__(self, device: torch.device | None, stochastic: bool) -> None:
        self._cuda = device if device is not None and device.type == "cuda" else None
        self._default_dtype = torch.get_default_dtype()
        self.stochastic = stochastic

    def run(self, compute: Callable[[], T], tracked: bool, noise: int) -> T:
        """Run `compute` with gradients recorded or not, its random numbers from `noise` alone.

        Args:
            compute: the evaluation; may be run twice.
            tracked: whether torch records the graph.
            noise: seed of the random numbers.
        """
        with ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(tracked))
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            if torch.get_default_dtype() is not self._default_dtype:
                stack.enter_context(self._pinned_dtype())
            if self.stochastic:
                return self._seeded(compute, noise)
            return self._watched(compute, noise)

    def _watched(self, compute: Callable[[], T], noise: int) -> T:
        generator = torch.default_generator
        before = generator.get_state()
        result = compute()
        if torch.equal(before, generator.get_state()):
            return result
        # It drew numbers after all: put them back, and from now on give it its own.
        with _globals:
            generator.set_state(before)
        self.stochastic = True
        return self._seeded(compute, noise)

    def _seeded(self, compute: Callable[[], T], noise: int) -> T:
        generators = [torch.default_generator]
        if self._cuda is not None:
            index = self._cuda.index if self._cuda.index is not None else torch.cuda.current_device()
            generators.append(torch.cuda.default_generators[index])
        with _globals:
            states = [generator.get_state() for generator in generators]
            try:
                for generator in generators:
                    generator.manual_seed(noise)
                return compute()
            finally:
                for generator, state in zip(generators, states):
                    generator.set_state(state)

    @contextmanager
    def _pinned_dtype(self) -> Iterator[None]:
        with _globals:
            changed = torch.get_default_dtype()
            torch.set_default_dtype(self._default_dtype)
            try:
                yield
            finally:
                torch.set_default_dtype(changed)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__
