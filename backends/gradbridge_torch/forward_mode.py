"""torch's forward mode, where it says the same as its reverse mode.

torch computes a tangent wherever numbers flow: through a ``no_grad`` block, past a tensor's hooks, and
through a gradient that the model takes, where an outer gradient is cut or changed. So the model is watched: if one of these is met there is
no tangent to be had here, and the pullback's pullback is asked instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._vmap_internals import _vmap
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

# torch has one level of forward mode for the whole process, and whoever leaves it drops all tangents.
_turns = threading.RLock()

# A hook changes gradients alone, and a gradient that is taken inside is a constant to an outer one.
_UNLIKE = (
    torch.Tensor.register_hook,
    torch.Tensor.backward,
    torch.autograd.grad,
    torch.autograd.backward,
)


class _Unlike(Exception):
    """Forward mode would give something else than reverse mode, or nothing."""


class _Watch(TorchFunctionMode):
    """Notices what makes a tangent differ from a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.is_unlike = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _UNLIKE or not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            self.is_unlike = True
        return func(*args, **(kwargs or {}))


def pushed(
    compute: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]],
    primals: Sequence[torch.Tensor],
    tangents: Sequence[torch.Tensor],
) -> list[torch.Tensor | None] | None:
    """The tangent of each output; None for the whole where torch cannot tell.

    Args:
        compute: primals ↦ floating outputs. Called with gradients recorded.
        primals: leaves that require gradients, as a forward has them.
        tangents: like the primals.

    Returns:
        A tensor per output; None in place of one that does not depend on the primals.
    """
    try:
        with _level():
            duals = [forward_ad.make_dual(p, t) for p, t in zip(primals, tangents)]
            return list(map(_tangent, _watched(compute, duals)))
    except Exception:  # what has no forward mode says so in many ways
        return None


def pushed_many(
    compute: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]],
    primals: Sequence[torch.Tensor],
    tangents: Sequence[torch.Tensor],
) -> list[torch.Tensor] | None:
    """The same for tangents with a leading axis, mapped as ``torch.autograd.functional.jacobian`` does.

    Not by ``torch.func.jvp``: inside of it tensors do not say that they require gradients, so that
    a model that asks would take another branch; and ``torch.func.vmap`` maps over no dual tensors.
    """

    def one(*tangents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        duals = [forward_ad.make_dual(p, t) for p, t in zip(primals, tangents)]
        outputs = _watched(compute, duals)
        found = map(_tangent, outputs)
        return tuple(torch.zeros_like(y) if t is None else t for y, t in zip(outputs, found))

    try:
        with _level():
            return list(_vmap(one)(*tangents))
    except Exception:  # as above
        return None


def _tangent(output: torch.Tensor) -> torch.Tensor | None:
    """The tangent of an output; None where it does not depend on what moves, as reverse mode sees it, too."""
    tangent = forward_ad.unpack_dual(output).tangent
    if tangent is None and output.requires_grad:
        raise _Unlike("torch lost the tangent on the way: some operation drops it, and has a gradient")
    return tangent


@contextmanager
def _level() -> Iterator[None]:
    with _turns:
        if forward_ad._current_level >= 0:
            raise _Unlike("the caller is in a level of its own, and torch has no second one")
        with forward_ad.dual_level():
            yield


def _watched(
    compute: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]], arguments: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    with _Watch() as watch:
        outputs = compute(arguments)
    if watch.is_unlike:
        raise _Unlike("a tangent would pass where a gradient does not")
    return outputs
