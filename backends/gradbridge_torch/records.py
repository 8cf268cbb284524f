"""What a node recorded, beside the tensors of torch's graph; and which tensors torch is differentiating."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.autograd import forward_ad

from gradbridge.layout import Array
from gradbridge.lifting import Node, Run
from gradbridge_torch.surroundings import transform

_functorch = torch._C._functorch


class Record:
    """What a node recorded at some operands; one for each row where these are mapped.

    Args:
        parent: of a gradient: the record of the node that it is the gradient of.

    Attributes:
        run: None before it has run, and where its rows have.
    """

    __slots__ = ("__weakref__", "_parent", "_rows", "run")

    run: Run | None

    def __init__(self, parent: Record | None = None) -> None:
        self._parent, self.run = parent, None
        self._rows: dict[int, Record] = {}

    def at(self, node: Node, arrays: Sequence[Array], wrt: tuple[int, ...]) -> Run:
        """What the node recorded, or records now, so that it can be pulled back to some operands.

        Args:
            node: whose record this is.
            arrays: its operands.
            wrt: which.
        """
        run = self.run
        if run is None or not run.covers(wrt):
            origin, first = None, node.parent
            if first is not None and self._parent is not None:
                origin = self._parent.at(first, arrays[: first.operands], node.recorded(wrt))
            run = self.run = node.evaluate(arrays, wrt, origin)
        return run

    def row(self, node: Node, index: int, dims: Sequence[int | None]) -> Record:
        """Of one row, where the node's operands are mapped over these axes; itself where none is."""
        if all(d is None for d in dims):
            return self
        parent = self._parent
        if parent is not None and node.parent is not None:
            parent = parent.row(node.parent, index, dims[: node.parent.operands])
        return self._rows.setdefault(index, Record(parent))

    def any(self) -> Run:
        """What was recorded: shapes apart, the same for all rows."""
        return self.run or next(iter(self._rows.values())).any()


def moving(operands: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """Which operands torch is differentiating here, in either mode, or may be."""
    if transform() is None and forward_ad._current_level < 0:
        if not torch.is_grad_enabled():
            return ()
        return tuple([i for i, x in enumerate(operands) if x.requires_grad])
    return tuple([i for i, x in enumerate(operands) if is_tracked(x)])


def is_tracked(tensor: torch.Tensor) -> bool:
    """Whether a tensor has a gradient asked for, or a tangent, at any level."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_gradtrackingtensor(tensor):
            return tensor.is_floating_point() or tensor.is_complex()
        tensor = _functorch.get_unwrapped(tensor)
    if tensor.requires_grad and torch.is_grad_enabled():
        return True
    return forward_ad._current_level >= 0 and has_tangent(tensor)


def has_tangent(tensor: torch.Tensor) -> bool:
    """Whether forward mode pushes a tangent along with a tensor, within a level of it."""
    return forward_ad.unpack_dual(tensor).tangent is not None
