"""PyTorch as a guest: modules, functions of tensors, and Keras' models on its torch backend."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradbridge.errors import UnknownModelError
from gradbridge.execution.functional import FunctionalAdapter
from gradbridge.options import GuestOptions, refuse_params, refuse_unknown_options
from gradbridge.wording import described
from gradbridge_torch.framework import TorchFramework
from gradbridge_torch.functions import TensorFunction
from gradbridge_torch.modules import ModuleModel
from gradbridge_torch.runtime import RUNTIME
from gradbridge_torch.surroundings import default_device, set_aside


def adapt(model: Any, options: GuestOptions) -> FunctionalAdapter:
    """Make an adapter of a module or a function: the guest half of backend ``torch``.

    Args:
        model: an ``nn.Module``, or a callable of tensors; with `options.params`, a callable of
            (parameter tree, *tensors).
        options: there are none beyond the common ones.

    Raises:
        OptionError: an option that it does not have, or an unusable dtype or device.
        UnknownModelError: neither a module nor callable, or a module that cannot be bridged.
    """
    RUNTIME.require()
    with set_aside(default_device()):
        return _adapted(model, options)


def _adapted(model: Any, options: GuestOptions) -> FunctionalAdapter:
    refuse_unknown_options("torch", options.extra, ())
    is_keras = any(cls.__module__.startswith("keras.") for cls in type(model).__mro__)
    if isinstance(model, nn.Module) and not is_keras:
        refuse_params(options, "a torch module")
        module = ModuleModel(model, options)
        framework = TorchFramework(module.label, module.device, module.only_reads)
        if module.moves:
            framework.inlines = False
        return FunctionalAdapter(framework, module)
    if not callable(model):
        raise UnknownModelError(f"backend 'torch' bridges modules and callables, got {described(model)}")
    if is_keras:
        # Keras takes a second to import: it is there already when there is a model of it.
        from gradbridge_torch.keras_models import KerasModel

        function: TensorFunction = KerasModel(model, options)
        function.primitives.inlines = False  # Keras has state of its own around each call
    else:
        function = TensorFunction(model, options)
    function.primitives.label = function.label
    return FunctionalAdapter(function.primitives, function)
