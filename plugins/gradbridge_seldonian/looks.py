"""What `supervised_spec` finds out by computing with a model: at once, or where the specification is used.

Experiments fork processes for their trials. JAX and TensorFlow, once started, do not come along
(`gradbridge.forks`), so a specification does not start them: what it would compute waits for the run.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable
from typing import Any

#: {key of a look: what it found}, in this process: each trial of an experiment has a copy of the specification.
_found: dict[str, Any] = {}


class FirstLook:
    """Something that is computed with a model once in each process that asks for it.

    Args:
        model: the engine's model; it decides when. A framework that must be started for it, and would not
            survive a fork, makes the look wait until it is called.
        look: computes; its errors are those of the first call. Pickles.
    """

    def __init__(self, model: Any, look: Callable[[], Any]) -> None:
        self._look, self._key = look, uuid.uuid4().hex
        runtime = model.bridge.adapter.traits.runtime if hasattr(model, "bridge") else None
        if runtime is None or runtime.is_started():
            self()

    def __call__(self) -> Any:
        """What was found."""
        if self._key not in _found:
            _found[self._key] = self._look()
        return _found[self._key]

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that looks before it is called; the same one where that has been done."""
        return function if self._key in _found else _Looking(self, function)


class _Looking:
    """A function with a look before it; a class so that it pickles."""

    def __init__(self, look: FirstLook, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._look, self._function = look, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._look()
        return self._function(*args, **kwargs)
