"""Many cotangents at once, and rows apart: graphs mapped by ``tf.vectorized_map``, compiled once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optree
import tensorflow as tf

from gradbridge_tensorflow.isolation import apart
from gradbridge_tensorflow.programs import (
    Compiled,
    Program,
    Traced,
    at_positions,
    kinds_of,
    output_leaves,
    pulled,
    tracing,
)
from gradbridge_tensorflow.repairs import repaired_derivatives
from gradbridge_tensorflow.tensors import carrier


def pulled_many(
    compiled: Compiled, residuals: Sequence[tf.Tensor], cotangents: Sequence[tf.Tensor]
) -> list[tf.Tensor] | None:
    """What the backward half finds for cotangents with a leading axis; None where it cannot be mapped.

    Args:
        compiled: of the forward.
        residuals: that it kept.
        cotangents: of the floating outputs, (many, *output shape).
    """
    known = kept(compiled.mapped, "backward", lambda: _mapped_backward(compiled, residuals, cotangents))
    return known(*residuals, *cotangents) if known is not None else None


@dataclass(frozen=True)
class RowFunction:
    """Jacobians of each row with respect to what the rows share, compiled.

    Attributes:
        run: (pieces, state, input tensors) ↦ for each output, a tensor (rows × numbers, *shape) per
            shared tensor.
        shapes: of the floating outputs for one row.
    """

    run: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]


def row_function(
    program: Program,
    structure: optree.PyTreeSpec,
    leaves: Sequence[Any],
    wrt: tuple[int, ...],
    rowed: tuple[bool, ...],
    state: Sequence[tf.Tensor],
) -> RowFunction | None:
    """The row function of a program for inputs of these kinds; None where the program cannot be mapped."""
    kinds = kinds_of(leaves, lambda index, x: tuple(x.shape[1:] if rowed[index] else x.shape))
    found: RowFunction | None = kept(
        program.mapped,
        None if kinds is None else ("rows", structure, wrt, rowed, kinds),
        lambda: _mapped_rows(program, structure, leaves, wrt, rowed, state),
    )
    return found


def kept(table: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
    """The entry of a key, made once; None if making it failed, which is kept as well.

    Without a key, None, it is made anew and not kept.
    """
    if key is None:
        with tracing:
            return _made(make)
    if key not in table:
        with tracing:
            if key not in table:
                table[key] = _made(make)
    return table[key]


def _made(make: Callable[[], Any]) -> Any:
    try:
        return apart(lambda: _quietly(make))
    except Exception:  # what cannot be mapped, TensorFlow refuses in many ways
        return None


def _quietly(make: Callable[[], Any]) -> Any:
    """Call it without TensorFlow's log of what it could not convert: there is another way, and it is taken."""
    logger, here = tf.get_logger(), threading.get_ident()

    def from_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != here

    logger.addFilter(from_elsewhere)
    try:
        with repaired_derivatives():
            return make()
    finally:
        logger.removeFilter(from_elsewhere)


def _mapped_backward(
    compiled: Compiled, residuals: Sequence[tf.Tensor], cotangents: Sequence[tf.Tensor]
) -> Any:
    backward: Any = compiled.halves.backward
    inputs = backward.inputs
    count = len(residuals)

    def run(*flat: tf.Tensor) -> list[tf.Tensor]:
        def one(cotangents: list[tf.Tensor]) -> list[tf.Tensor]:
            (found,) = backward(*flat[:count], *cotangents)
            return list(found)

        return list(tf.vectorized_map(one, list(flat[count:]), fallback_to_while_loop=False))

    specs = [
        *(tf.TensorSpec(t.shape, t.dtype) for t in inputs[:count]),
        *(tf.TensorSpec([None, *t.shape], t.dtype) for t in inputs[count : count + len(cotangents)]),
    ]
    return tf.function(run, input_signature=specs, autograph=False).get_concrete_function()


def _mapped_rows(
    program: Program,
    structure: optree.PyTreeSpec,
    leaves: Sequence[Any],
    wrt: tuple[int, ...],
    rowed: tuple[bool, ...],
    state: Sequence[tf.Tensor],
) -> RowFunction:
    shapes: list[tuple[int, ...]] = []

    def joint(*flat: tf.Tensor) -> list[list[tf.Tensor]]:
        given = iter(flat)
        pieces = [next(given) for _ in program.pieces]
        standing = [next(given) for _ in state]
        mine = [next(given) if isinstance(x, tf.Tensor) else x for x in leaves]
        shared = at_positions(pieces, mine, wrt)

        def outputs_of(rows: Sequence[tf.Tensor]) -> list[tf.Tensor]:
            rest = iter(rows)
            alone = [next(rest)[None] if yes else x for x, yes in zip(mine, rowed)]
            traced = Traced(list(pieces), list(standing), None, alone, structure)
            outputs, _ = output_leaves(program.compute(traced), program.label)
            return [t for t in outputs if t.dtype.is_floating]

        rows = [x for x, yes in zip(mine, rowed) if yes]
        once = outputs_of([x[0] for x in rows])
        shapes[:] = [tuple(t.shape[1:].as_list()) for t in once]
        count = tf.shape(rows[0])[0]
        found = []
        for index, output in enumerate(once):
            numbers = output.shape.num_elements()

            def one(pair: Any, index: int = index) -> list[tf.Tensor]:
                # With a unit for each number of the output in the same map: maps do not nest well.
                row, unit = pair
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(shared)
                    output = outputs_of(row)[index]
                pairs = [(output, tf.reshape(unit, output.shape))]
                return [tf.cast(g, carrier(g.dtype)) for g in pulled(tape, pairs, shared, program)]

            units = tf.tile(tf.eye(numbers, dtype=output.dtype), [count, 1])
            repeated = [tf.repeat(x, numbers, axis=0) for x in rows]
            found.append(tf.vectorized_map(one, (repeated, units), fallback_to_while_loop=False))
        return found

    specs = [
        *program.pieces,
        *(tf.TensorSpec(s.shape, s.dtype) for s in state),
        *(
            tf.TensorSpec([None, *x.shape[1:]] if yes else x.shape, x.dtype)
            for x, yes in zip(leaves, rowed)
            if isinstance(x, tf.Tensor)
        ),
    ]
    run = tf.function(joint, input_signature=specs, autograph=False).get_concrete_function()
    return RowFunction(run, tuple(shapes))
