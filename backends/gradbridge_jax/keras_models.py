"""Keras 3 models that run on Keras' own jax backend."""

from __future__ import annotations

from typing import ClassVar

from gradbridge_jax.functions import FunctionModel
from gradbridge_keras.stateless import StatelessModel


class KerasModel(StatelessModel, FunctionModel):
    """A Keras model on JAX. Each trace is of a fresh copy."""

    running: ClassVar[str] = "jax"
    framework: ClassVar[str] = "JAX"
