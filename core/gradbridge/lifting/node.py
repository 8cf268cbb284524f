"""A call as a function of arrays, before it runs; and what it recorded once it ran."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import optree

from gradbridge import trees
from gradbridge.borders import INEXACT, host_dtype, is_inexact
from gradbridge.constants import constant_key
from gradbridge.derivatives.points import Linearization
from gradbridge.errors import Unsupported
from gradbridge.execution import batched
from gradbridge.execution.derivation import derivative_of
from gradbridge.execution.evaluation import Call, Evaluation
from gradbridge.execution.shapes import output_spec
from gradbridge.layout import Array
from gradbridge.lifting import plain
from gradbridge.protocol import ArraySpec


@dataclass(eq=False)
class Node:
    """A function of arrays, which hosts lift: a bridge's call, or the gradient of one.

    Two nodes are the same if they are one object: hosts compile for a node, and keep what they compiled.
    Complex numbers are by core's convention (`Traits.takes_complex`).

    Attributes:
        call: that it makes. Of a gradient it may be evaluated anywhere; `evaluate` starts from a `Run` instead.
        constants: {argument of the call: what is not an array of the host}.
        parent: of a gradient: the node that it is the gradient of. Its operands are that one's, then a
            cotangent for each floating output.
        wrt: the operands of the parent whose gradients it returns.
        inexact: for each output of the parent, whether it is floating or complex.
    """

    call: Call
    constants: Mapping[int, Any] = field(default_factory=dict)
    parent: Node | None = None
    wrt: tuple[int, ...] = ()
    inexact: tuple[bool, ...] = ()
    _derivatives: dict[Any, Node] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    @cached_property
    def places(self) -> tuple[int, ...]:
        """Operands → arguments of the call."""
        if self.parent is None:
            return tuple(i for i in range(len(self.call.arguments.vectors)) if i not in self.constants)
        first = len(self.parent.call.arguments.vectors)
        return (*self.parent.places, *(first + i for i, yes in enumerate(self.inexact) if yes))

    @property
    def operands(self) -> int:
        """How many operands it has."""
        return len(self.places)

    def derivative(self, wrt: tuple[int, ...], inexact: tuple[bool, ...]) -> Node:
        """The gradient by some operands: the node ``(*operands, *cotangents of floating outputs) ↦ gradients``.

        Args:
            wrt: the operands.
            inexact: for each output, whether it is floating or complex.

        Raises:
            HigherOrderError: the guest cannot differentiate it.
        """
        with self._lock:
            node = self._derivatives.get((wrt, inexact))
            if node is None:
                call = derivative_of(self.call, tuple(self.places[i] for i in wrt), len(inexact))
                node = self._derivatives[wrt, inexact] = Node(call, self.constants, self, wrt, inexact)
            return node

    def evaluate(
        self,
        operands: Sequence[Array],
        wrt: tuple[int, ...],
        parent: Run | None = None,
        noise: int | None = None,
    ) -> Run:
        """Run it.

        Args:
            operands: of NumPy; not written to, and not kept where they could change.
            wrt: those that it may be pulled back to, or pushed forward from.
            parent: of a gradient: what the node that it is the gradient of recorded at these operands; without it
                that one runs again.
            noise: of a run (`Run.noise`) that is made again: the same numbers are drawn, and no state moves.
        """
        arguments = tuple(self.places[i] for i in wrt)
        if self.parent is None:
            values: list[Any] = [self.constants.get(i) for i in range(len(self.call.arguments.vectors))]
            for place, operand in zip(self.places, operands):
                values[place] = operand
            if noise is None:
                return Run(
                    self,
                    plain.evaluated(self.call, values, arguments) or self.call.evaluate(values, arguments),
                )
            return Run(self, self.call.again(noise).evaluate(values, arguments))
        first = self.parent.operands
        if parent is None:
            parent = self.parent.evaluate(operands[:first], self.recorded(wrt), noise=noise)
        evaluation = parent.at(operands[:first]).evaluation
        derivative: Call = evaluation.differentiated(
            tuple(self.parent.places[i] for i in self.wrt), products=any(i < first for i in wrt)
        )
        values = [*evaluation.values, *parent.every_cotangent(operands[first:])]
        return Run(self, derivative.evaluate(values, arguments))

    def recorded(self, wrt: tuple[int, ...]) -> tuple[int, ...]:
        """Of a gradient: what its parent is to record so that it can be pulled back to these operands."""
        assert self.parent is not None
        return tuple(sorted({*self.wrt, *(i for i in wrt if i < self.parent.operands)}))

    def specs(self, operands: Sequence[ArraySpec]) -> tuple[list[ArraySpec], optree.PyTreeSpec | None]:
        """Shapes and dtypes of the outputs in the host, and their tree (None for one array alone), before it runs.

        Raises:
            Unsupported: they are not known before.
            GuestError, InputError: such operands do not fit the model.
        """
        if self.parent is not None:
            return [operands[i] for i in self.wrt], None
        call = self.call
        values = [self.constants.get(i) for i in range(len(call.arguments.vectors))]
        values = [
            ArraySpec.of(x) if hasattr(x, "shape") else x for x in values
        ]  # an array that lives elsewhere
        for place, operand in zip(self.places, operands):
            values[place] = operand
        told = output_spec(call.adapter, call.settings.outputs, values[call.first_input :], call.spec)
        leaves, structure = ([told], None) if isinstance(told, ArraySpec) else trees.flatten(told)
        return [ArraySpec(s.shape, host_dtype(s.dtype, call.dtype)) for s in leaves], structure


def node_of(call: Call, constants: Mapping[int, Any], lent: bool = False) -> Node:
    """The node of a model's call, the same one for the same call.

    Args:
        call: of a bridge.
        constants: {argument: what is not an array of the host}. One that may change without being another (an object
            with attributes, an array that lives elsewhere) makes a node for each call.
        lent: see `CallSpec.lent`.
    """

    def make() -> Node:
        return Node(replace(call, spec=replace(call.spec, lent=True)) if lent else call, dict(constants))

    keys = tuple((i, constant_key(value)) for i, value in constants.items())
    if any(key is None for _, key in keys):
        return make()
    key = call.adapter, call.spec, call.arguments, call.dtype, keys, lent
    return call.settings.nodes.get(key, make)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Run:
    """What a node recorded when it ran.

    The arrays that it gives are new ones, but perhaps not to be written to, in the dtypes that the host expects: outputs
    in the host's, gradients in those of their operands.

    Attributes:
        node: that ran.
        evaluation: of its call.
    """

    node: Node
    evaluation: Evaluation

    @property
    def outputs(self) -> list[Array]:
        """The output leaves."""
        outputs = self.evaluation.outputs
        if self.node.parent is None:
            return list(outputs)
        return self._typed(outputs, self.node.wrt)

    @property
    def structure(self) -> optree.PyTreeSpec | None:
        """The tree of the outputs; None for one array alone, and for a gradient."""
        return self.evaluation.structure

    @property
    def inexact(self) -> tuple[bool, ...]:
        """For each output, whether it is floating or complex."""
        return tuple([y.dtype.kind in INEXACT for y in self.evaluation.outputs])

    @property
    def noise(self) -> int:
        """Where its random numbers began."""
        return self.evaluation.call.spec.noise

    @property
    def nbytes(self) -> int:
        """Bytes of its arguments and outputs: what it keeps at least."""
        arrays = [*self.evaluation.values, *self.evaluation.outputs]
        return sum(int(getattr(a, "nbytes", 0)) for a in arrays)

    def covers(self, wrt: tuple[int, ...]) -> bool:
        """Whether it was recorded for a pull to these operands."""
        return all(self.node.places[i] in self.evaluation.wrt for i in wrt)

    def at(self, operands: Sequence[Array]) -> Run:
        """The same with the operands as they are handed in again: arrays that it was given may have changed since.

        What it recorded is the guest's own and stays right; a forward mode, or a derivative that is computed anew,
        reads the operands.

        Args:
            operands: holding what they held when it ran.
        """
        values = list(self.evaluation.values)
        for place, operand in zip(self.node.places, operands):
            dtype = values[place].dtype  # a vector of weights crosses as float64, whatever the host's
            values[place] = operand if operand.dtype == dtype else np.ascontiguousarray(operand, dtype)
        return Run(self.node, replace(self.evaluation, values=values))

    def pull(self, cotangents: Sequence[Array], wrt: tuple[int, ...], views: bool = False) -> list[Array]:
        """cᵀJ: one cotangent per floating output → one gradient per operand of `wrt`.

        Args:
            cotangents: of NumPy.
            wrt: operands.
            views: whether gradients may share the guest's memory, since the caller copies them at once.
        """
        arguments = self._arguments(wrt)
        gradients = plain.pulled(self.evaluation, cotangents, arguments)
        if gradients is not None:
            return gradients
        views = views or self.evaluation.adapter.traits.gives_gradients
        every = self.every_cotangent(cotangents)
        return self._typed(self.evaluation.pull(every, self._arguments(wrt), (), views), wrt)

    def push(self, tangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """J t: one tangent per operand of `wrt` → one per floating output.

        Raises:
            HigherOrderError: the guest has no forward mode, and cannot differentiate its gradient.
        """
        return self._moved(self._floating(self._linearization(wrt).push(tangents)))

    def pull_many(self, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """`pull` of cotangents with one leading axis, in one computation where the guest can."""
        size = len(cotangents[0])
        if not size:
            values = self.evaluation.values
            return [np.zeros((0, *values[i].shape), values[i].dtype) for i in self._arguments(wrt)]
        try:
            every = self.every_cotangent(cotangents, (size,))
            gradients = batched.pull_many(self.evaluation, every, self._arguments(wrt), "batched VJP")
            return self._typed(gradients, wrt)
        except Unsupported:
            return _stacked([self.pull([c[i] for c in cotangents], wrt) for i in range(size)])

    def push_many(self, tangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """`push` of tangents with one leading axis, in one computation where the guest can."""
        size = len(tangents[0])
        if not size:
            return self._moved(
                [np.zeros((0, *y.shape), y.dtype) for y in self.evaluation.outputs if is_inexact(y)]
            )
        linearization = self._linearization(wrt)
        try:
            return self._moved(linearization.push_many(tangents))
        except Unsupported:
            rows = [linearization.push([t[i] for t in tangents]) for i in range(size)]
            return self._moved(_stacked(list(map(self._floating, rows))))

    def every_cotangent(self, floating: Sequence[Array], lead: tuple[int, ...] = ()) -> list[Array]:
        """Cotangents of the floating outputs → of all; those of integers are zeros."""
        rest = iter(floating)
        return [
            next(rest) if yes else np.zeros((*lead, *y.shape), self.evaluation.dtype)
            for y, yes in zip(self.evaluation.outputs, self.inexact)
        ]

    def _linearization(self, wrt: tuple[int, ...]) -> Linearization:
        """From what was recorded: no dearer than another forward, and one that is not needed (law 8)."""
        linearization = Linearization(self.evaluation, self._arguments(wrt))
        if wrt and self.covers(wrt):
            linearization.start_from_record()
        return linearization

    def _floating(self, tangents: Sequence[Array]) -> list[Array]:
        """Those of the floating outputs, of the tangents of all."""
        return [t for t, yes in zip(tangents, self.inexact) if yes]

    def _arguments(self, wrt: tuple[int, ...]) -> tuple[int, ...]:
        return tuple([self.node.places[i] for i in wrt])

    def _typed(self, gradients: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """Gradients in the dtypes of their operands."""
        dtypes = [self._dtype(i) for i in self._arguments(wrt)]
        return [g if g.dtype == d else g.astype(d) for g, d in zip(gradients, dtypes)]

    def _dtype(self, argument: int) -> np.dtype[Any]:
        """Of an argument as the host has it: a vector of weights crosses as float64."""
        call = self.evaluation.call
        if call.arguments.vectors[argument]:
            return call.dtype
        dtype: np.dtype[Any] = self.evaluation.values[argument].dtype
        return dtype

    def _moved(self, tangents: Sequence[Array]) -> list[Array]:
        """Tangents of floating outputs in the dtypes of these."""
        if self.node.parent is None:
            dtypes = [y.dtype for y in self.evaluation.outputs if is_inexact(y)]
        else:
            dtypes = [self._dtype(i) for i in self._of_parent]
        return [t if t.dtype == d else t.astype(d) for t, d in zip(tangents, dtypes)]

    @property
    def _of_parent(self) -> tuple[int, ...]:
        """Of a gradient: the arguments that its outputs belong to, which are its first ones, too."""
        assert self.node.parent is not None
        return tuple([self.node.parent.places[i] for i in self.node.wrt])


def _stacked(rows: Sequence[Sequence[Array]]) -> list[Array]:
    return [np.stack(column) for column in zip(*rows)]
