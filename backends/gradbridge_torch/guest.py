"""PyTorch as a guest: modules, and functions of tensors."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from gradbridge import trees
from gradbridge.errors import (
    GradbridgeError,
    GradbridgeWarning,
    NotDifferentiableError,
    OptionError,
    UnknownModelError,
)
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Array, GuestOptions, Signature, refuse_unknown_options
from gradbridge.signatures import argument_names
from gradbridge_torch.adapters import TensorAdapter
from gradbridge_torch.explain import explained
from gradbridge_torch.isolation import Isolation
from gradbridge_torch.replicas import Replica, ReplicaPool, duplicate
from gradbridge_torch.tensors import compute_device, floating_dtype, to_array

_RANDOM_IN_TRAIN = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.RNNBase, nn.MultiheadAttention)
_FAST_PATHS = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
_STATISTICS = (nn.modules.batchnorm._NormBase,)


def adapt(model: Any, options: GuestOptions) -> TensorAdapter:
    """Make an adapter of a module or a function: the guest half of backend ``torch``.

    Args:
        model: an ``nn.Module``, or a callable of tensors; with `options.params`, a callable of
            (parameter tree, *tensors).
        options: there are none beyond the common ones.

    Raises:
        OptionError: an option that it does not have, or an unusable dtype or device.
        UnknownModelError: neither a module nor callable, or a module that cannot be bridged.
    """
    refuse_unknown_options("torch", options.extra, ())
    if any(cls.__module__.startswith("keras.") for cls in type(model).__mro__):
        # Keras takes a second to import: it is there already when there is a model of it.
        from gradbridge_torch.keras_models import KerasAdapter

        return KerasAdapter(model, options)
    if isinstance(model, nn.Module):
        if options.params is not None:
            raise OptionError("params= belongs to functions; a torch module brings its own parameters")
        return ModuleAdapter(_bridgeable(model), options)
    if callable(model):
        return FunctionAdapter(model, options)
    raise UnknownModelError(f"backend 'torch' bridges modules and callables, got a {type(model).__name__}")


class ModuleAdapter(TensorAdapter):
    """An ``nn.Module``: its trainable parameters are the params, all else is kept as it was when bridged.

    Buffers and frozen parameters (``requires_grad=False``) are copied once, here.
    """

    def __init__(self, module: nn.Module, options: GuestOptions) -> None:
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        dtype, device = floating_dtype(options.dtype), compute_device(options.device)
        for name, p in module.named_parameters():
            if p.is_complex() and p.requires_grad:
                raise NotDifferentiableError(
                    f"parameter {name!r} of {type(module).__name__} is complex, and params are a real vector; keep "
                    f"the real and imaginary parts as two real parameters, and join them with torch.complex"
                )
        self._module = module  # the user's own: read, never written to
        self.argument_names = argument_names(module.forward)
        self._named = named
        self._options = options
        self._train = options.mode == "train"
        template = duplicate(module, list(named.values()))
        own_dtype = _first_dtype(module)
        convert(template, dtype, device, set(named))
        template.train(self._train)
        layout = ParameterLayout(
            tuple(named),
            tuple(tuple(p.shape) for p in named.values()),
            tuple(str(p.dtype).removeprefix("torch.") for p in named.values()),
        )
        placed = device if device is not None else _first_device(module)
        super().__init__(
            type(module).__name__,
            layout,
            [dtype or p.dtype for p in named.values()],
            dtype or own_dtype,
            placed,
            Isolation(placed, self._train and _draws(module), watched=_has_own_code(module)),
        )
        self._template = template
        # Without gradients recorded these take another way, which gives padded positions other values.
        self._differentiates = any(isinstance(part, _FAST_PATHS) for part in module.modules())
        # Whether it computes in its backward, too; seen when it first does.
        self._recomputes = False
        has_buffers = any(True for _ in template.buffers())
        self._moving = self._train and has_buffers
        # A forward of the user's may write to buffers in eval mode too; then each gets its own.
        self._lending = self._moving or (has_buffers and _has_own_code(module))
        self._moves = threading.Lock()
        self._pool = self._new_pool()
        if not self._train:
            _notice_train_mode(module)
        _notice_hooks(module)

    def params(self) -> Array:
        """See `Adapter.params`: read from the user's module as it is now."""
        flat = np.empty(self.layout.size)
        present = dict(self._module.named_parameters())
        for name, where in zip(self.layout.names, self.layout.slices):
            flat[where] = to_array(present.get(name, self._named[name])).reshape(-1)
        return flat

    def model(self, params: Array) -> nn.Module:
        """See `Adapter.model`. In the dtype and on the device of the computation, in the user's mode."""
        own = duplicate(self._module, [])
        convert(own, *self._placement(), set())
        pieces = dict(zip(self.layout.names, self.update(params)))
        with self._moves, torch.no_grad():
            state = {**dict(self._template.named_buffers()), **dict(self._template.named_parameters())}
            for name, tensor in [*own.named_parameters(), *own.named_buffers()]:
                tensor.copy_(pieces[name] if name in pieces else state[name])
        return own

    def compute(self, pieces: list[torch.Tensor], inputs: list[Any], signature: Signature) -> Any:
        """Run a replica of the module that holds the pieces."""
        args, kwargs = signature.bind(inputs)
        kept = self._recomputes
        replica = self._pool.new() if kept else self._pool.take()
        try:
            if self._lending:
                self._lend_buffers(replica)
            replica.fill(pieces)
            output = replica.module(*args, **kwargs)
            if self._moving and not signature.replay:
                self._take_buffers(replica)
            return output
        except GradbridgeError:
            raise
        except Exception as error:
            raise explained(error, self.label, replica.module, inputs) from error
        finally:
            if not kept:
                replica.empty()
                self._pool.give_back(replica)

    def keep_replicas(self) -> bool:
        """From now on every call has a replica of its own, that holds its parameters as long as its graph lives."""
        self._recomputes = True
        return True

    # -- private ------------------------------------------------------------------------------

    def _placement(self) -> tuple[torch.dtype | None, torch.device | None]:
        return floating_dtype(self._options.dtype), compute_device(self._options.device)

    def _new_pool(self) -> ReplicaPool:
        own = dict(self._template.named_parameters())
        return ReplicaPool(self._template, [own[name] for name in self._named], not self._lending)

    def _lend_buffers(self, replica: Replica) -> None:
        """Give a replica its own copy of the statistics as they stand, for the forward to move."""
        with self._moves:
            for ours, theirs in zip(self._template.modules(), replica.module.modules()):
                for key, value in ours._buffers.items():
                    theirs._buffers[key] = None if value is None else value.clone()

    def _take_buffers(self, replica: Replica) -> None:
        with self._moves:
            for ours, theirs in zip(self._template.modules(), replica.module.modules()):
                for key, value in theirs._buffers.items():
                    ours._buffers[key] = None if value is None else value.detach()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_pool", "_moves")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._moves = threading.Lock()
        self._pool = self._new_pool()


