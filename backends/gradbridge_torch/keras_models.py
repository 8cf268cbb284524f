"""Keras 3 models that run on Keras' own torch backend."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self

from gradbridge.inspection import Stranger
from gradbridge.protocol import GuestOptions
from gradbridge_keras.stateless import StatelessModel
from gradbridge_torch.functions import TensorFunction


class KerasModel(StatelessModel, TensorFunction):
    """A built Keras model, called functionally: by one copy, which takes longer to make than many a call."""

    running: ClassVar[str] = "torch"
    framework: ClassVar[str] = "PyTorch"

    def __init__(self, model: Any, options: GuestOptions) -> None:
        self._kept: Any = None
        self._isolates = False
        super().__init__(model, options)

    def twin(self) -> Any:
        if self._isolates:
            return super().twin()
        if self._kept is None:
            self._kept = super().twin()
        return self._kept

    def fresh(self) -> Self:
        twin = copy.copy(self)
        twin._kept = None
        twin._function = twin._stateless  # bound to this one
        return twin

    def isolate_calls(self) -> bool:
        before, self._isolates, self._kept = self._isolates, True, None
        return not before

    def stranger(self, native: Any) -> Stranger:
        for v in self._snapshot.variables:
            if v._value is native:
                return Stranger(f"{v.path}, read from the model itself", True)
        return super().stranger(native)
