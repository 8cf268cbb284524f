"""Which modules can be bridged, and what is to be known, or said, of those that can."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from gradbridge.errors import NotDifferentiableError, UnknownModelError
from gradbridge.notices import notice

_RANDOM_IN_TRAIN = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.RNNBase, nn.MultiheadAttention)
_FAST_PATHS = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
_STATISTICS = (nn.modules.batchnorm._NormBase,)


def bridgeable(module: nn.Module) -> nn.Module:
    """The module that is bridged for one that was handed in.

    Raises:
        UnknownModelError: it hides its parameters, has none yet, or has no numbers.
        NotDifferentiableError: a complex parameter.
    """
    original = getattr(module, "_orig_mod", None)
    if isinstance(original, nn.Module):  # what torch.compile returns holds the module itself
        module = original
    if isinstance(module, torch.jit.ScriptModule):
        raise UnknownModelError(
            "a ScriptModule hides its parameters from Python; bridge the nn.Module that it was made from"
        )
    for part in _parts(module):
        if "_modules" not in vars(part):
            raise UnknownModelError(
                f"{type(part).__name__}.__init__ did not call super().__init__(), so it is not a module yet; call it "
                f"there before anything else (a dataclass: in __post_init__, with eq=False)"
            )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta and not isinstance(tensor, UninitializedParameter):
            raise UnknownModelError(
                f"{name!r} of {type(module).__name__} is on the meta device and holds no numbers; give it some before "
                f"bridging: module.to_empty(device='cpu'), then load_state_dict"
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


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Like ``module.modules()``, which a part that is not a module yet would stop."""
    stack, seen = [module], set()
    while stack:
        part = stack.pop()
        if id(part) in seen or isinstance(part, torch.jit.ScriptModule):
            continue
        seen.add(id(part))
        yield part
        stack += [child for child in vars(part).get("_modules", {}).values() if child is not None]


def draws_in_train(module: nn.Module) -> bool:
    """Whether a layer of torch's draws random numbers in train mode."""
    return any(isinstance(part, _RANDOM_IN_TRAIN) for part in module.modules())


def has_fast_paths(module: nn.Module) -> bool:
    """Whether, without gradients recorded, it takes another way, which gives padded positions other values."""
    return any(isinstance(part, _FAST_PATHS) for part in module.modules())


def has_own_code(module: nn.Module) -> bool:
    """Whether some part's forward is not torch's own, so that nobody knows whether it draws numbers or writes."""
    return any(
        not type(part).__module__.startswith("torch.nn.modules.")
        or "forward" in vars(part)  # put in place on the object
        or part._forward_hooks
        or part._forward_pre_hooks
        for part in module.modules()
    )


def writes(part: nn.Module) -> bool:
    """Whether a layer of torch's writes to its input or its weights."""
    return bool(getattr(part, "inplace", False)) or getattr(part, "max_norm", None) is not None


def own_code(module: nn.Module) -> list[Any]:
    """What its code that is not torch's starts from: its parts, their forwards and hooks."""
    if not has_own_code(module):
        return []
    found: list[Any] = []
    for part in module.modules():
        hooks = (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
        found += [part, type(part).forward, *hooks]
    return found


def notices(module: nn.Module, is_train: bool) -> None:
    """Say what may not be as the user expects it."""
    if not is_train:
        _notice_train_mode(module)
    _notice_hooks(module)


def _notice_hooks(module: nn.Module) -> None:
    hooked = [name for name, p in module.named_parameters() if p.requires_grad and p._backward_hooks]
    if hooked:
        notice(
            f"{type(module).__name__} has gradient hooks on {', '.join(hooked)}; they belong to those tensors, and the "
            f"bridge computes with its own, so the gradient is that without them. Change the gradient in the host, or "
            f"in the model by a torch.autograd.Function",
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
        notice(
            f"{type(module).__name__} is in train mode and has {', '.join(kinds)}; the bridge evaluates it in eval "
            f"mode, without random masks and with the stored statistics. Pass mode='train' for the other, or "
            f"call .eval() on the model to silence this notice",
        )