class FunctionAdapter(TensorAdapter):
    """A callable of tensors, with or without a tree of parameters as its first argument."""

    def __init__(self, function: Callable[..., Any], options: GuestOptions) -> None:
        self._function = function
        self._has_params = options.params is not None
        self.argument_names = argument_names(function, skip=int(self._has_params))
        dtype, device = floating_dtype(options.dtype), compute_device(options.device)
        layout, present, dtypes = ParameterLayout.empty(), np.empty(0), []
        if self._has_params:
            leaves, _ = trees.flatten(options.params)
            tensors = [
                leaf if isinstance(leaf, torch.Tensor) else torch.as_tensor(np.asarray(leaf))
                for leaf in leaves
            ]
            layout = ParameterLayout.of_tree(trees.unflatten(trees.flatten(options.params)[1], tensors))
            for name, tensor in zip(layout.names, tensors):
                if not tensor.is_floating_point():
                    raise OptionError(
                        f"parameter {name!r} of params= has dtype {tensor.dtype}; parameters are real floating "
                        f"arrays: keep constants in the function itself"
                    )
            present = layout.ravel(
                trees.unflatten(trees.flatten(options.params)[1], [to_array(t) for t in tensors])
            )
            dtypes = [dtype or t.dtype for t in tensors]
            device = device or tensors[0].device if tensors else device
        label = getattr(function, "__name__", type(function).__name__)
        super().__init__(
            label, layout, dtypes, dtype or (dtypes[0] if dtypes else None), device, Isolation(device, False)
        )
        self._present = present

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self._present.copy()

    def model(self, params: Array) -> Callable[..., Any]:
        """See `Adapter.model`: the function of tensors with these parameters filled in."""
        function = self._function
        if not self._has_params:
            return function
        tree = self._tree(self.update(params))
        return lambda *args, **kwargs: function(tree, *args, **kwargs)

    def compute(self, pieces: list[torch.Tensor], inputs: list[Any], signature: Signature) -> Any:
        """Call the function."""
        args, kwargs = signature.bind(inputs)
        if self._has_params:
            args = (self._tree(pieces), *args)
        try:
            output = self._function(*args, **kwargs)
        except GradbridgeError:
            raise
        except Exception as error:
            raise explained(error, self.label, None, inputs) from error
        if isinstance(output, (float, int, complex)):
            if torch.is_grad_enabled():
                raise NotDifferentiableError(
                    f"{self.label} returned a Python {type(output).__name__}, which torch cannot differentiate; "
                    f"return the tensor itself, without .item() or float()"
                )
            output = torch.as_tensor(output, dtype=None if isinstance(output, complex) else self._dtype)
        return output

    def _tree(self, pieces: list[torch.Tensor]) -> Any:
        assert self.layout.structure is not None
        return trees.unflatten(self.layout.structure, pieces)


