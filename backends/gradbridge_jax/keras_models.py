"""Keras 3 models that run on Keras' own jax backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax

from gradbridge.protocol import Array
from gradbridge_jax.functions import FunctionModel
from gradbridge_keras.stateless import StatelessModel
from gradbridge_keras.variables import readers


class KerasModel(StatelessModel, FunctionModel):
    """A Keras model on JAX. Each trace is of a fresh copy."""

    running: ClassVar[str] = "jax"
    framework: ClassVar[str] = "JAX"

    def readers(self) -> Sequence[Any]:
        return readers(self._snapshot.as_it_was)

    def native(self, weights: Sequence[Array]) -> Any:
        # Outside of a bridge, JAX has float64 only where the process says so.
        snapshot = self._snapshot if jax.config.jax_enable_x64 else self._snapshot.in_dtype(None)
        return snapshot.native([*weights, *snapshot.fixed])
