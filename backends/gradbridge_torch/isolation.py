"""Running a model so that torch's global state is neither changed nor trusted (law 9).

Grad mode and autocast are per thread and cheap to pin. The default dtype and the
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


def _surroundings_are_plain(default_dtype: torch.dtype) -> bool:
    return not (
        torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
        or torch.get_default_dtype() is not default_dtype
    )


class Isolation:
    """How one adapter's model is run.

    Args:
        device: where it computes.
        stochastic: whether it is known to draw random numbers.
        watched: whether it might; then the first draw is noticed. Watching costs 5 µs a call.
    """

    def __init__(self, device: torch.device | None, stochastic: bool, watched: bool = True) -> None:
        self._cuda = device if device is not None and device.type == "cuda" else None
        self._default_dtype = torch.get_default_dtype()
        self.stochastic = stochastic
        self._is_watched = watched
        self._is_probed = False

    def run(self, compute: Callable[[], T], tracked: bool, noise: int) -> T:
        """Run `compute` with gradients recorded or not, its random numbers from `noise` alone.

        Args:
            compute: the evaluation; may be run twice.
            tracked: whether torch records the graph.
            noise: seed of the random numbers.
        """
        if _surroundings_are_plain(self._default_dtype):
            before = torch.is_grad_enabled()
            if before is not tracked:
                torch.set_grad_enabled(tracked)
            try:
                return self._drawn(compute, noise)
            finally:
                if torch.is_grad_enabled() is not before:
                    torch.set_grad_enabled(before)
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(tracked))
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            if torch.get_default_dtype() is not self._default_dtype:
                stack.enter_context(self._pinned_dtype())
            return self._drawn(compute, noise)

    def _drawn(self, compute: Callable[[], T], noise: int) -> T:
        if self.stochastic:
            return self._seeded(compute, noise)
        return self._watched(compute, noise) if self._is_watched else compute()

    def _watched(self, compute: Callable[[], T], noise: int) -> T:
        if self._is_probed:
            return self._probed(compute, noise)
        # Alone the first time: another thread that puts the state back would hide a draw.
        with _globals:
            result = self._seeded(compute, noise) if self.stochastic else self._probed(compute, noise)
            self._is_probed = True
            return result

    def _probed(self, compute: Callable[[], T], noise: int) -> T:
        generator = torch.default_generator
        with _globals:  # not in the middle of somebody's seeded run
            before = generator.get_state()
        result = compute()
        with _globals:
            if torch.equal(before, generator.get_state()):
                return result
            # It drew numbers after all: put them back, and from now on give it its own.
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
