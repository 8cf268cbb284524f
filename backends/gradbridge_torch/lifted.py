"""A node as three functions of tensors, with torch's rules for them: closed under differentiation, and mapped.

`Apply` is the node, `Pull` its cᵀJ, `Push` its J t. By its linear argument the derivative of a pull is a push and
that of a push a pull; by the operands it is that of another node. So every order follows, in either mode.
What a node recorded travels beside the tensors in a `Record`, which lives as long as torch's graph.

Complex cotangents and gradients are by core's convention in the three; torch's are their conjugates, and its rules
turn them around with operations of its own.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import Function, forward_ad
from torch.autograd.function import _SingleLevelFunction

from gradbridge.lifting import Node
from gradbridge_torch.crossing import lent, taken
from gradbridge_torch.mapped import Dims, called, is_plain, mapped, mapped_apply
from gradbridge_torch.records import Record
from gradbridge_torch.surroundings import apart_from_compiler, transform

_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks


class Operation(Function):
    """One of the three: a function of what is static about it, then of tensors.

    Attributes:
        lean: the same where no transform of `torch.func` is active: torch hands its forward the context, and is called
            without a line of Python of its own, which takes a quarter of the time.
    """

    lean: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = cls.forward(*inputs)
            cls.setup_context(ctx, inputs, output)
            return output

        for name in ("backward", "jvp"):
            if name in vars(cls):
                setattr(cls, name, staticmethod(apart_from_compiler(getattr(cls, name))))
        rules = {name: vars(cls)[name] for name in ("backward", "jvp") if name in vars(cls)}
        members = {"forward": staticmethod(forward), "vmap": cls.vmap, **rules}
        cls.lean = type(cls.__name__, (_SingleLevelFunction,), members)


class Apply(Operation):
    """(record, node, wrt, *operands) ↦ outputs. It may be differentiated by `wrt` alone."""

    @staticmethod
    def forward(record: Record, node: Node, wrt: tuple[int, ...], *operands: torch.Tensor) -> Any:
        run = record.at(node, lent(operands), wrt)
        return placed(run.outputs, of_first(operands, run.outputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        record, ctx.node, ctx.wrt, *operands = inputs
        ctx.set_materialize_grads(False)
        ctx.count, ctx.devices = len(operands), elsewhere(operands)
        ctx.like = [Like.of(y) if y.is_floating_point() or y.is_complex() else None for y in output]
        if None in ctx.like:
            ctx.mark_non_differentiable(*[y for y, like in zip(output, ctx.like) if like is None])
        is_alone = transform() is None
        if not is_alone or forward_ad._current_level >= 0:
            ctx.save_for_forward(*operands)
        if is_alone and _top_hooks(True) is None:
            # Torch frees what was saved when it has gone back; what was recorded is to go with it.
            ticket = torch.empty(0)
            ticket.record, ctx.record = record, weakref.ref(record)
            ctx.save_for_backward(*operands, ticket)
        else:
            ctx.record = lambda: record
            ctx.save_for_backward(*operands)

    @staticmethod
    def backward(ctx: Any, *arrived: Any) -> Any:
        needs, record = ctx.needs_input_grad, ctx.record() or _freed(ctx)
        wrt = tuple([i for i in range(ctx.count) if needs[i + 3]])
        cotangents = incoming(arrived, ctx.like)
        run = record.run
        if is_plain(cotangents) and run is not None and (wrt == ctx.wrt or run.covers(wrt)):
            # Nothing else is read: the operands may have changed since.
            results = run.pull(lent(cotangents), wrt)
            gradients = placed(results, ctx.devices and [ctx.devices[i] for i in wrt])
        else:
            operands = ctx.saved_tensors[: ctx.count]
            gradients = called(Pull, record, ctx.node, wrt, False, *operands, *cotangents)
        return None, None, None, *spread(conjugated(gradients), wrt, ctx.count)

    @staticmethod
    def jvp(ctx: Any, *arrived: Any) -> Any:
        operands, (wrt, moved) = ctx.saved_tensors[: ctx.count], _moving(arrived[3:])
        places = [i for i, like in enumerate(ctx.like) if like is not None]
        pushed = called(Push, ctx.record(), ctx.node, wrt, False, *operands, *moved) if places else ()
        return spread(pushed, places, len(ctx.like))

    @staticmethod
    def vmap(info: Any, dims: Any, record: Record, node: Node, wrt: tuple[int, ...], *operands: Any) -> Any:
        return mapped_apply(Apply, info.batch_size, dims[3:], record, node, wrt, operands)


class Linear(Operation):
    """(record, node, wrt, many, *operands, *tensors that it is linear in): a pull, or a push.

    With `many`, what it is linear in and what it returns have one leading axis more.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.record, ctx.node, ctx.wrt, ctx.many, *tensors = inputs
        ctx.derived = None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        if transform() is not None or forward_ad._current_level >= 0:
            ctx.save_for_forward(*tensors)
        ctx.like = [Like.of(y) for y in output]


