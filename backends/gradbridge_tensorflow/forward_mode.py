"""Tangents pushed to the outputs: ``tf.autodiff.ForwardAccumulator`` in graphs, compiled once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optree
import tensorflow as tf

from gradbridge_tensorflow.explain import refuse_lost_tangents
from gradbridge_tensorflow.jacobians import kept
from gradbridge_tensorflow.programs import Program, Traced, at_positions, kinds_of, output_leaves
from gradbridge_tensorflow.tensors import carrier, is_inexact


def push_function(
    program: Program,
    structure: optree.PyTreeSpec,
    leaves: Sequence[Any],
    wrt: tuple[int, ...],
    state: Sequence[tf.Tensor],
    many: bool,
) -> Any:
    """The JVP of a program for inputs of these shapes; None where TensorFlow has none.

    Args:
        program: the function.
        structure: of the leaves.
        leaves: eager tensors, and other objects, which are compiled in.
        wrt: positions that move.
        state: the moving variables' values.
        many: whether the tangents have a leading axis.

    Returns:
        (pieces, seeds if it is random, state, input tensors, tangents) ↦ for each output leaf its
        tangent, zeros for those that are not floating.
    """
    kinds = kinds_of(leaves, lambda index, x: tuple(x.shape))
    return kept(
        program.mapped,
        None if kinds is None else ("push", many, structure, wrt, kinds),
        lambda: _traced(program, structure, leaves, wrt, state, many),
    )


def _traced(
    program: Program,
    structure: optree.PyTreeSpec,
    leaves: Sequence[Any],
    wrt: tuple[int, ...],
    state: Sequence[tf.Tensor],
    many: bool,
) -> Any:
    def unpacked(flat: Sequence[tf.Tensor]) -> tuple[Traced, list[tf.Tensor]]:
        rest = iter(flat)
        pieces = [next(rest) for _ in program.pieces]
        seeds = next(rest) if program.random else None
        standing = [next(rest) for _ in state]
        mine = [next(rest) if isinstance(x, tf.Tensor) else x for x in leaves]
        return Traced(pieces, standing, seeds, mine, structure), list(rest)

    def joint(*flat: tf.Tensor) -> list[tf.Tensor]:
        given, tangents = unpacked(flat)

        def one(tangents: list[tf.Tensor]) -> list[tf.Tensor]:
            # New tensors: an accumulator is told of a tensor once, and this may be traced twice.
            primals = [tf.identity(x) if isinstance(x, tf.Tensor) else x for x in given.leaves]
            parts = [tf.identity(piece) for piece in given.pieces]
            moving = at_positions(parts, primals, wrt)
            traced = Traced(parts, list(given.state), given.seeds, primals, structure)
            with tf.autodiff.ForwardAccumulator(moving, tangents) as accumulator:
                outputs, _ = output_leaves(program.compute(traced), program.label)
            _refuse_custom_gradients(tf.compat.v1.get_default_graph())
            found = []
            for y in outputs:
                if is_inexact(y.dtype):
                    moved = accumulator.jvp(y, unconnected_gradients=tf.UnconnectedGradients.ZERO)
                    moved = tf.convert_to_tensor(moved)  # some operations give slices of it
                else:
                    moved = tf.zeros(tf.shape(y))
                found.append(tf.cast(moved, carrier(moved.dtype)))
            return found

        if not many:
            return one(tangents)
        return list(tf.vectorized_map(one, tangents, fallback_to_while_loop=False))

    def plain(*flat: tf.Tensor) -> list[tf.Tensor]:
        return output_leaves(program.compute(unpacked(flat)[0]), program.label)[0]

    moved = [
        tf.TensorSpec([None, *t.shape] if many else t.shape, t.dtype)
        for t in at_positions(list(program.pieces), leaves, wrt)
    ]
    specs = [
        *program.pieces,
        *([tf.TensorSpec([None, 2], tf.int64)] if program.random else []),
        *(tf.TensorSpec(s.shape, s.dtype) for s in state),
        *(tf.TensorSpec(x.shape, x.dtype) for x in leaves if isinstance(x, tf.Tensor)),
    ]

    def graph_of(function: Any, signature: Sequence[tf.TensorSpec]) -> Any:
        return tf.function(function, input_signature=signature, autograph=False).get_concrete_function()

    found = graph_of(joint, [*specs, *moved])
    refuse_lost_tangents(found.graph, program.label, lambda: graph_of(plain, specs).graph)
    return found


def _refuse_custom_gradients(graph: Any) -> None:
    """Raise if some operation has a gradient of its own: an accumulator does not ask it.

    It pushes tangents through what the operation computes, so that a JVP would not be the transposed
    of the VJP.
    """
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    if any("_gradient_op_type" in node.attr for node in nodes):
        raise NotImplementedError("a custom gradient has no forward mode")
