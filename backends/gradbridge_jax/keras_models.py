"""Keras 3 models that run on Keras' own jax backend."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from gradbridge.protocol import Array
from gradbridge_jax.functions import FunctionModel
from gradbridge_keras.stateless import StatelessModel


class KerasModel(StatelessModel, FunctionModel):
    """A Keras model on JAX."""

    running: ClassVar[str] = "jax"
    framework: ClassVar[str] = "JAX"

    @staticmethod
    def read(variable: Any) -> Array:
        return np.array(variable.value)
