"""Keras 3 models that run on Keras' own jax backend."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from gradbridge.protocol import Array
from gradbridge_jax.guest import FunctionAdapter
from gradbridge_keras.stateless import StatelessModel


class KerasAdapter(StatelessModel, FunctionAdapter):
    """See `StatelessModel`."""

    running: ClassVar[str] = "jax"
    framework: ClassVar[str] = "JAX"

    @staticmethod
    def read(variable: Any) -> Array:
        """See `StatelessModel.read`."""
        return np.array(variable.value)
