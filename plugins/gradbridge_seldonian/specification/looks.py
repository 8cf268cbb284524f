"""What `supervised_spec` finds out by computing with a model: at once, or where the specification is used.

Experiments fork processes for their trials. JAX and TensorFlow, once started, do not come along
(`gradbridge.forks`), so a specification does not start them: what it would compute waits for the run.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

#: {key of a look: what it found}, in this process: each trial of an experiment has a copy of the specification.
_found: dict[str, bool] = {}


class FirstLook:
    """Something that is computed with a model once in each process that asks for it.

    Args:
        model: the engine's model; it decides when. A framework that must be started for it, and would not
            survive a fork, makes the look wait until it is called.
        look: computes; its errors are those of the first call. Pickles.
    """

    def __init__(self, model: Any, look: Callable[[], bool]) -> None:
        self._look, self._key = look, uuid.uuid4().hex
        runtime = model.bridge.adapter.traits.runtime if hasattr(model, "bridge") else None
        if runtime is None or runtime.is_started():
            self()

    def __call__(self) -> bool:
        """What was found."""
        if self._key not in _found:
            _found[self._key] = self._look()
        return _found[self._key]
