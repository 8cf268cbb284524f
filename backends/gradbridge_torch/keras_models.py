"""Keras 3 models that run on Keras' own torch backend."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from gradbridge.layout import Array
from gradbridge_keras.stateless import StatelessModel
from gradbridge_torch.functions import TensorFunction


class KerasModel(StatelessModel, TensorFunction):
    """A built Keras model, called functionally."""

    running: ClassVar[str] = "torch"
    framework: ClassVar[str] = "PyTorch"

    @staticmethod
    def read(variable: Any) -> Array:
        return np.array(variable.value.detach().cpu().numpy())
