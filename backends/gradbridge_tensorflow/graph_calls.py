"""Calls lifted into a graph, closed under differentiation: `apply` is a node, and its gradient is `pull`.

As `gradbridge_tensorflow.lifted` has it eagerly; here what a run recorded travels by its number. No graph tells
whether a gradient will be differentiated in turn: one that a tape is seen to follow is recorded at once, and what
is differentiated later starts from the record of the forward, at the price of one more backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import optree
import tensorflow as tf
from tensorflow.python.ops.parallel_for import pfor

from gradbridge.errors import HigherOrderError, OutputError
from gradbridge.lifting import Node, Run
from gradbridge_tensorflow import records
from gradbridge_tensorflow.graph_operations import Operation, local, movable
from gradbridge_tensorflow.graph_specs import output_specs, refuse_where_it_cannot_run
from gradbridge_tensorflow.recording import conjugated, is_recorded
from gradbridge_tensorflow.tensors import is_inexact


def apply(
    node: Node, operands: Sequence[Any], recorded: Any = None, followed: Sequence[int] = ()
) -> tuple[list[Any], optree.PyTreeSpec | None]:
    """A node as an operation of the graph that is traced.

    Args:
        node: to run.
        operands: tensors, eager ones or symbolic.
        recorded: of a gradient: what the node that it is the gradient of recorded at these operands, a `Run` or the
            record of one.
        followed: operands that are followed, whatever tapes tell.

    Returns:
        (the output leaves, their structure).

    Raises:
        HostError: it is not known what comes out, or it cannot run there.
    """
    refuse_where_it_cannot_run(node.call)
    operands = local(operands)
    specs, structure = output_specs(node, operands)
    call = Applied(node, movable(operands), specs, structure, recorded)
    *outputs, _ = call.placed(operands, recorded, specs, followed)
    return outputs, structure


def pull(
    node: Node,
    wrt: tuple[int, ...],
    inexact: tuple[bool, ...],
    operands: Sequence[Any],
    cotangents: Sequence[Any],
    recorded: Any,
    *,
    of_parent: bool = False,
    is_pushed: bool = False,
) -> list[Any]:
    """A node's gradient as an operation of the graph that is traced.

    Args:
        node: that is differentiated.
        wrt: the operands whose gradients are asked for.
        inexact: for each of its outputs, whether it is floating or complex.
        operands: tensors, that it ran at.
        cotangents: one for each floating output, by TensorFlow's convention of complex numbers; so are the gradients.
        recorded: what it recorded, a `Run` or the record of one.
        of_parent: whether that is of the node that it is the gradient of.
        is_pushed: whether an accumulator follows the cotangents.
    """
    refuse_where_it_cannot_run(node.call)
    bars = local([conjugated(tf.convert_to_tensor(c)) for c in cotangents])
    operands = local(operands)
    every = [*operands, *bars]
    if not of_parent and (is_pushed or any(map(is_recorded, every))):
        followed = range(len(operands), len(every)) if is_pushed else ()
        with suppress(HigherOrderError):  # a matter of whoever asks for the gradient of this one
            gradients, _ = apply(node.derivative(wrt, inexact), every, recorded, followed)
            return list(map(conjugated, gradients))
    specs = [tf.TensorSpec(operands[i].shape, operands[i].dtype) for i in wrt]
    *gradients, _ = Pulled(node, wrt, inexact, recorded, of_parent).placed(every, recorded, specs)
    return list(map(conjugated, gradients))


class Applied(Operation):
    """A node: operands ↦ outputs.

    Args:
        node: to run.
        wrt: operands that it may be pulled back to.
        specs, structure: of the outputs.
        recorded: of a gradient: a `Run` of what that is the gradient of, held then.
    """

    def __init__(
        self, node: Node, wrt: tuple[int, ...], specs: Sequence[tf.TensorSpec], structure: Any, recorded: Any
    ) -> None:
        super().__init__()
        self.node, self._wrt, self._specs, self._structure = node, wrt, specs, structure
        self._inexact = tuple([is_inexact(s.dtype) for s in specs])
        self._held = recorded if isinstance(recorded, Run) else None
        self.is_stateful = node.parent is None and node.call.settings.mode == "train"

    @property
    def floating(self) -> Sequence[int]:
        return [i for i, yes in enumerate(self._inexact) if yes]

    def computed(self, arrays: Sequence[Any], recorded: Any) -> tuple[Sequence[Any], Any]:
        node, noise = self.node, None
        parent = self._held
        if node.parent is not None and parent is None:
            parent, noise = records.get(recorded), int(recorded[1])
        try:
            run = node.evaluate(arrays, self._wrt, parent, noise)
        except HigherOrderError:
            if node.parent is None:
                raise
            # A matter of whoever asks for the gradient of this one: with no record that is tried again, and refused.
            first = node.parent.operands
            parent = parent or node.parent.evaluate(arrays[:first], node.wrt, noise=noise)
            return parent.pull(arrays[first:], node.wrt), None
        outputs = run.outputs
        self._check(run, outputs)
        return outputs, records.put(run) if self._wrt else None

    def gradients(
        self,
        inputs: Sequence[Any],
        records: tuple[Any, Any],
        cotangents: Sequence[Any],
        wanted: tuple[int, ...],
        is_pushed: bool,
    ) -> Sequence[Any]:
        return pull(self.node, wanted, self._inexact, inputs, cotangents, records[1], is_pushed=is_pushed)

    def vectorized(self, loop: Any) -> list[Any]:
        raise pfor.ConversionNotImplementedError("a guest takes one call at a time")

    def _check(self, run: Run, outputs: Sequence[Any]) -> None:
        """What comes out is what the graph was traced for: it goes on by that, whatever comes."""
        fit = [
            s.dtype == y.dtype and s.shape.is_compatible_with(y.shape) for s, y in zip(self._specs, outputs)
        ]
        if len(outputs) == len(self._specs) and run.structure == self._structure and all(fit):
            return
        said = ", ".join(f"{s.dtype.name} {s.shape}" for s in self._specs)
        came = ", ".join(f"{y.dtype} {y.shape}" for y in outputs)
        raise OutputError(
            f"{self.node.call.adapter.label} returned {came} in a tf.function that was traced for {said}"
            f"{'' if run.structure == self._structure else ', in another tree'}: what outputs= says, or the sizes that it was "
            f"tried with, does not hold for this call; say outputs= as a function of the inputs"
        )


class Pulled(Operation):
    """A node's gradient: (*operands, *cotangents) ↦ gradients.

    Args:
        node, wrt, inexact, recorded, of_parent: see `pull`; a `Run` is held.
    """

    def __init__(
        self, node: Node, wrt: tuple[int, ...], inexact: tuple[bool, ...], recorded: Any, of_parent: bool
    ) -> None:
        super().__init__()
        self.node, self.wrt, self.inexact, self.of_parent = node, wrt, inexact, of_parent
        self.held = recorded if isinstance(recorded, Run) else None

    @property
    def floating(self) -> Sequence[int]:
        return range(len(self.wrt))

    def computed(self, arrays: Sequence[Any], recorded: Any) -> tuple[Sequence[Any], Any]:
        operands, cotangents = arrays[: self.node.operands], arrays[self.node.operands :]
        run, recorded = self._run(operands, recorded)
        return self._pulled(run, cotangents), recorded

    def gradients(
        self,
        inputs: Sequence[Any],
        records: tuple[Any, Any],
        cotangents: Sequence[Any],
        wanted: tuple[int, ...],
        is_pushed: bool,
    ) -> Sequence[Any]:
        return self._differentiated(inputs, records, cotangents, wanted, is_pushed)

    def vectorized(self, loop: Any) -> list[Any]:
        count, record = self.node.operands, loop.num_inputs - 2
        if any(loop.input(i).is_stacked for i in (*range(count), record)):
            raise pfor.ConversionNotImplementedError("the rows are of different calls")
        loop.stack_inputs(range(count, record))
        operands, recorded = [loop.input(i).t for i in range(count)], loop.input(record).t
        bars = [loop.input(i).t for i in range(count, record)]
        many = PulledMany(self.node, self.wrt, self.inexact, self.held, self.of_parent)
        specs = [
            tf.TensorSpec(tf.TensorShape([None]).concatenate(operands[i].shape), operands[i].dtype)
            for i in self.wrt
        ]
        *gradients, recorded = many.placed([*operands, *bars], recorded, specs)
        return [*(pfor.wrap(g, True) for g in gradients), pfor.wrap(recorded, False)]

    def _run(self, operands: Sequence[Any], recorded: Any) -> tuple[Run, Any]:
        """(What is pulled back, its record where it is a new one)."""
        run, noise = self.held or records.get(recorded), int(recorded[1])
        if self.of_parent:
            run = self.node.evaluate(operands, self.wrt, run, noise)
            return run, records.put(run)
        if run is None or not run.covers(self.wrt):
            run = self.node.evaluate(operands, self.wrt, None, noise)
        return run, None

    def _pulled(self, run: Run, cotangents: Sequence[Any]) -> Sequence[Any]:
        return run.pull(cotangents, self.wrt)

    def _differentiated(
        self,
        inputs: Sequence[Any],
        records: tuple[Any, Any],
        cotangents: Sequence[Any],
        wanted: tuple[int, ...],
        is_pushed: bool = False,
    ) -> list[Any]:
        derivative = self.node.derivative(self.wrt, self.inexact)
        recorded = records[1] if self.of_parent else self.held or records[0]
        return pull(
            derivative,
            wanted,
            (True,) * len(self.wrt),
            inputs,
            cotangents,
            recorded,
            of_parent=True,
            is_pushed=is_pushed,
        )


class PulledMany(Pulled):
    """A node's gradient for many cotangents, which have one leading axis, in one computation of the guest."""

    def _pulled(self, run: Run, cotangents: Sequence[Any]) -> Sequence[Any]:
        return run.pull_many(cotangents, self.wrt)

    def gradients(
        self,
        inputs: Sequence[Any],
        records: tuple[Any, Any],
        cotangents: Sequence[Any],
        wanted: tuple[int, ...],
        is_pushed: bool,
    ) -> Sequence[Any]:
        count = self.node.operands
        operands, bars = inputs[:count], inputs[count:]

        def of_row(row: Any) -> list[Any]:
            return self._differentiated([*operands, *row[0]], records, row[1], wanted)

        dtypes = [inputs[i].dtype for i in wanted]
        gradients = tf.map_fn(of_row, (list(bars), list(cotangents)), fn_output_signature=dtypes)
        return [tf.reduce_sum(g, 0) if i < count else g for i, g in zip(wanted, gradients)]

    def vectorized(self, loop: Any) -> list[Any]:
        raise pfor.ConversionNotImplementedError("a guest takes many cotangents along one axis")
