"""``nn.Module`` as a model."""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from gradbridge.call_spec import CallSpec, argument_names
from gradbridge.errors import GradbridgeWarning, NotDifferentiableError, UnknownModelError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import GuestOptions
from gradbridge_torch.isolation import TorchModel
from gradbridge_torch.replicas import EMPTIED, Replica, duplicate, lent
from gradbridge_torch.tensors import compute_device, floating_dtype, in_precision, to_tensor, view_of

_RANDOM_IN_TRAIN = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.RNNBase, nn.MultiheadAttention)
_FAST_PATHS = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
_STATISTICS = (nn.modules.batchnorm._NormBase,)


class ModuleModel(TorchModel):
    """An ``nn.Module``: its trainable parameters are the weights, all else is kept as it was when bridged.

    Buffers and frozen parameters (``requires_grad=False``) are copied once, here.

    Args:
        module: the user's own: read, never written to.
        options: of the bridge.

    Raises:
        UnknownModelError: it hides its parameters, or has none yet.
        NotDifferentiableError: a complex parameter.
    """

    def __init__(self, module: nn.Module, options: GuestOptions) -> None:
        module = _bridgeable(module)
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        dtype, device = floating_dtype(options.dtype), compute_device(options.device)
        tensors = (*module.parameters(), *module.buffers())
        placed = device if device is not None else next((t.device for t in tensors), None)
        train, has_own_code = options.mode == "train", _has_own_code(module)
        draws = train and any(isinstance(part, _RANDOM_IN_TRAIN) for part in module.modules())
        super().__init__(placed, draws, watched=has_own_code)
        self.label = type(module).__name__
        self.argument_names = argument_names(module.forward)
        self.layout = ParameterLayout(
            tuple(named),
            tuple(tuple(p.shape) for p in named.values()),
            tuple(str(p.dtype).removeprefix("torch.") for p in named.values()),
        )
        self.dtypes = tuple(dtype or p.dtype for p in named.values())
        self.dtype = dtype or next((t.dtype for t in tensors if t.is_floating_point()), None)
        # Without gradients recorded these take another way, which gives padded positions other values.
        self.differentiates = any(isinstance(part, _FAST_PATHS) for part in module.modules())
        #: Whether it is known to write to none of its arguments.
        self.only_reads = not has_own_code and not any(map(_writes, module.modules()))
        self._module, self._named = module, named
        self._placement = (dtype, device)
        self._template = duplicate(module, list(named.values()))
        _convert(self._template, dtype, device, set(named))
        self._template.train(train)
        has_buffers = any(True for _ in self._template.buffers())
        self._moves = train and has_buffers
        # A forward of the user's may write to buffers in eval mode, too.
        self._lends = self._moves or (has_buffers and has_own_code)
        for tensor in (*self._template.buffers(), *self._template.parameters()) if self._lends else ():
            lent(tensor.detach())  # makes its memory copy-on-write, before any thread asks for it
        # Whether replicas are kept with their graph, because it computes in its backward, too.
        self._keeps = False
        self._start()
        if not train:
            _notice_train_mode(module)
        _notice_hooks(module)

    def weights(self) -> Sequence[Any]:
        present = dict(self._module.named_parameters())
        return [view_of(present.get(name, own)) for name, own in self._named.items()]

    def native(self, weights: Sequence[Any]) -> nn.Module:
        # In the dtype and on the device of the computation, in the user's mode.
        own = duplicate(self._module, [])
        _convert(own, *self._placement, set())
        new = {
            name: to_tensor(w, dtype, self.device, False)
            for name, w, dtype in zip(self.layout.names, weights, self.dtypes)
        }
        with self._lock, torch.no_grad():
            state = {**dict(self._template.named_buffers()), **dict(self._template.named_parameters()), **new}
            for name, tensor in [*own.named_parameters(), *own.named_buffers()]:
                tensor.copy_(state[name])
        return own

    def call(
        self, weights: Sequence[Any], inputs: list[Any], spec: CallSpec, extras: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        if self.differentiates:
            weights = self.tracked(weights)
        args, kwargs = spec.bind(inputs)
        # A replica is nobody else's until it is given back; fake tensors are not to stay in one.
        keeps = self._keeps or (bool(weights) and type(weights[0]) is not torch.Tensor)
        try:
            replica = self._new_replica() if keeps else self._idle.pop()
        except IndexError:
            replica = self._new_replica()
        try:
            for slots, key, index in replica.slots:
                slots[key] = weights[index]
            if self._lends:
                with self._lock:  # not in the middle of a move
                    replica.lend_buffers()
            output = replica.module(*args, **kwargs)
            return output, replica.buffers() if self._moves else ()
        finally:
            if not keeps:
                # A graph must not outlive its call by hanging in a slot.
                for slots, key, _ in replica.slots:
                    slots[key] = EMPTIED
                self._idle.append(replica)

    def move(self, after: Sequence[Any]) -> None:
        with self._lock:
            for part, buffers in zip(self._template.modules(), after):
                for key, value in buffers.items():
                    part._buffers[key] = None if value is None else value.detach()
                    if value is not None:
                        lent(part._buffers[key])

    def keep_for_rerun(self) -> bool:
        """From now on every call has a replica of its own, that holds its weights as long as its graph lives."""
        changes, self._keeps = not self._keeps, True
        return changes

    # -- replicas -----------------------------------------------------------------------------

    def _start(self) -> None:
        self._lock = threading.RLock()
        # As many as there are forwards at once. The template itself never runs: it would be copied
        # while its slots are filled.
        self._idle: deque[Replica] = deque()

    def _new_replica(self) -> Replica:
        own = dict(self._template.named_parameters())
        with self._lock:
            return Replica(self._template, [own[name] for name in self._named], self._lends)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_idle", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


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
        if p.is_complex() and p.requires_grad:
            raise NotDifferentiableError(
                f"parameter {name!r} of {type(module).__name__} is complex, and params are a real vector; keep "
                f"the real and imaginary parts as two real parameters, and join them with torch.complex"
            )
    return module


def _convert(
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
                    converted = value.detach().to(device=device, dtype=in_precision(value.dtype, dtype))
                    if isinstance(value, nn.Parameter):
                        converted = nn.Parameter(converted, requires_grad=value.requires_grad)
                    done[id(value)] = converted
                    originals.append(value)
                slots[key] = done[id(value)]  # type: ignore[assignment]


def _has_own_code(module: nn.Module) -> bool:
    """Whether some part's forward is not torch's own, so that nobody knows whether it draws numbers or writes."""
    return any(
        not type(part).__module__.startswith("torch.nn.modules.")
        or part._forward_hooks
        or part._forward_pre_hooks
        for part in module.modules()
    )


def _writes(part: nn.Module) -> bool:
    """Whether a layer of torch's writes to its input or its weights."""
    return bool(getattr(part, "inplace", False)) or getattr(part, "max_norm", None) is not None


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
