"""Cutting one traced graph into parts, each of which reads only tensors of the parts before.

A computation and its derivatives are traced together, as one graph from (leaves, cotangents) to
(outputs, gradients). What does not depend on the cotangents is the forward; its tensors that the
gradient reads are the residuals. So a value and gradient costs two calls of compiled functions, and
only what is wanted is computed. Holding an eager GradientTape over a compiled function instead costs
240 µs more per call, and computes the gradients of all inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import tensorflow as tf

from gradbridge_tensorflow.recording import is_pushed
from gradbridge_tensorflow.replays import replayed

#: Groups of tensors.
Groups = Sequence[Sequence[tf.Tensor]]


class TracedGraph:
    """A graph to be cut, as it stands.

    Args:
        graph: the function graph that was traced.
        fed: its placeholders that parts are fed, what it captures apart.
    """

    def __init__(self, graph: Any, fed: Sequence[tf.Tensor]) -> None:
        self._graph = graph
        self._readers: dict[Any, list[Any]] = {}
        for op in graph.get_operations():
            for before in (*(t.op for t in op.inputs), *op.control_inputs):
                self._readers.setdefault(before, []).append(op)
        bound = self.dependents([*fed, *(inner for _, inner in graph.captures)])
        # What depends on nothing that is fed, constants mostly, is to be had in every part.
        self._free = {op for op in graph.get_operations() if op not in bound and not op.op_def.is_stateful}

    def dependents(self, tensors: Iterable[tf.Tensor]) -> set[Any]:
        """Operations that depend on some of the tensors, theirs included."""
        reached: set[Any] = set()
        todo = [t.op for t in tensors]
        while todo:
            op = todo.pop()
            if op not in reached:
                reached.add(op)
                todo += self._readers.get(op, ())
        return reached

    def late_part(self, targets: Iterable[tf.Tensor], late: set[Any]) -> tuple[set[str], list[tf.Tensor]]:
        """What a part computes, and what it reads of those before.

        Args:
            targets: what it is to give.
            late: the operations that no earlier part can compute.

        Returns:
            (names of its operations, tensors of earlier parts).
        """
        names: set[str] = set()
        read: dict[str, tf.Tensor] = {}
        todo = list(targets)
        while todo:
            tensor = todo.pop()
            op = tensor.op
            if op not in late and not (op in self._free and all(t.op in self._free for t in op.inputs)):
                read[tensor.name] = tensor
            elif op.name not in names:
                names.add(op.name)
                todo += op.inputs
        return names, list(read.values())

    def first_part(self, targets: Iterable[tf.Tensor], late: set[Any]) -> set[str]:
        """Names of the operations that some tensors need; with the assertions and prints that can run then."""
        names: set[str] = set()
        todo = [t.op for t in targets]
        todo += [op for op in self._graph.control_outputs if op not in late]
        while todo:
            op = todo.pop()
            if op.name not in names:
                names.add(op.name)
                todo += [t.op for t in op.inputs] + list(op.control_inputs)
        return names

    @cached_property
    def _definition(self) -> Any:
        return self._graph.as_graph_def()

    def part(
        self, names: set[str], inputs: Sequence[tf.Tensor], outputs: Groups, first: bool = False
    ) -> Part:
        """A part as a compiled function.

        Args:
            names: of its operations.
            inputs: tensors of the graph, which it is called with.
            outputs: groups of tensors, which it returns as lists.
            first: whether it reads what the graph captures.
        """
        definition = self._subset(names)
        consumed = {edge if ":" in edge else f"{edge}:0" for node in definition.node for edge in node.input}
        wanted = [t.name for group in outputs for t in group]
        captures = {inner.name: outer for outer, inner in self._graph.captures} if first else {}

        def run(*flat: tf.Tensor) -> list[tf.Tensor]:
            fed = dict(zip([t.name for t in inputs], flat), **captures)
            inside = iter(
                tf.graph_util.import_graph_def(
                    definition,
                    # Identity, because what is closed over may be an eager tensor, and this captures it.
                    input_map={name: tf.identity(t) for name, t in fed.items() if name in consumed},
                    return_elements=[name for name in wanted if name not in fed],
                    name="",
                )
                or ()
            )
            return [tf.identity(fed[name]) if name in fed else next(inside) for name in wanted]

        return Part(compiled(run, specs_of(inputs)), [len(group) for group in outputs])

    def _subset(self, names: set[str]) -> Any:
        """The graph definition with some of the nodes.

        Control edges from the others are dropped, and those from placeholders: these are fed, and what
        waits for one (the derivative of a sine waits for its cotangent) would wait for the unfed one.
        """
        waited = names - {node.name for node in self._definition.node if node.op == "Placeholder"}
        part = tf.compat.v1.GraphDef()
        part.versions.CopyFrom(self._definition.versions)
        part.library.CopyFrom(self._definition.library)
        for node in self._definition.node:
            if node.name in names:
                copy = part.node.add()
                copy.CopyFrom(node)
                edges = [edge for edge in node.input if not edge.startswith("^") or edge[1:] in waited]
                del copy.input[:]
                copy.input.extend(edges)
                copy.attr.pop("_class", None)  # colocation with nodes that may be in another part
        return part


class Part:
    """A compiled part of a graph: tensors ↦ groups of tensors.

    TensorFlow's own call binds every tensor by name and packs the results: that adds 160 µs to the
    480 µs of a tiny model's value and gradient. What comes is known here, so it is left out.

    Args:
        function: a concrete one, with a flat list of results.
        sizes: of the groups.
    """

    def __init__(self, function: Any, sizes: Sequence[int]) -> None:
        self.function = function  # held: what it calls is unregistered with it
        self._call = function.inference_fn.call_flat
        self._captures = bool(function.captured_inputs)
        self._groups = [slice(a, b) for a, b in itertools.pairwise([0, *itertools.accumulate(sizes)])]

    def __call__(self, *tensors: tf.Tensor) -> list[list[tf.Tensor]]:
        if self._captures:
            tensors = (*tensors, *self.function.captured_inputs)
        results = self._call(*tensors) or ()  # None where nothing comes out
        return [results[group] for group in self._groups]

    def within(self, *tensors: tf.Tensor) -> list[list[tf.Tensor]]:
        """The same as a part of the program that calls, whose tapes and graph are told of it."""
        if not tf.executing_eagerly() and any(map(is_pushed, tensors)):
            results = replayed(self.function, tensors)
        else:
            results = self.function(*tensors) or ()
        return [results[group] for group in self._groups]

    def specs(self, count: int) -> list[tf.TensorSpec]:
        """Of the first of what it is called with."""
        return specs_of(self.function.inputs[:count])


def specs_of(tensors: Iterable[tf.Tensor]) -> list[tf.TensorSpec]:
    """Their shapes and dtypes."""
    return [tf.TensorSpec(t.shape, t.dtype) for t in tensors]


def compiled(function: Callable[..., Any], specs: Sequence[tf.TensorSpec]) -> Any:
    """A function of tensors, traced once for some specs."""
    return tf.function(function, input_signature=specs, autograph=False).get_concrete_function()
