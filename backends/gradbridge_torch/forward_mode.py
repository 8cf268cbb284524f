"""torch's forward mode, where it says the same as its reverse mode.

torch computes a tangent wherever numbers flow: through a ``no_grad`` block, past a tensor's hooks, and
through a gradient that the model takes, where an outer gradient is cut or changed. So the model is
watched: if one of these is met there is no tangent to be had here, and the pullback's pullback is
asked instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._vmap_internals import _vmap
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from gradbridge.errors import Unsupported
from gradbridge.forks import fork_safe_lock

# torch has one level of forward mode for the whole process, and whoever leaves it drops all tangents.
_level_lock = fork_safe_lock()

# A hook changes gradients alone, and a gradient that is taken inside is a constant to an outer one.
_REVERSE_ONLY = (
    torch.Tensor.register_hook,
    torch.Tensor.backward,
    torch.autograd.grad,
    torch.autograd.backward,
)

Function = Callable[[list[torch.Tensor]], list[torch.Tensor]]


class _Watch(TorchFunctionMode):
    """Notices what makes a tangent differ from a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.differs = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _REVERSE_ONLY or not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            self.differs = True
        return func(*args, **(kwargs or {}))


def pushed(
    fn: Function, primals: Sequence[torch.Tensor], tangents: Sequence[torch.Tensor], many: bool
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(outputs, the tangent of each).

    Many at once are mapped as ``torch.autograd.functional.jacobian`` does. Not by ``torch.func.jvp``:
    inside of it tensors do not say that they require gradients, so that a model that asks would take
    another branch; and ``torch.func.vmap`` maps over no dual tensors.

    Args:
        fn: primals ↦ floating outputs. Called with gradients recorded.
        primals: leaves that require gradients, as a forward has them.
        tangents: like the primals; with `many` each with a leading axis.
        many: whether there are many.

    Raises:
        Unsupported: torch cannot tell. What has no forward mode raises in many other ways.
    """
    outputs: list[torch.Tensor] = []

    def one(*tangents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with _Watch() as watch:
            duals = fn([forward_ad.make_dual(p, t) for p, t in zip(primals, tangents)])
        if watch.differs:
            raise Unsupported("a tangent would pass where a gradient does not")
        outputs[:] = [forward_ad.unpack_dual(y).primal for y in duals]
        moved = map(_tangent, duals)
        return tuple(torch.zeros_like(y) if t is None else t for y, t in zip(outputs, moved))

    with _level():
        return outputs, list((_vmap(one) if many else one)(*tangents))


def _tangent(output: torch.Tensor) -> torch.Tensor | None:
    """The tangent of an output; None where it does not depend on what moves, as reverse mode sees it, too."""
    tangent = forward_ad.unpack_dual(output).tangent
    if tangent is None and output.requires_grad:
        raise Unsupported("torch lost the tangent on the way: some operation drops it, and has a gradient")
    return tangent


@contextmanager
def _level() -> Iterator[None]:
    with _level_lock:
        if forward_ad._current_level >= 0:
            raise Unsupported("the caller is in a level of its own, and torch has no second one")
        with forward_ad.dual_level():
            yield
