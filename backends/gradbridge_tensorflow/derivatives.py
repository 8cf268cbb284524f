"""Derivatives within a graph that is being traced: one order after the other, and the second in one walk."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from gradbridge.errors import HigherOrderError, NotDifferentiableError
from gradbridge.wording import first_line
from gradbridge_tensorflow.explain import refuse_lost_derivatives
from gradbridge_tensorflow.mapping import mapped
from gradbridge_tensorflow.op_gradients import own_gradients
from gradbridge_tensorflow.partition import TracedGraph, compiled
from gradbridge_tensorflow.repairs import repaired_derivatives
from gradbridge_tensorflow.tensors import is_inexact

# Scopes in which TensorFlow puts what a gradient computes.
_GRADIENT = re.compile(r"(^|/)gradient(s(_\d+)?|_tape)/")


class LoopError(Exception):
    """The gradient reads lists that a loop keeps: through these no gradient can be cut at the boundary."""


def gradients(
    outputs: Sequence[tf.Tensor],
    sources: Sequence[tf.Tensor],
    cotangents: Sequence[tf.Tensor],
    label: str,
    stops: Sequence[tf.Tensor] = (),
) -> list[tf.Tensor | None]:
    """Cotangents pulled back within the graph that is traced; dense, None where there is no influence.

    Args:
        outputs, sources, cotangents: tensors of the graph; by TensorFlow's convention.
        label: what refusals call the model.
        stops: tensors that are taken for constants, beyond which nothing is pulled.

    Raises:
        NotDifferentiableError, HigherOrderError: TensorFlow has no such derivative, or a wrong one.
    """
    if not outputs or not sources:
        return [None] * len(sources)
    graph = tf.compat.v1.get_default_graph()
    refuse_lost_derivatives(graph, label)
    is_higher = any(_GRADIENT.search(op.name) for op in graph.get_operations())
    refused = HigherOrderError if is_higher else NotDifferentiableError
    try:
        with own_gradients(sources):
            by_source = tf.gradients(
                list(outputs), list(sources), list(cotangents), stop_gradients=list(stops) or None
            )
    except LookupError as error:
        if "registry has no entry" not in str(error) and "No gradient defined" not in str(error):
            raise  # of a user's own code
        raise refused(
            f"the derivative of {label} was asked for, and TensorFlow has none for an operation in it "
            f"({first_line(error)}); replace that operation, or give it a gradient with tf.custom_gradient"
        ) from error
    except NotImplementedError as error:  # by a gradient that is written in Python
        raise refused(
            f"the derivative of {label} was asked for, and the gradient of an operation in it refuses "
            f"({first_line(error) or type(error).__name__}); replace that operation, or give it a gradient with "
            f"tf.custom_gradient (a function within tf.recompute_grad has first derivatives only: call it without)"
        ) from error
    return [None if g is None else tf.convert_to_tensor(g) for g in by_source]


class Order:
    """One more derivative in a graph: the outputs of the order before, pulled back.

    By the protocol's convention of complex gradients, so that what is recorded can go on; `pull`
    takes and gives them by TensorFlow's.

    Args:
        label: what refusals call the model.
        outputs: of the order before, None where one is not there.
        sources: the leaves that it is pulled back to, and all cotangents of the orders before.

    Attributes:
        every: a placeholder for the cotangent of each output, None for those that are not there.
        gradients: of each source, None where there is no influence.
        recorded: (residuals, cotangents) ↦ (gradients that can be differentiated again, residuals of that).
        last: (residuals, cotangents) ↦ all gradients.
        count: of its residuals.
    """

    recorded: Any = None
    last: Any = None
    count: int = 0

    def __init__(self, label: str, outputs: Sequence[Any], sources: Sequence[Any]) -> None:
        self.every = [None if y is None else _placeholder(y) for y in outputs]
        self.cotangents = [c for c in self.every if c is not None]
        present = [s for s in sources if s is not None]
        pulled = gradients(
            [y for y in outputs if y is not None], present, [_conj(c) for c in self.cotangents], label
        )
        rest = iter(pulled)
        self.gradients = [None if s is None or (g := next(rest)) is None else _conj(g) for s in sources]
        self.alive = tuple(g is not None for g in self.gradients)
        self.present = [g for g in self.gradients if g is not None]
        self._is_complex = any(t.dtype.is_complex for t in (*self.cotangents, *self.present))

    def pull(self, residuals: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        """The gradients that are there."""
        if self._is_complex:
            (found,) = self.last(*residuals, *map(_conj, cotangents))
            return [_conj(g) for g in found]
        return self.last(*residuals, *cotangents)[0]  # type: ignore[no-any-return]

    def mapped(self) -> Any:
        """`pull` for many cotangents, compiled."""
        specs = self.last.specs(self.count + len(self.cotangents))
        return _mapped(self.pull, specs[: self.count], specs[self.count :])


class Product:
    """The derivative of a first gradient that walks through the forward's graph once.

    The gradient reads tensors of the forward, at the boundary. From the gradient back to these and to
    its cotangents is the one half; the other pulls them, with the outputs, back to the leaves.

    Args:
        label: what refusals call the model.
        leaves: that it is pulled back to.
        fed: all placeholders of the forward.
        floats: the floating outputs.
        ends: the gradients that are differentiated.
        first: their order.

    Attributes:
        to_boundary: (residuals, tangents) ↦ (gradients of the first cotangents, what is left).
        home: (residuals of the forward, cotangents of the outputs, what is left) ↦ gradients of the leaves.
        counts: of these residuals.
        homeward, outward: for each leaf, and each cotangent, whether it has any influence.

    Raises:
        LoopError: a loop keeps lists of tensors for the gradient, which would be dropped without a word.
    """

    to_boundary: Any = None
    home: Any = None
    counts: tuple[int, int] = (0, 0)

    def __init__(
        self,
        label: str,
        leaves: Sequence[tf.Tensor],
        fed: Sequence[tf.Tensor],
        floats: Sequence[tf.Tensor],
        ends: Sequence[tf.Tensor],
        first: Order,
    ) -> None:
        graph = TracedGraph(tf.compat.v1.get_default_graph(), [*fed, *first.cotangents])
        _, read = graph.late_part(ends, graph.dependents(first.cotangents))
        if any(t.dtype in (tf.variant, tf.resource) for t in read):
            raise LoopError
        read = [t for t in read if is_inexact(t.dtype)]
        self.tangents = list(map(_placeholder, ends))
        stops = [*read, *first.cotangents]
        by_stop = gradients(ends, stops, self.tangents, label, stops)
        boundary = [(t, g) for t, g in zip(read, by_stop) if g is not None]
        self.left = [g for _, g in boundary]
        self.bars, self.left_cotangents = (
            list(map(_placeholder, floats)),
            [_placeholder(t) for t, _ in boundary],
        )
        outward = by_stop[len(read) :]
        homeward = gradients(
            [*floats, *(t for t, _ in boundary)], leaves, [*self.bars, *self.left_cotangents], label
        )
        self.by_cotangents = [g for g in outward if g is not None]
        self.by_leaves = [g for g in homeward if g is not None]
        self.homeward = tuple(g is not None for g in homeward)
        self.outward = tuple(g is not None for g in outward)
        self.alive = (*self.homeward, *self.outward)

    @property
    def placeholders(self) -> list[tf.Tensor]:
        """What its halves are fed besides residuals."""
        return [*self.tangents, *self.bars, *self.left_cotangents]

    def pull(self, residuals: Sequence[Any], tangents: Sequence[Any]) -> Sequence[Any]:
        """Both halves: the gradients that are there.

        Args:
            residuals: of the gradient, of the forward, and the gradient's cotangents.
            tangents: cotangents of the gradients.
        """
        own, base = self.counts
        by_cotangents, left = self.to_boundary(*residuals[:own], *tangents)
        bars = list(map(tf.zeros_like, residuals[own + base :]))
        (by_leaves,) = self.home(*residuals[own : own + base], *bars, *left)
        return [*by_leaves, *by_cotangents]

    def mapped(self) -> Any:
        """`pull` for many tangents, compiled."""
        own, base = self.counts
        outward = self.to_boundary.specs(own + len(self.tangents))
        return _mapped(self.pull, [*outward[:own], *self.home.specs(base + len(self.bars))], outward[own:])


@contextmanager
def quiet() -> Iterator[None]:
    """Without TensorFlow's log of what it could not map: there is another way, and it is taken."""
    logger, here = tf.get_logger(), threading.get_ident()

    def from_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != here

    logger.addFilter(from_elsewhere)
    try:
        yield
    finally:
        logger.removeFilter(from_elsewhere)


def _mapped(
    pull: Callable[..., Sequence[Any]],
    residuals: Sequence[tf.TensorSpec],
    cotangents: Sequence[tf.TensorSpec],
) -> Any:
    count = len(residuals)

    def run(*flat: tf.Tensor) -> list[tf.Tensor]:
        def one(cotangents: Sequence[tf.Tensor]) -> list[tf.Tensor]:
            return list(pull(flat[:count], cotangents))

        return list(mapped(one, list(flat[count:])))

    with quiet(), repaired_derivatives():
        return compiled(run, [*residuals, *(tf.TensorSpec([None, *t.shape], t.dtype) for t in cotangents)])


def _placeholder(like: tf.Tensor) -> tf.Tensor:
    return tf.compat.v1.placeholder(like.dtype, like.shape)


def _conj(tensor: tf.Tensor) -> tf.Tensor:
    return tf.math.conj(tensor) if tensor.dtype.is_complex else tensor
