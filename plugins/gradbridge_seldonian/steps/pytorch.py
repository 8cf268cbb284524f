"""The engine's base class for PyTorch, over a bridge: the same name and methods, and gradients that are right."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradbridge.errors import OptionError
from gradbridge.notices import notice
from gradbridge.protocol import Array
from gradbridge_seldonian.steps.base import SupervisedParametersModel
from gradbridge_seldonian.steps.framework import StepsFramework
from gradbridge_seldonian.steps.torch_tensors import TorchSteps, to_numpy


class SupervisedPytorchBaseModel(SupervisedParametersModel):
    """The five methods over a torch module, `self.pytorch_model`.

    ``__init__(device, **kwargs)``, or as in the tutorial ``__init__(input_dim, output_dim, **kwargs)``; the
    keyword arguments are `create_model`'s. All but `create_model` have defaults, which take theta in the
    order of ``module.parameters()``, those with ``requires_grad`` alone.

    It computes in the module's own dtype, float32 unless `create_model` returns ``module.double()``.

    The module is put in eval mode: a gradient must belong to the value that was returned. Where
    ``self.pytorch_model.train()`` is called afterwards, an evaluation and its replay draw the same masks,
    and statistics move once per evaluation.

    Attributes:
        pytorch_model: the module.
        device: where it computes.
        params_updated: unused; every evaluation loads its theta.
    """

    params_updated = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        device = self._arguments(args, kwargs)
        if device is not None:
            self.device = device
        super().__init__(**kwargs)
        if not hasattr(self.native_model, "parameters"):
            self.device = "cpu" if device is None else device
            return
        if device is None:
            self.device = next((p.device for p in self.native_model.parameters()), "cpu")
        else:
            self._put_on(device)
        _set_eval(self.native_model, type(self).__name__)
        self.param_sizes = self.get_param_sizes()

    def _put_on(self, device: Any) -> None:
        try:
            self.native_model.to(device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise OptionError(
                f"device of {type(self).__name__} must be one that torch has here, such as 'cpu', got {device!r}: "
                f"{str(error).splitlines()[0]}"
            ) from error

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The device, if one is given; sets the sizes of the tutorial's edition, and takes all of these out."""
        if len(args) > 2:
            raise OptionError(
                f"{type(self).__name__} takes (device, **kwargs) or (input_dim, output_dim, **kwargs), got {len(args)} "
                f"positional arguments"
            )
        if len(args) == 2:
            self.input_dim, self.output_dim = args
        elif args and isinstance(args[0], int) and "output_dim" in kwargs:
            self.input_dim, self.output_dim = args[0], kwargs.pop("output_dim")
        elif not args and "device" not in kwargs and {"input_dim", "output_dim"} <= kwargs.keys():
            self.input_dim, self.output_dim = kwargs.pop("input_dim"), kwargs.pop("output_dim")
        elif args:
            return args[0]
        return kwargs.pop("device", None)

    @property
    def pytorch_model(self) -> Any:
        """The torch module."""
        return self.native_model

    @pytorch_model.setter
    def pytorch_model(self, module: Any) -> None:
        self.native_model = module

    def _steps_framework(self) -> StepsFramework:
        return TorchSteps(self)

    def _trainable_parameters(self) -> list[Any]:
        """The parameters that require a gradient."""
        parameters = getattr(self.native_model, "parameters", tuple)
        return [p for p in parameters() if p.requires_grad]

    def _read_parameter(self, parameter: Any) -> Array:
        """See the base class."""
        return np.array(to_numpy(parameter))

    def _write_parameter(self, parameter: Any, value: Array) -> None:
        """See the base class."""
        import torch

        with torch.no_grad():
            parameter.copy_(torch.as_tensor(value))

    def zero_gradients(self) -> None:
        """Zero the gradients of all parameters."""
        self.native_model.zero_grad(set_to_none=False)

    def forward_pass(self, X: Array, **kwargs: Any) -> Any:
        """Run the module on X in the dtype of its parameters."""
        import torch

        dtype = next((p.dtype for p in self._trainable_parameters()), None)
        return self.native_model(torch.tensor(X, dtype=dtype, device=self.device))

    def backward_pass(self, predictions: Any = None, external_grad: Any = None) -> Any:
        """Gather the gradients of all parameters, in their order, (P,).

        Args:
            predictions: of the run; left out in the tutorial's edition, ``backward_pass(external_grad)``.
            external_grad: cotangent of the predictions, a tensor.

        Raises:
            NotDifferentiableError: none of the parameters takes part in the predictions.
        """
        if external_grad is None:
            predictions, external_grad = None, predictions
        if predictions is None:
            predictions = self.predictions
        parameters = self._trainable_parameters()
        for parameter in parameters:
            parameter.grad = None
        predictions.backward(gradient=external_grad, retain_graph=True)
        if all(p.grad is None for p in parameters):
            TorchSteps(self).refuse_unreached()
        return np.concatenate(
            [np.zeros(p.numel()) if p.grad is None else to_numpy(p.grad).ravel() for p in parameters]
        )


def _set_eval(module: Any, label: str) -> None:
    """Put a torch module in eval mode, with a word where that changes what it computes."""
    changed = sorted(
        {type(m).__name__ for m in module.modules() if m.training and _depends_on_mode(type(m).__name__)}
    )
    module.eval()
    if changed:
        notice(
            f"{label} has {', '.join(changed)} and is evaluated in eval mode, without random masks and with the "
            f"stored statistics; call self.pytorch_model.train() after super().__init__ for the other",
        )


def _depends_on_mode(name: str) -> bool:
    return "Dropout" in name or "BatchNorm" in name
