"""Keras 3 models that run on Keras' own torch backend."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from gradbridge.protocol import Array
from gradbridge_keras.stateless import StatelessModel
from gradbridge_torch.guest import FunctionAdapter


class KerasAdapter(StatelessModel, FunctionAdapter):
    """See `StatelessModel`."""

    running: ClassVar[str] = "torch"
    framework: ClassVar[str] = "PyTorch"

    @staticmethod
    def read(variable: Any) -> Array:
        """See `StatelessModel.read`."""
        return np.array(variable.value.detach().cpu().numpy())