def convert(
    module: nn.Module, dtype: torch.dtype | None, device: torch.device | None, keep: set[str]
) -> None:
    """Move a module's tensors to a dtype and device, but for the parameters named in `keep`.

    Those are placeholders shared with the user's module, and must not be touched.
    """
    if dtype is None and device is None:
        return
    done: dict[int, torch.Tensor] = {id(p): p for name, p in module.named_parameters() if name in keep}
    originals = []  # alive until the end, so that no id is used twice
    for part in module.modules():
        for slots in (part._parameters, part._buffers):
            for key, value in slots.items():
                if value is None:
                    continue
                if id(value) not in done:  # tied tensors stay tied
                    moved = value.detach().to(device=device, dtype=_in_precision(value.dtype, dtype))
                    if isinstance(value, nn.Parameter):
                        moved = nn.Parameter(moved, requires_grad=value.requires_grad)
                    done[id(value)] = moved
                    originals.append(value)
                slots[key] = done[id(value)]  # type: ignore[assignment]


def _in_precision(dtype: torch.dtype, wanted: torch.dtype | None) -> torch.dtype | None:
    """What a tensor of a dtype is converted to where floating ones go to `wanted`."""
    if dtype.is_complex and wanted is not None:
        return torch.complex128 if wanted is torch.float64 else torch.complex64
    return wanted if dtype.is_floating_point else None


def _bridgeable(module: nn.Module) -> nn.Module:
    original = getattr(module, "_orig_mod", None)
    if isinstance(original, nn.Module):  # what torch.compile returns holds the module itself
        module = original
    if isinstance(module, torch.jit.ScriptModule):
        raise UnknownModelError(
            "a ScriptModule hides its parameters from Python; bridge the nn.Module that it was made from"
        )
    for name, p in module.named_parameters():
        if isinstance(p, UninitializedParameter):
            raise UnknownModelError(
                f"parameter {name!r} of {type(module).__name__} has no shape yet (a lazy module); run the module "
                f"once on an example input before bridging it"
            )
    return module


def _first_dtype(module: nn.Module) -> torch.dtype | None:
    tensors = (*module.parameters(), *module.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point()), None)


def _first_device(module: nn.Module) -> torch.device | None:
    return next((t.device for t in (*module.parameters(), *module.buffers())), None)


def _draws(module: nn.Module) -> bool:
    return any(isinstance(part, _RANDOM_IN_TRAIN) for part in module.modules())


def _has_own_code(module: nn.Module) -> bool:
    """Whether some part's forward is not torch's own, so that nobody knows whether it draws numbers."""
    return any(not type(part).__module__.startswith("torch.nn.modules.") for part in module.modules())


def _notice_hooks(module: nn.Module) -> None:
    hooked = [name for name, p in module.named_parameters() if p.requires_grad and p._backward_hooks]
    if hooked:
        warnings.warn(
            f"{type(module).__name__} has gradient hooks on {', '.join(hooked)}; they belong to those tensors, and the "
            f"bridge computes with its own, so the gradient is that without them. Change the gradient in the host, or "
            f"in the model by a torch.autograd.Function",
            GradbridgeWarning,
            stacklevel=5,
        )


def _notice_train_mode(module: nn.Module) -> None:
    kinds = sorted(
        {
            type(part).__name__
            for part in module.modules()
            if part.training and isinstance(part, (nn.modules.dropout._DropoutNd, *_STATISTICS))
        }
    )
    if kinds:
        warnings.warn(
            f"{type(module).__name__} is in train mode and has {', '.join(kinds)}; the bridge evaluates it in eval "
            f"mode, without random masks and with the stored statistics. Pass mode='train' for the other, or "
            f"call .eval() on the model to be rid of this notice",
            GradbridgeWarning,
            stacklevel=5,
        )
