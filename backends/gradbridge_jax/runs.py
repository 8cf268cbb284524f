"""What the host's primitives compute: on arrays of NumPy, over all the levels of batches that vmap laid around them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradbridge.errors import OutputError
from gradbridge.layout import Array
from gradbridge.lifting import Node, Run, Store

#: What was recorded, by number.
STORE = Store()

#: Of the token that names a record: its number and where its random numbers began, each in two words.
TOKEN = ((4,), np.dtype(np.uint32))

#: How the outputs of a call are together, by the thread that ran it last: arrays alone come out of a primitive.
latest = threading.local()


class Level(NamedTuple):
    """A batch that vmap laid around a primitive; the outermost one comes first.

    Attributes:
        size: of the batch.
        mask: for each operand, whether it has an axis for it: in front, in the order of the levels.
    """

    size: int
    mask: tuple[bool, ...]


Levels = tuple[Level, ...]

#: Shape and dtype of each output, without the batches.
Specs = tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]


def apply(
    operands: Sequence[Array], node: Node, wrt: tuple[int, ...], levels: Levels, views: bool = False
) -> list[Array]:
    """The operands of a node, and the token of its parent's record if it has one → outputs, and the token of its own.

    Args:
        operands: of NumPy, with all their batches.
        node, wrt, levels: as the primitive has them.
        views: whether results may share the guest's memory, since the caller copies them at once.
    """
    count = node.operands

    def one(operands: Sequence[Array], many: bool) -> list[Array]:
        parent = None
        if node.parent is not None:
            first = node.parent.operands
            parent = _recorded(node.parent, node.recorded(wrt), operands[count], operands[:first])
        run = node.evaluate(operands[:count], wrt, parent)
        latest.structure = run.structure
        return [*run.outputs, _token(run) if wrt else np.zeros(*TOKEN)]

    return _over(levels, operands, len(operands), one)


def pull(
    operands: Sequence[Array],
    node: Node,
    wrt: tuple[int, ...],
    levels: Levels,
    outputs: Specs,
    views: bool = False,
) -> list[Array]:
    """Operands of a node, the token of its record, a cotangent for each floating output → gradients by `wrt`."""
    return _linear(node, wrt, levels, operands, functools.partial(Run.pull, views=views), Run.pull_many)


def push(
    operands: Sequence[Array],
    node: Node,
    wrt: tuple[int, ...],
    levels: Levels,
    outputs: Specs,
    views: bool = False,
) -> list[Array]:
    """Operands of a node, the token of its record, a tangent for each of `wrt` → those of the floating outputs."""
    return _linear(node, wrt, levels, operands, Run.push, Run.push_many)


def _linear(
    node: Node,
    wrt: tuple[int, ...],
    levels: Levels,
    operands: Sequence[Array],
    alone: Callable[..., list[Array]],
    together: Callable[..., list[Array]],
) -> list[Array]:
    count = node.operands

    def one(operands: Sequence[Array], many: bool) -> list[Array]:
        run = _recorded(node, wrt, operands[count], operands[:count])
        return (together if many else alone)(run, operands[count + 1 :], wrt)

    return _over(levels, operands, count + 1, one)


def _token(run: Run) -> Array:
    words = [STORE.put(run), run.noise]
    return np.array([half for word in words for half in (word >> 32, word & 0xFFFFFFFF)], np.uint32)


def _recorded(node: Node, wrt: tuple[int, ...], token: Array, operands: Sequence[Array]) -> Run:
    """What a token stands for; recorded again, with the same noise, where it was forgotten, or is too little."""
    high, low, noise, rest = map(int, token)

    def again() -> Run:
        return node.evaluate(operands, wrt, noise=noise << 32 | rest)

    run = STORE.get(high << 32 | low, again)
    return run if run.covers(wrt) else again()


def _over(
    levels: Levels,
    operands: Sequence[Array],
    points: int,
    one: Callable[[Sequence[Array], bool], list[Array]],
) -> list[Array]:
    """A function of operands without batches over all of their batches.

    Levels that only the operands after the first `points` have, in which it is linear, go to it together.

    Args:
        levels: of which none is empty.
        operands: with their batches.
        points: how many say where it is evaluated.
        one: takes operands, and whether those after `points` have one leading axis, which its results get.
    """
    if not levels:
        return one(operands, False)
    looped = [i for i, level in enumerate(levels) if any(level.mask[:points])]
    joint = [i for i in range(len(levels)) if i not in looped]
    sizes = tuple(levels[i].size for i in joint)
    order = [*looped, *joint]
    results: list[Array] = []
    for index in np.ndindex(*(levels[i].size for i in looped)):
        at = dict(zip(looped, index))
        some = [_at(levels, k, operand, at) for k, operand in enumerate(operands)]
        if joint:
            some[points:] = [_joined(levels, joint, k, some[k]) for k in range(points, len(operands))]
        outputs = one(some, bool(joint))
        if joint:
            outputs = [array.reshape(*sizes, *array.shape[1:]) for array in outputs]
        if not looped:
            results = outputs
            break
        if not results:
            lead = tuple(levels[i].size for i in looped)
            results = [np.empty((*lead, *array.shape), array.dtype) for array in outputs]
        _put(results, index, outputs)
    if order == sorted(order):
        return results
    back = [order.index(i) for i in range(len(levels))]
    return [array.transpose(*back, *range(len(levels), array.ndim)) for array in results]


def _at(levels: Levels, operand: int, array: Array, at: dict[int, int]) -> Array:
    """An operand at an index of some of its levels."""
    own = [i for i, level in enumerate(levels) if level.mask[operand]]
    if not any(i in at for i in own):
        return array
    return np.asarray(array[tuple(at.get(i, slice(None)) for i in own)])


def _joined(levels: Levels, joint: Sequence[int], operand: int, array: Array) -> Array:
    """An operand with one axis for all of some levels, whether it has them all or not."""
    own = [i for i in joint if levels[i].mask[operand]]
    bare = array.shape[len(own) :]
    array = array.reshape(*(levels[i].size if i in own else 1 for i in joint), *bare)
    return np.broadcast_to(array, (*(levels[i].size for i in joint), *bare)).reshape(-1, *bare)


def _put(results: list[Array], index: tuple[int, ...], found: Sequence[Array]) -> None:
    came = [array.shape for array in found]
    expected = [array.shape[len(index) :] for array in results]
    if came != expected:
        raise OutputError(
            f"a model that was mapped over rows (jax.vmap) returned outputs of shapes {came[:-1]} for one and "
            f"{expected[:-1]} for another; return outputs of one shape, padded where they must be"
        )
    for result, array in zip(results, found):
        result[index] = array


def lead_of(levels: Levels) -> tuple[int, ...]:
    """The leading axes of whatever has all levels."""
    return tuple(level.size for level in levels)


def masked(levels: Levels, keep: Sequence[int], *more: Sequence[bool] | bool) -> Levels:
    """The levels for other operands.

    Args:
        levels: of some operands.
        keep: which of them come first.
        more: of each operand that comes then: whether it has all levels, or, for each level, whether it has that.
    """
    added = [[m] * len(levels) if isinstance(m, bool) else m for m in more]
    return tuple(
        Level(level.size, (*(level.mask[k] for k in keep), *(bool(m[i]) for m in added)))
        for i, level in enumerate(levels)
    )


def masks_of(levels: Levels, operand: int) -> tuple[bool, ...]:
    """For each level, whether an operand has it."""
    return tuple(level.mask[operand] for level in levels)


def bare_shape(shape: Sequence[int], levels: Levels, operand: int) -> tuple[int, ...]:
    """Of an operand, without its batches."""
    return tuple(shape[sum(masks_of(levels, operand)) :])


def inexact(specs: Specs) -> Iterator[int]:
    """Which outputs have derivatives."""
    return (i for i, (_, dtype) in enumerate(specs) if dtype.kind in "fc")
