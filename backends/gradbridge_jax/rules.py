"""Derivatives of the host's primitives, in terms of each other: so every order follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad

from gradbridge.lifting import Node
from gradbridge_jax.primitives import apply_p, pull_p, push_p
from gradbridge_jax.runs import Levels, Specs, inexact, masked, masks_of


def _apply_jvp(
    primals: Sequence[Any], tangents: Sequence[Any], *, node: Node, wrt: tuple[int, ...], levels: Levels
) -> tuple[list[Any], list[Any]]:
    """The tangents of the outputs are a push from what the apply records."""
    points = range(node.operands)
    moving = tuple(i for i in points if not _is_zero(tangents[i]) and _is_inexact(primals[i]))
    results = apply_p.bind(*primals, node=node, wrt=tuple(sorted({*wrt, *moving})), levels=levels)
    *values, token = results
    moved: list[Any] = [_zero_tangent(result) for result in results]
    outputs = _specs(values, levels)
    if moving and any(True for _ in inexact(outputs)):
        pushed = push_p.bind(
            *primals[: node.operands],
            token,
            *(tangents[i] for i in moving),
            node=node,
            wrt=moving,
            levels=masked(levels, points, True, *(masks_of(levels, i) for i in moving)),
            outputs=outputs,
        )
        for place, tangent in zip(inexact(outputs), pushed):
            moved[place] = tangent
    return results, moved


def _push_transpose(
    cotangents: Sequence[Any],
    *operands: Any,
    node: Node,
    wrt: tuple[int, ...],
    levels: Levels,
    outputs: Specs,
) -> list[Any]:
    first = node.operands + 1
    places = [k for k in range(first, len(operands)) if ad.is_undefined_primal(operands[k])]
    every = [ad.instantiate_zeros(c) for c in cotangents]
    pulled = pull_p.bind(
        *operands[:first],
        *every,
        node=node,
        wrt=tuple(wrt[k - first] for k in places),
        levels=masked(levels, range(first), *[True] * len(every)),
        outputs=outputs,
    )
    return _given(pulled, places, len(operands), levels)


def _pull_transpose(
    cotangents: Sequence[Any],
    *operands: Any,
    node: Node,
    wrt: tuple[int, ...],
    levels: Levels,
    outputs: Specs,
) -> list[Any]:
    first = node.operands + 1
    places = [k for k in range(first, len(operands)) if ad.is_undefined_primal(operands[k])]
    moving = [i for i, c in enumerate(cotangents) if not _is_zero(c)]
    if not moving:
        return [None] * len(operands)
    pushed = push_p.bind(
        *operands[:first],
        *(cotangents[i] for i in moving),
        node=node,
        wrt=tuple(wrt[i] for i in moving),
        levels=masked(levels, range(first), *[True] * len(moving)),
        outputs=outputs,
    )
    return _given([pushed[k - first] for k in places], places, len(operands), levels)


def _given(found: Sequence[Any], places: Sequence[int], count: int, levels: Levels) -> list[Any]:
    """What a transposed gives to some of its arguments, summed over the batches that they do not have."""
    given: list[Any] = [None] * count
    for place, array in zip(places, found):
        axes = tuple(i for i, has in enumerate(masks_of(levels, place)) if not has)
        given[place] = jnp.sum(array, axes) if axes else array
    return given


def _pull_jvp(
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    node: Node,
    wrt: tuple[int, ...],
    levels: Levels,
    outputs: Specs,
) -> tuple[list[Any], list[Any]]:
    """Linear in the cotangents; and where the point moves, the apply of the gradient, as a node of its own."""
    count = node.operands
    if all(map(_is_zero, tangents[:count])):
        return _linear_jvp(pull_p, primals, tangents, node, wrt, levels, outputs)
    gradient = node.derivative(wrt, tuple(dtype.kind in "fc" for _, dtype in outputs))
    order = [*range(count), *range(count + 1, len(primals)), count]
    results, moved = _apply_jvp(
        [primals[k] for k in order],
        [tangents[k] for k in order],
        node=gradient,
        wrt=(),
        levels=masked(levels, order),
    )
    return results[:-1], moved[:-1]


def _push_jvp(
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    node: Node,
    wrt: tuple[int, ...],
    levels: Levels,
    outputs: Specs,
) -> tuple[list[Any], list[Any]]:
    """Linear in the tangents; and where the point moves, the apply of the gradient's own gradient by its cotangents.

    Source: J. Townsend (2017), A new trick for calculating Jacobian-vector products.
    """
    count = node.operands
    if all(map(_is_zero, tangents[:count])):
        return _linear_jvp(push_p, primals, tangents, node, wrt, levels, outputs)
    gradient = node.derivative(wrt, tuple(dtype.kind in "fc" for _, dtype in outputs))
    zeros = [jnp.zeros(*outputs[i]) for i in inexact(outputs)]
    behind = tuple(range(count, count + len(zeros)))
    pushes = gradient.derivative(behind, (True,) * len(wrt))
    at, token, along = primals[:count], primals[count], primals[count + 1 :]
    moving = tuple(i for i in range(count) if not _is_zero(tangents[i]) and _is_inexact(at[i]))
    none = [False] * len(zeros)
    around = masked(levels, range(count), *none, masks_of(levels, count))
    *_, recorded = apply_p.bind(
        *at,
        *zeros,
        token,
        node=gradient,
        wrt=(*moving, *behind),
        levels=tuple(level for level in around if any(level.mask)),  # not those of the tangents alone
    )
    results, moved = _apply_jvp(
        [*at, *zeros, *along, recorded],
        [
            *tangents[:count],
            *map(_zero_tangent, zeros),
            *tangents[count + 1 :],
            _zero_tangent(recorded),
        ],
        node=pushes,
        wrt=(),
        levels=masked(
            levels,
            range(count),
            *none,
            *(masks_of(levels, k) for k in range(count + 1, len(primals))),
            [any(level.mask) for level in around],
        ),
    )
    return results[:-1], moved[:-1]


def _linear_jvp(
    primitive: Any,
    primals: Sequence[Any],
    tangents: Sequence[Any],
    node: Node,
    wrt: tuple[int, ...],
    levels: Levels,
    outputs: Specs,
) -> tuple[list[Any], list[Any]]:
    """At a fixed point: the same operation of the tangents."""
    first = node.operands + 1
    results = primitive.bind(*primals, node=node, wrt=wrt, levels=levels, outputs=outputs)
    if all(map(_is_zero, tangents[first:])):
        return results, list(map(_zero_tangent, results))
    tangents = [ad.instantiate_zeros(t) for t in tangents[first:]]
    pushed = primitive.bind(*primals[:first], *tangents, node=node, wrt=wrt, levels=levels, outputs=outputs)
    return results, pushed


def _specs(values: Sequence[Any], levels: Levels) -> Specs:
    """Shape and dtype of outputs without their batches."""
    return tuple((tuple(np.shape(y)[len(levels) :]), np.dtype(y.dtype)) for y in values)


def _is_zero(tangent: Any) -> bool:
    return type(tangent) is ad.Zero


def _is_inexact(value: Any) -> bool:
    return bool(jnp.issubdtype(jax.typeof(value).dtype, jnp.inexact))


def _zero_tangent(value: Any) -> Any:
    return ad.Zero(jax.typeof(value).to_tangent_aval())


ad.primitive_jvps[apply_p] = _apply_jvp
ad.primitive_jvps[pull_p] = _pull_jvp
ad.primitive_jvps[push_p] = _push_jvp
ad.primitive_transposes[pull_p] = _pull_transpose
ad.primitive_transposes[push_p] = _push_transpose
