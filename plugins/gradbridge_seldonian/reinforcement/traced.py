"""What a policy holds between two calls of the engine: parameters that are traced as long as their trace lasts.

The engine sets the parameters of a policy by one call and asks for probabilities by another, both within a trace.
autograd does not tell when a trace is over: its count of open ones stays where an error left it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from autograd.extend import Box
from autograd.tracer import trace


class TracedArray:
    """An array that may be traced. Copies and pickles as numbers.

    Args:
        value: an array, plain or traced.
    """

    def __init__(self, value: Any) -> None:
        self._value = value if isinstance(value, Box) else value.copy()
        # The box that a trace began with is held by the call that traces, and by nobody else for so long.
        begun = list(_begun()) if isinstance(value, Box) else []
        self._roots = [
            next((root for root in begun if root._trace == box._trace), None) for box in _boxes(value)
        ]

    def get(self) -> Any:
        """The array: traced by those traces that last, a copy if there are none."""
        if not isinstance(self._value, Box):
            return self._value.copy()
        begun = list(_begun())
        while self._roots and not any(self._roots[0] is root for root in begun):
            self._value = self._value._value  # its graph can go
            del self._roots[0]
        return self._value if self._roots else self._value.copy()

    def __reduce__(self) -> Any:
        return TracedArray, (numbers(self._value),)


def numbers(theta: Any) -> Any:
    """What a traced array holds."""
    while isinstance(theta, Box):
        theta = theta._value
    return theta


def _boxes(value: Any) -> Iterator[Any]:
    while isinstance(value, Box):
        yield value
        value = value._value


def _begun() -> Iterator[Any]:
    """What the traces that are open began with, the innermost first, of whichever thread."""
    for top in sys._current_frames().values():
        frame: FrameType | None = top
        while frame is not None:
            if frame.f_code is trace.__code__:
                yield from (value for value in frame.f_locals.values() if isinstance(value, Box))
            frame = frame.f_back
