"""Keras 3 models that run on Keras' own torch backend."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self

from torch import nn

from gradbridge.inspection import Stranger
from gradbridge.protocol import GuestOptions
from gradbridge_keras.stateless import StatelessModel, is_layer
from gradbridge_torch.functions import TensorFunction


class KerasModel(StatelessModel, TensorFunction):
    """A built Keras model, called functionally: by one copy, which takes longer to make than many a call."""

    running: ClassVar[str] = "torch"
    framework: ClassVar[str] = "PyTorch"

    def __init__(self, model: Any, options: GuestOptions) -> None:
        self._kept: Any = None
        self._isolates = False
        super().__init__(model, options)
        # Parameters that modules of torch within the model read by themselves: (module, name, variable).
        places = {id(v._value): place for place, v in enumerate(self._snapshot.variables)}
        self._slots = [
            (index, name, places[id(parameter)])
            for index, module in enumerate(_torch_modules(self._snapshot.as_it_was))
            for name, parameter in module._parameters.items()
            if id(parameter) in places
        ]

    def twin(self, values: Any = ()) -> Any:
        if self._isolates or self._slots:
            twin = super().twin(values)
            modules = _torch_modules(twin)
            for index, name, place in self._slots if values else ():
                modules[index]._parameters[name] = values[place]
            return twin
        if self._kept is None:
            self._kept = super().twin(values)
        return self._kept

    def fresh(self) -> Self:
        twin = copy.copy(self)
        twin._kept = None
        twin._function = twin._stateless  # bound to this one
        return twin

    def __getstate__(self) -> dict[str, Any]:
        # Keras would pickle the copy by its config, which may leave its dtype out; it is made anew.
        return {**self.__dict__, "_kept": None}

    def isolate_calls(self) -> bool:
        before, self._isolates, self._kept = self._isolates, True, None
        return not before

    def stranger(self, native: Any) -> Stranger:
        for v in self._snapshot.variables:
            if v._value is native:
                return Stranger(f"{v.path}, read from the model itself", True)
        return super().stranger(native)


def _torch_modules(model: Any) -> list[nn.Module]:
    """The modules within a Keras model that are torch's own, in an order that copies keep."""
    return [
        module
        for layer in model._flatten_layers()
        for name, child in layer._modules.items()
        if child is not None and name != "_torch_params" and not is_layer(child)
        for module in child.modules()
    ]