class Pull(Linear):
    """cᵀJ: one cotangent per floating output → one gradient per operand of `wrt`."""

    @staticmethod
    def forward(record: Record, node: Node, wrt: tuple[int, ...], many: bool, *tensors: torch.Tensor) -> Any:
        arrays, count = lent(tensors), node.operands
        run = record.at(node, arrays[:count], wrt)
        gradients = (run.pull_many if many else run.pull)(arrays[count:], wrt)
        return placed(gradients, elsewhere([tensors[i] for i in wrt]))

    @staticmethod
    def backward(ctx: Any, *arrived: Any) -> Any:
        at, count, tangents = ctx.saved_tensors, ctx.node.operands, incoming(arrived, ctx.like)
        wrt: Sequence[int] = tuple([i for i, yes in enumerate(ctx.needs_input_grad[4:]) if yes])
        if all(i >= count for i in wrt):
            gradients = called(Push, ctx.record, ctx.node, ctx.wrt, ctx.many, *at[:count], *tangents)
            wrt = range(count, len(at))
        else:
            ctx.derived = ctx.derived or Record(ctx.record)
            dims = *[None] * count, *[0] * (len(at) - count + len(tangents))
            gradients = _each(
                ctx.many, Pull, (ctx.derived, _gradient(ctx), wrt, False), dims, (*at, *tangents)
            )
            if ctx.many:  # all rows have a share in the operands
                gradients = [g.sum(0) if i < count else g for i, g in zip(wrt, gradients)]
        return None, None, None, None, *spread(conjugated(gradients), wrt, len(at))

    @staticmethod
    def jvp(ctx: Any, *arrived: Any) -> Any:
        at, count, (wrt, moved) = ctx.saved_tensors, ctx.node.operands, _moving(arrived[4:])
        if all(i >= count for i in wrt):
            linear = _filled(arrived[4 + count :], at[count:])
            return tuple(called(Pull, ctx.record, ctx.node, ctx.wrt, ctx.many, *at[:count], *linear))
        ctx.derived = ctx.derived or Record(ctx.record)
        dims = *[None] * count, *[0] * (len(at) - count), *[None if i < count else 0 for i in wrt]
        return tuple(_each(ctx.many, Push, (ctx.derived, _gradient(ctx), wrt, False), dims, (*at, *moved)))

    @staticmethod
    def vmap(info: Any, dims: Any, record: Any, node: Any, wrt: Any, many: bool, *tensors: Any) -> Any:
        return mapped(Pull, info.batch_size, dims[4:], record, node, wrt, many, tensors)


class Push(Linear):
    """J t: one tangent per operand of `wrt` → one per floating output."""

    @staticmethod
    def forward(record: Record, node: Node, wrt: tuple[int, ...], many: bool, *tensors: torch.Tensor) -> Any:
        arrays, count = lent(tensors), node.operands
        run = record.at(node, arrays[:count], wrt).at(arrays[:count])
        tangents = (run.push_many if many else run.push)(arrays[count:], wrt)
        return placed(tangents, of_first(tensors, tangents))

    @staticmethod
    def backward(ctx: Any, *arrived: Any) -> Any:
        at, count, cotangents = ctx.saved_tensors, ctx.node.operands, incoming(arrived, ctx.like)
        operands, tangents = at[:count], at[count:]
        by_operands = tuple([i for i, yes in enumerate(ctx.needs_input_grad[4 : 4 + count]) if yes])
        by_tangents = [i for i, yes in enumerate(ctx.needs_input_grad[4:]) if yes and i >= count]
        gradients = [None] * len(at)
        if by_operands:
            # cᵀ(J t) = (cᵀJ) t: as of a gradient, at the cotangents, with the tangents for its own.
            static = Record(ctx.record), _gradient(ctx), by_operands, False
            dims = *[None] * count, *[0] * (len(cotangents) + len(tangents))
            by_point = _each(ctx.many, Pull, static, dims, (*operands, *cotangents, *tangents))
            for i, g in zip(by_operands, by_point):
                gradients[i] = g.sum(0) if ctx.many else g  # all rows have a share in the operands
        if by_tangents:
            gradients[count:] = called(Pull, ctx.record, ctx.node, ctx.wrt, ctx.many, *operands, *cotangents)
        return None, None, None, None, *conjugated(gradients)

    @staticmethod
    def jvp(ctx: Any, *arrived: Any) -> Any:
        at, count, (wrt, moved) = ctx.saved_tensors, ctx.node.operands, _moving(arrived[4:])
        if all(i >= count for i in wrt):
            linear = _filled(arrived[4 + count :], at[count:])
            return tuple(called(Push, ctx.record, ctx.node, ctx.wrt, ctx.many, *at[:count], *linear))
        # As a node it is the derivative of the gradient by its cotangents, at zeros.
        zeros = [like.zeros(1 if ctx.many else 0) for like in ctx.like]
        first = count + len(zeros)
        node = _gradient(ctx).derivative(tuple(range(count, first)), (True,) * len(ctx.wrt))
        ctx.derived = ctx.derived or Record(Record(ctx.record))
        static = ctx.derived, node, tuple([i if i < count else i + len(zeros) for i in wrt]), False
        dims = *[None] * first, *[0] * (len(at) - count), *[None if i < count else 0 for i in wrt]
        return tuple(_each(ctx.many, Push, static, dims, (*at[:count], *zeros, *at[count:], *moved)))

    @staticmethod
    def vmap(info: Any, dims: Any, record: Any, node: Any, wrt: Any, many: bool, *tensors: Any) -> Any:
        return mapped(Push, info.batch_size, dims[4:], record, node, wrt, many, tensors)


