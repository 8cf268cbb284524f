"""The engine's base class for PyTorch, over a bridge: the same name and methods, and gradients that are right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from gradbridge.errors import NotDifferentiableError, OptionError, UnknownModelError
from gradbridge.notices import notice
from gradbridge.protocol import Array
from gradbridge_seldonian.steps.base import SupervisedParametersModel
from gradbridge_seldonian.steps.framework import CREATE, FORWARD, METHODS, StepsFramework, is_inherited


class TorchSteps(StepsFramework):
    """Tensors, modules and torch's global state around the five methods."""

    backward_arguments = 2

    def __init__(self, owner: Any) -> None:
        super().__init__(owner)
        self._clones: dict[int, tuple[Any, int, Any]] = {}

    @contextmanager
    def surroundings(self, noise: int) -> Iterator[None]:
        """Record gradients whatever the caller's modes, and draw random numbers from `noise` alone."""
        import torch

        from gradbridge_torch.isolation import seeded

        with ExitStack() as stack:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(seeded(noise, torch.device(getattr(self.owner, "device", "cpu"))))
            yield

    def check_native(self, native: Any) -> None:
        """Refuse what is no module, unless all methods are the class's own."""
        import torch

        super().check_native(native)
        inherited = [name for name in METHODS[1:] if is_inherited(self.owner, name)]
        if not isinstance(native, torch.nn.Module):
            if inherited:
                raise UnknownModelError(
                    f"{CREATE} of {self.label} must return a torch.nn.Module, and returned a {type(native).__name__}; "
                    f"return a module, or override {', '.join(inherited)}, too"
                )
            return
        parameters = list(native.parameters())
        if any(map(torch.nn.parameter.is_lazy, parameters)):
            raise UnknownModelError(
                f"{CREATE} of {self.label} returned a module with parameters that are not made yet; call it once on an "
                f"example input there"
            )
        if "update_model_params" in inherited and not any(p.requires_grad for p in parameters):
            raise UnknownModelError(
                f"{CREATE} of {self.label} returned a {type(native).__name__} without trainable parameters; those with "
                f"requires_grad=False are none"
            )

    def check_predictions(self, predictions: Any) -> None:
        """Refuse what is no tensor, unless backward_pass is the class's own."""
        import torch

        if not isinstance(predictions, torch.Tensor) and is_inherited(self.owner, "backward_pass"):
            self.refuse_predictions(predictions, "a torch.Tensor")
        super().check_predictions(predictions)

    def check_recorded(self, predictions: Any, by_framework: bool) -> None:
        """Refuse a tensor that has no graph."""
        import torch

        if by_framework and isinstance(predictions, torch.Tensor) and not predictions.requires_grad:
            raise NotDifferentiableError(
                f"{FORWARD} of {self.label} returned predictions without a graph (requires_grad is False), so no gradient "
                f"of theta can be had from them: they were detached (.detach(), .numpy(), torch.no_grad()), or none of "
                f"the parameters takes part; return the tensor as the module gave it"
            )

    def to_numpy(self, value: Any) -> Array:
        """A tensor off its device and graph; bfloat16, which NumPy lacks, widens."""
        return to_numpy(value)

    def cotangent(self, cotangent: Array, predictions: Any) -> Any:
        """A tensor for a tensor."""
        import torch

        if not isinstance(predictions, torch.Tensor):
            return cotangent.copy()
        return torch.tensor(cotangent, dtype=predictions.dtype, device=predictions.device)

    def state(self) -> Any:
        """The buffers of a module: copies, which are made anew where they may have changed."""
        import torch

        native = self.owner.native_model
        if not isinstance(native, torch.nn.Module):
            return None
        # BatchNorm writes its statistics without counting a version.
        moves, clones, state = any(m.training for m in native.modules()), {}, []
        for module in native.modules():
            for name, buffer in module._buffers.items():
                if buffer is None:
                    continue
                known = self._clones.get(id(buffer))
                if moves or known is None or known[0] is not buffer or known[1] != _version(buffer):
                    known = (buffer, _version(buffer), buffer.detach().clone())
                clones[id(buffer)] = known
                state.append((module, name, known, moves))
        self._clones = clones
        return state

    def restore(self, state: Any) -> None:
        """Put back those that have changed."""
        import torch

        with torch.no_grad():
            for module, name, (buffer, version, clone), moves in state or ():
                module._buffers[name] = buffer
                if (moves or _version(buffer) != version) and not torch.equal(buffer, clone):
                    buffer.copy_(clone)

    def versions(self) -> tuple[Any, ...]:
        """Those of the parameters, which a graph refers to."""
        parameters = getattr(self.owner.native_model, "parameters", None)
        return tuple(map(_version, parameters())) if callable(parameters) else ()


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
            self.native_model.to(device)
        _set_eval(self.native_model, type(self).__name__)
        self.param_sizes = self.get_param_sizes()

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
            raise NotDifferentiableError(
                f"{FORWARD} of {type(self).__name__} returned predictions whose graph leads to none of the parameters that "
                f"theta is loaded into; compute them with self.pytorch_model, and detach nothing on the way"
            )
        return np.concatenate(
            [np.zeros(p.numel()) if p.grad is None else to_numpy(p.grad).ravel() for p in parameters]
        )


def to_numpy(value: Any) -> Array:
    """A tensor or array as a NumPy array, off its device and graph; bfloat16, which NumPy lacks, widens."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().cpu()
    return np.asarray(tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor)


def _version(tensor: Any) -> int:
    return -1 if tensor.is_inference() else tensor._version


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
