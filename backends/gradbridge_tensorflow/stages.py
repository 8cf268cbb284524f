"""Stages: a computation and its derivatives to some order, traced as one graph and cut where cotangents come in.

::

    leaves → outputs | cotangents → gradients | their cotangents → second derivatives | …

Each part reads only tensors of the parts before, its residuals. So a derivative of a recorded call
computes nothing twice, however high its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import tensorflow as tf

from gradbridge.errors import GradbridgeError, HigherOrderError, UnknownModelError, Unsupported
from gradbridge.program import Computation, Form
from gradbridge_tensorflow import callbacks
from gradbridge_tensorflow.derivatives import LoopError, Order, Product
from gradbridge_tensorflow.explain import bodies, refuse_foreign_operations, refuse_missing_derivatives
from gradbridge_tensorflow.isolation import apart, tracing
from gradbridge_tensorflow.open_sizes import looks_at_open_sizes
from gradbridge_tensorflow.partition import TracedGraph, compiled
from gradbridge_tensorflow.repairs import repaired_derivatives

#: For each order, which of the gradients can be differentiated again, by their place among all.
Path = tuple[tuple[int, ...], ...]

#: Operations that only arrange numbers, or sum them up.
_PLAIN = {
    *("Placeholder", "Const", "Identity", "IdentityN", "NoOp", "Cast", "Reshape", "Shape", "ExpandDims"),
    *("Squeeze", "Pack", "Unpack", "StridedSlice", "Tile", "Fill", "ZerosLike", "OnesLike", "Range"),
    *("Sum", "Prod", "AddN", "BroadcastTo", "BroadcastGradientArgs", "Maximum", "FloorDiv"),
}

# What `tf.vectorized_map` raises where it cannot map an operation.
_UNMAPPABLE = (ValueError, TypeError, NotImplementedError, LookupError, AssertionError, tf.errors.OpError)


class Stage:
    """One graph, cut.

    Args:
        label: of the model, for refusals.
        fn: the computation.
        places: of the leaves that it is pulled back to.
        specs: of the leaves.
        path: what is recorded.

    Attributes:
        form: of the outputs.
        forward: leaves ↦ (floating outputs, others, state after it, residuals).
        orders: the derivatives, from the first.
        product: the second order in one walk through the forward; None where there is none.
        looks_at_sizes: whether Python code of the model looked at a size that the specs leave open.
    """

    def __init__(
        self,
        label: str,
        fn: Computation,
        places: tuple[int, ...],
        specs: Sequence[tf.TensorSpec],
        path: Path,
    ) -> None:
        self._missing: str | None = None  # the operation without a derivative, in words
        self.label, self.path = label, path
        self._mapped: dict[int, Any] = {}
        try:
            self._trace(fn, places, specs, bool(path))
        except LoopError:
            self._trace(fn, places, specs, False)

    def pull(self, kept: Any, cotangents: Sequence[Any], many: bool) -> Sequence[Any]:
        """Cotangents of the outputs, or of what was recorded → all gradients, None where there are none.

        Args:
            kept: a `Kept` of this stage.
            cotangents: with `many` each with a leading axis.
            many: whether there are many.

        Raises:
            Unsupported: many cannot be mapped.
        """
        depth, residuals = len(kept.cotangents), kept.residuals
        step: Order | Product = self.orders[depth] if depth < len(self.orders) else _there(self.product)
        if depth == 1 and self.product is not None:
            step = self.product
            residuals = [*residuals, *kept.base.residuals, *kept.cotangents[0]]
        if True not in step.alive:
            return [None] * len(step.alive)
        heard = self.heard(depth, cotangents)
        try:  # `naming_what_is_missing` in place, since every backward is here
            gradients = self._many(depth, step, residuals, heard) if many else step.pull(residuals, heard)
        except (tf.errors.NotFoundError, tf.errors.InternalError) as error:
            self._refuse_missing(error)
            raise
        return spread(gradients, step.alive)

    @contextmanager
    def naming_what_is_missing(self) -> Iterator[None]:
        """Run parts in a block; name the operation that has no derivative, if that is what they fail for."""
        try:
            yield
        except (tf.errors.NotFoundError, tf.errors.InternalError) as error:
            self._refuse_missing(error)
            raise

    def _refuse_missing(self, error: tf.errors.OpError) -> None:
        """Name the operation that has no derivative, if that is what the error means.

        Raises:
            HigherOrderError: names it.
        """
        if self._missing is not None:  # TensorFlow itself says less the second time
            raise HigherOrderError(self._missing) from error
        try:
            refuse_missing_derivatives(error, self._whole.graph, self.label)
        except HigherOrderError as refusal:
            self._missing = str(refusal)
            raise

    @property
    def variables(self) -> Sequence[tf.Variable]:
        """Variables that it reads when it runs; a graph lists those, too, that stood for tensors."""
        graph = self._whole.graph
        captured = {id(outer) for outer, _ in graph.captures}
        return [v for v in graph.variables if id(v.handle) in captured]

    @cached_property
    def operations(self) -> frozenset[str]:
        """Kinds of operations of the computation and its derivatives that have a gradient worth a name."""
        return frozenset(op.type for op in self._whole.graph.get_operations()) - _PLAIN

    def record(
        self, depth: int, residuals: Sequence[Any], cotangents: Sequence[Any]
    ) -> tuple[list[Any], Sequence[Any]]:
        """(the gradients that the path names, residuals of their own derivative), by the protocol's convention.

        Args:
            depth: how many gradients were recorded before it.
            residuals: of the part before.
            cotangents: one for each of its outputs.
        """
        order = self.orders[depth]
        found, after = order.recorded(*residuals, *self.heard(depth, cotangents))
        return list(spread(found, tuple(order.alive[j] for j in self.path[depth]))), after

    def heard(self, depth: int, cotangents: Sequence[Any]) -> Sequence[Any]:
        """The cotangents of outputs that there are: a gradient without influence is none."""
        if not depth:
            return cotangents
        before = self.orders[depth - 1]
        return [c for c, j in zip(cotangents, self.path[depth - 1]) if before.alive[j]]

    # -- private ------------------------------------------------------------------------------

    def _trace(
        self, fn: Computation, places: tuple[int, ...], specs: Sequence[tf.TensorSpec], merges: bool
    ) -> None:
        path, orders, products, traced = self.path, list[Order](), list[Product](), list[Any]()

        def joint(*leaves: tf.Tensor) -> None:
            with tf.variable_creator_scope(self._refuse_variable):
                floats, others, form, after = fn(list(leaves))
            sources: list[Any] = [leaves[i] for i in places]
            outputs: Sequence[Any] = floats
            for level in range(0 if not places else 1 if merges and len(path) == 1 else len(path) + 1):
                order = Order(self.label, outputs, sources)
                orders.append(order)
                sources = [*sources, *order.every]
                outputs = [order.gradients[j] for j in path[level]] if level < len(path) else ()
            if merges:
                ends = [g for j in path[0] if (g := orders[0].gradients[j]) is not None]
                points = [leaves[i] for i in places]
                products.append(Product(self.label, points, leaves, floats, ends, orders[0]))
            traced[:] = leaves, floats, others, form, after

        with repaired_derivatives(), looks_at_open_sizes() as looks:
            self._whole = compiled(joint, specs)  # held: functions that it calls are unregistered with it
        self.looks_at_sizes = looks.seen
        leaves, floats, others, form, after = traced
        kinds = refuse_foreign_operations(self._whole.graph, self.label)
        if kinds & callbacks.OPERATIONS:
            self._callbacks = callbacks.functions_of(nodes for nodes, _ in bodies(self._whole.graph))
        self.form: Form = form
        self.orders, self.product = orders, products[0] if products else None
        self._cut(leaves, [floats, others, after])

    def _refuse_variable(self, create: Any, **how: Any) -> Any:
        raise UnknownModelError(
            f"{self.label} makes a tf.Variable when it is called, and a bridge must know all of them before: call it "
            f"once on example inputs before you bridge it, or make its variables in its constructor"
        )

    def _cut(self, leaves: Sequence[tf.Tensor], outputs: list[Sequence[tf.Tensor]]) -> None:
        """Make the parts, from the last to the first: each keeps what the later ones read."""
        product = self.product
        fed = [*leaves, *(c for order in self.orders for c in order.cotangents)]
        graph = TracedGraph(self._whole.graph, [*fed, *(product.placeholders if product else ())])
        late: set[Any] = set()
        by_product: list[list[tf.Tensor]] = [[], []]  # what it reads of the forward, and of the gradient
        if product is not None:
            late = graph.dependents(product.placeholders)
            homeward, by_product[0] = graph.late_part(product.by_leaves, late)
            outward, by_product[1] = graph.late_part([*product.by_cotangents, *product.left], late)
        residuals = by_product[1] if len(self.orders) == 1 else []
        for level, order in reversed(list(enumerate(self.orders))):
            if product is not None and level == 0:
                product.to_boundary = graph.part(
                    outward, [*residuals, *product.tangents], [product.by_cotangents, product.left]
                )
                own = len(residuals)
            late = late | graph.dependents(order.cotangents)
            asked = self.path[level] if level < len(self.path) else ()
            recorded = [g for j in asked if (g := order.gradients[j]) is not None]
            names, read = graph.late_part([*order.present, *recorded, *residuals], late)
            if level < 2:
                read = list({t.name: t for t in (*read, *by_product[level])}.values())
            fed = [*read, *order.cotangents]
            if level < len(self.path):
                order.recorded = graph.part(names, fed, [recorded, residuals])
            if order.present:
                order.last = graph.part(graph.late_part(order.present, late)[0], fed, [order.present])
            order.count, residuals = len(read), read
        if product is not None:
            product.home = graph.part(
                homeward, [*residuals, *product.bars, *product.left_cotangents], [product.by_leaves]
            )
            product.counts = own, len(residuals)
        names = graph.first_part([t for group in (*outputs, residuals) for t in group], late)
        self.forward = graph.part(names, leaves, [*outputs, residuals], first=True)

    def _many(
        self, depth: int, step: Order | Product, residuals: Sequence[Any], cotangents: Sequence[Any]
    ) -> Sequence[Any]:
        mapped = self._mapped.get(depth)
        if mapped is None:
            with tracing:
                mapped = self._mapped[depth] = self._mapped.get(depth) or self._map(step)
        if isinstance(mapped, str):
            raise Unsupported(mapped)
        results: Sequence[Any] = mapped(*residuals, *cotangents)
        return results

    def _map(self, step: Order | Product) -> Any:
        """The step for many cotangents, compiled; or why there is none."""
        try:
            return apart(step.mapped)
        except GradbridgeError:
            raise
        except _UNMAPPABLE as error:
            # What went wrong comes last, after the trace of TensorFlow's own code.
            why = [line.strip() for line in str(error).splitlines() if line.strip()][-1:]
            return f"TensorFlow cannot map the gradient of {self.label}: {' '.join(why)}"


def spread(found: Sequence[Any], alive: Sequence[bool]) -> Sequence[Any]:
    """What is there, with None in between for what is not."""
    if len(found) == len(alive):
        return found
    rest = iter(found)
    return [next(rest) if yes else None for yes in alive]


def _there(product: Product | None) -> Product:
    assert product is not None  # a graph that ends with the first order has it
    return product
