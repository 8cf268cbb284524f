"""One sweep: a value and its gradient from one evaluation, where the engine asks for them apart.

In each iteration the engine evaluates its objective and its constraints at one point, and then
evaluates them again for their gradients. A sweep makes the first evaluation a recorded one, and
answers the second from the record, if it is at the same point and the same data, compared byte
for byte. Where nobody asks for gradients (a barrier method) it soon stops recording.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from autograd import grad
from autograd.core import VJPNode, make_vjp
from autograd.extend import Box, defvjp, primitive

from gradbridge import trees
from gradbridge.execution.reuse import same_content
from gradbridge.protocol import Array

#: θ ↦ a number, that autograd can follow.
Function = Callable[[Any], Any]


class Sweep:
    """The latest evaluation of one function of θ, with the way back."""

    def __init__(self) -> None:
        self._latest: _Record | None = None
        self._is_expected = True

    def __call__(self, theta: Any, data: Sequence[Any], function: Function) -> Any:
        """function(theta), from the latest evaluation if it is the same one.

        Args:
            theta: (P,) plain, or traced by autograd.
            data: arrays and other objects that the value depends on besides.
            function: computes it.
        """
        if isinstance(theta, Box):
            if type(theta._node) is not VJPNode or type(theta._value) is not np.ndarray:
                return function(theta)  # forward mode, or a derivative of a derivative
            latest = self._latest
            if latest is not None and latest.is_of(theta._value, data):
                latest.is_used = True
                return _served(latest, theta)
            self._is_expected = True
            return function(theta)
        latest, self._latest = self._latest, None
        if latest is not None and not latest.is_used:
            self._is_expected = False
        if not self._is_expected or type(theta) is not np.ndarray:
            return function(theta)
        pull, value = make_vjp(function, theta)
        self._latest = _Record(theta.copy(), _kept(data, latest), value, pull)
        return value

    def gradient(self, theta: Array, data: Sequence[Any], function: Function) -> Array:
        """The gradient of what a call gives, (P,): of the latest evaluation, if it is the same one."""
        latest = self._latest
        if latest is not None and latest.is_of(theta, data):
            latest.is_used = True
            return latest.gradient().copy()
        self._is_expected = True
        found: Array = grad(function)(theta)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]


class SweptObjective:
    """A primary objective whose value and gradient come from one evaluation.

    Args:
        objective: ``f(model, theta, X, Y, **kwargs)``, a number.
        look: is called before it is evaluated; see `gradbridge_seldonian.specification.looks`.
    """

    def __init__(self, objective: Callable[..., Any], look: Callable[[], Any] | None = None) -> None:
        functools.update_wrapper(self, objective)
        self._objective, self._look = objective, look
        self._sweep = Sweep()

    def __call__(self, model: Any, theta: Any, X: Any, Y: Any, **kwargs: Any) -> Any:
        """The objective."""
        return self._sweep(theta, *self._at(model, X, Y, kwargs))

    def gradient(self, model: Any, theta: Any, X: Any, Y: Any, **kwargs: Any) -> Any:
        """Its gradient with respect to θ, (P,), without autograd where it has been evaluated there."""
        return self._sweep.gradient(theta, *self._at(model, X, Y, kwargs))

    def _at(self, model: Any, X: Any, Y: Any, kwargs: dict[str, Any]) -> tuple[list[Any], Function]:
        if self._look is not None:
            self._look()
        data = [model, *trees.flatten((X, Y, kwargs))[0]]
        return data, lambda t: self._objective(model, t, X, Y, **kwargs)


class _Record:
    """One evaluation: what it was made of, its value, and the gradient once it has been asked for."""

    def __init__(self, theta: Array, data: list[Any], value: Any, pull: Callable[[Any], Any]) -> None:
        self.theta, self.data, self.value = theta, data, value
        self.is_used = False
        self._pull: Callable[[Any], Any] | None = pull
        self._gradient: Array | None = None

    def is_of(self, theta: Array, data: Sequence[Any]) -> bool:
        return (
            same_content(self.theta, theta)
            and len(data) == len(self.data)
            and all(map(_same, self.data, data))
        )

    def gradient(self) -> Array:
        if self._pull is not None:
            # The value is one number, so that one backward is the gradient, whatever multiplies it.
            gradient = np.array(self._pull(np.ones_like(self.value)))
            self._gradient, self._pull = gradient, None
        assert self._gradient is not None
        return self._gradient


def _same(ours: Any, theirs: Any) -> bool:
    return (
        same_content(ours, theirs) if isinstance(ours, np.ndarray) else ours is theirs or _equal(ours, theirs)
    )


def _equal(ours: Any, theirs: Any) -> bool:
    return type(ours) is type(theirs) and isinstance(ours, (int, float, str, bool)) and ours == theirs


def _kept(data: Sequence[Any], latest: _Record | None) -> list[Any]:
    """Copies, because arrays may be changed in place; those of the latest record where they are the same."""
    before = latest.data if latest is not None and len(latest.data) == len(data) else [None] * len(data)
    return [
        x if not isinstance(x, np.ndarray) else b if b is not None and same_content(b, x) else x.copy()
        for x, b in zip(data, before)
    ]


@primitive
def _served(record: _Record, theta: Any) -> Any:
    return record.value


def _pull_served(answer: Any, record: _Record, theta: Any) -> Callable[[Any], Any]:
    def pull(v: Any) -> Any:
        # The engine's Jacobian of several constraints pulls zeros back to all of them but one.
        if not isinstance(v, Box) and not np.any(v):
            return np.zeros(record.theta.shape)
        return v * record.gradient()

    return pull


defvjp(_served, _pull_served, argnums=(1,))
