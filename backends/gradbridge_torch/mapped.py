"""The three operations mapped over an axis: what is batched for a guest, and what is computed row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

from gradbridge.errors import HostError
from gradbridge.lifting import Node
from gradbridge_torch.records import Record
from gradbridge_torch.surroundings import transform

Dims = Sequence[int | None]

_is_legacy = torch._C._functorch.is_legacy_batchedtensor
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


class _Rows(NamedTuple):
    """What torch tells the rule of a map."""

    batch_size: int


def called(operation: Any, *arguments: Any) -> Any:
    """An operation at tensors of any kind."""
    if transform() is not None:
        return operation.apply(*arguments)
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            if _is_legacy(argument):
                return _called_in_old_map(operation, arguments)
            if _is_wrapped(argument):  # of a transform that is over
                return operation.lean.apply(*unwrap_dead_wrappers(arguments))
    return operation.lean.apply(*arguments)


def is_plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether nothing but numbers is asked for: neither gradients, tangents nor maps."""
    if torch.is_grad_enabled() or transform() is not None or forward_ad._current_level >= 0:
        return False
    return not any(map(_is_legacy, tensors))


def _called_in_old_map(operation: Any, arguments: Sequence[Any]) -> Any:
    """Within the map of ``is_grads_batched`` and ``vectorize=True``, which knows no rules: by ours."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    inner, dims = list(arguments), list[int | None]([None] * len(arguments))
    for i, argument in enumerate(arguments):
        if isinstance(argument, torch.Tensor) and _is_legacy(argument):
            inner[i], dims[i] = torch._remove_batch_dim(argument, level, 1, 0), 0
            if _is_legacy(inner[i]):
                raise HostError(
                    "a derivative of a bridge was mapped twice by the old map of is_grads_batched=True and "
                    "vectorize=True; use torch.func.vmap or torch.func.jacrev, whose maps nest"
                )
    size = next(len(x) for x, d in zip(inner, dims) if d is not None)
    outputs, of = operation.vmap(_Rows(size), tuple(dims), *inner)
    return tuple([torch._add_batch_dim(y, d, level) for y, d in zip(outputs, of)])


def mapped_apply(
    operation: Any,
    size: int,
    dims: Dims,
    record: Record,
    node: Node,
    wrt: tuple[int, ...],
    operands: Sequence[torch.Tensor],
) -> tuple[tuple[torch.Tensor, ...], tuple[int, ...]]:
    """A node for each row of its operands."""
    _refuse_no_rows(size)
    rows = [
        called(operation, record.row(node, i, dims), node, wrt, *_at(operands, dims, i)) for i in range(size)
    ]
    return _stacked(rows)


def mapped(
    operation: Any,
    size: int,
    dims: Dims,
    record: Record,
    node: Node,
    wrt: tuple[int, ...],
    many: bool,
    tensors: Sequence[torch.Tensor],
) -> tuple[tuple[torch.Tensor, ...], tuple[int, ...]]:
    """A pull or a push for each row: in one computation where the operands are shared."""
    count = node.operands
    shared, linear = tensors[:count], tensors[count:]
    if all(d is None for d in dims[:count]):
        rows = [
            t.expand(size, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(linear, dims[count:])
        ]
        if not many:
            outputs = called(operation, record, node, wrt, True, *shared, *rows)
            return tuple(outputs), (0,) * len(outputs)
        lead = size, rows[0].shape[1]
        rows = [t.reshape(lead[0] * lead[1], *t.shape[2:]) for t in rows]
        outputs = called(operation, record, node, wrt, True, *shared, *rows)
        return tuple([y.reshape(*lead, *y.shape[1:]) for y in outputs]), (0,) * len(outputs)
    _refuse_no_rows(size)
    every = []
    for i in range(size):
        own = record.row(node, i, dims[:count])
        every.append(called(operation, own, node, wrt, many, *_at(tensors, dims, i)))
    return _stacked(every)


def _at(tensors: Sequence[torch.Tensor], dims: Dims, index: int) -> list[torch.Tensor]:
    return [t if d is None else t.select(d, index) for t, d in zip(tensors, dims)]


def _stacked(
    rows: Sequence[Sequence[torch.Tensor]],
) -> tuple[tuple[torch.Tensor, ...], tuple[int, ...]]:
    columns = tuple([torch.stack(column) for column in zip(*rows)])
    return columns, (0,) * len(columns)


def _refuse_no_rows(size: int) -> None:
    if not size:
        raise HostError(
            "a bridge was mapped over an axis of length 0: no row of it is computed, so nobody knows what it would "
            "return; map over one row at least"
        )