def _each(
    many: bool, operation: type[Linear], static: tuple[Any, ...], dims: Dims, tensors: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor]:
    """An operation; with `many` for each row of the tensors, over these axes."""
    if not many:
        return called(operation, *static, *tensors)  # type: ignore[no-any-return]
    size = next(len(t) for t, d in zip(tensors, dims) if d is not None)
    return mapped(operation, size, dims, *static, tensors)[0]


class Like(NamedTuple):
    """What a tensor is like, without its numbers."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Like:
        return cls(tensor.shape, tensor.dtype, tensor.device)

    def zeros(self, axis: int = 0) -> torch.Tensor:
        """Zeros, of its shape from an axis on."""
        return torch.zeros(self.shape[axis:], dtype=self.dtype, device=self.device)


def _freed(ctx: Any) -> Record:
    """Let torch say that it has freed what was saved."""
    ctx.saved_tensors  # noqa: B018
    return Record()


def _gradient(ctx: Any) -> Node:
    node: Node = ctx.node
    inexact = ctx.record.any().inexact if node.parent is None else (True,) * len(node.wrt)
    return node.derivative(ctx.wrt, inexact)


def elsewhere(tensors: Sequence[torch.Tensor]) -> list[torch.device] | None:
    """Where tensors are; None where all of them are on the CPU."""
    for tensor in tensors:
        if not tensor.is_cpu:
            return [x.device for x in tensors]
    return None


def of_first(tensors: Sequence[torch.Tensor], arrays: Sequence[Any]) -> list[torch.device] | None:
    """Where outputs belong: to the first tensor."""
    return [tensors[0].device] * len(arrays) if tensors and not tensors[0].is_cpu else None


def placed(arrays: Sequence[Any], devices: Sequence[torch.device] | None) -> tuple[torch.Tensor, ...]:
    """New arrays as tensors on devices; None is the CPU."""
    if devices is None:
        return tuple([taken(a) for a in arrays])
    return tuple([taken(a, device) for a, device in zip(arrays, devices)])


def incoming(cotangents: Iterable[Any], like: Sequence[Like | None]) -> list[torch.Tensor]:
    """What torch hands to reverse mode, of the floating outputs: zeros for None, and by core's convention."""
    return conjugated([x.zeros() if c is None else c for c, x in zip(cotangents, like) if x is not None])


def conjugated(tensors: Iterable[Any]) -> list[Any]:
    return [t if t is None or not t.is_complex() else t.conj() for t in tensors]


def _moving(tangents: Sequence[Any]) -> tuple[tuple[int, ...], list[torch.Tensor]]:
    """Of what torch hands to forward mode: (which tensors move, their tangents)."""
    wrt = tuple([i for i, t in enumerate(tangents) if t is not None])
    return wrt, [tangents[i] for i in wrt]


def _filled(tangents: Sequence[Any], tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.zeros_like(x) if t is None else t for t, x in zip(tangents, tensors)]


def spread(tensors: Iterable[Any], places: Sequence[int], count: int) -> tuple[Any, ...]:
    spread = [None] * count
    for place, tensor in zip(places, tensors):
        spread[place] = tensor
    return tuple(spread)
