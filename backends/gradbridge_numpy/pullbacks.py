"""Derivatives of any order as adapters: what is asked for, as a plan over forms, and who computes it.

A plan says which multilinear forms (see `gradbridge_numpy.forms`) make up the outputs, and which
arrays of the call fill them. Pulling a plan back, or pushing it forward, gives another plan; it is
a `Point` that knows how to compute a form: from written rules, from a numeric Jacobian, or by hand.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbridge.protocol import Adapter, Array, Signature
from gradbridge_numpy.forms import OUTPUTS

#: The leaves of one place of a form; None for one that does not move.
Leaves = list[Array | None]


class Point(ABC):
    """A function at concrete arguments, and its derivatives there as forms.

    Attributes:
        answer: the leaves of what the function returned.
    """

    answer: list[Any]

    @abstractmethod
    def form(
        self, places: tuple[int, ...], free: int, fills: Sequence[Leaves | None], wanted: Sequence[int]
    ) -> list[Array] | None:
        """Compute a form.

        Args:
            places: OUTPUTS, then the argument of each direction.
            free: index of the place that is left free.
            fills: what is put in the other places.
            wanted: which leaves of the free place.

        Returns:
            An array for each of `wanted`, new; None where all are zero.

        Raises:
            HigherOrderError, MissingVJPError: it is not known.
        """

    @abstractmethod
    def require(self, places: tuple[int, ...], free: int) -> None:
        """Raise what `form` would, without computing anything."""


class Root(Adapter):
    """An adapter whose derivatives are forms."""

    is_forward_mode_checked = False  # rules are the user's word, and one may be made of many of the other

    @abstractmethod
    def point(self, loaded: Any, inputs: Sequence[Any], signature: Signature) -> Point:
        """Evaluate, and keep copies of what that took."""

    @abstractmethod
    def places(self, signature: Signature) -> dict[int, tuple[int, ...]]:
        """{argument: positions of its leaves}."""


@dataclass(frozen=True)
class Term:
    """One form and the slots that fill it: a slot for each place, None for the free one."""

    places: tuple[int, ...]
    slots: tuple[int | None, ...]

    @property
    def free(self) -> int:
        """Index of the free place."""
        return self.slots.index(None)

    def pulled(self, slot: int, argument: int | None, cotangent: int) -> Term | None:
        """Its VJP with respect to a slot, which is an argument or fills a place; None where it has no part."""
        filled = tuple(cotangent if s is None else s for s in self.slots)
        if argument is not None:
            return Term((*self.places, argument), (*filled, None))
        if slot not in self.slots:
            return None
        return Term(self.places, tuple(None if s == slot else s for s in filled))

    def pushed(self, slot: int, argument: int | None, tangent: int) -> Term | None:
        """Its JVP, likewise."""
        if argument is not None:
            return Term((*self.places, argument), (*self.slots, tangent))
        if slot not in self.slots:
            return None
        return Term(self.places, tuple(tangent if s == slot else s for s in self.slots))


@dataclass(frozen=True)
class Plan:
    """What an adapter computes from its flat arguments.

    Attributes:
        slots: the place that each belongs to, and for each leaf its position in the call; None for
            a leaf that is zero there.
        arguments: {slot: argument} of those that are arguments of the function itself.
        groups: (place, terms): outputs of one place, sums of the terms.
        outputs: (group, leaf of its place) of each output.
        count: how many positions there are.
    """

    slots: tuple[tuple[int, tuple[int | None, ...]], ...]
    arguments: Mapping[int, int]
    groups: tuple[tuple[int, tuple[Term, ...]], ...]
    outputs: tuple[tuple[int, int], ...]
    count: int

    @classmethod
    def value(cls, places: Mapping[int, tuple[int, ...]], inputs: int, outputs: int) -> Plan:
        """The function itself: the form of order 0."""
        slots = tuple((place, tuple(positions)) for place, positions in places.items())
        group = (OUTPUTS, (Term((OUTPUTS,), (None,)),))
        return cls(
            slots,
            dict(enumerate(places)),
            (group,),
            tuple((0, i) for i in range(outputs)),
            inputs + 1,
        )

    def pulled(self, wrt: Sequence[int]) -> Plan:
        """The VJP: a cotangent for each output goes in, a gradient for each position comes out."""
        slots, cotangents = list(self.slots), []
        for index, (place, _) in enumerate(self.groups):
            where = {leaf: self.count + i for i, (g, leaf) in enumerate(self.outputs) if g == index}
            slots.append((place, self._row(place, where)))
            cotangents.append(len(slots) - 1)
        groups: dict[int, tuple[int, tuple[Term, ...]]] = {}
        found = [self._slot_of(position) for position in wrt]
        for slot in dict.fromkeys(slot for slot, _ in found):
            terms = [
                term.pulled(slot, self.arguments.get(slot), cotangent)
                for (_, terms), cotangent in zip(self.groups, cotangents)
                for term in terms
            ]
            groups[slot] = (slots[slot][0], tuple(t for t in terms if t is not None))
        order = list(groups)
        outputs = tuple((order.index(slot), leaf) for slot, leaf in found)
        count = self.count + len(self.outputs)
        return Plan(tuple(slots), self.arguments, tuple(groups.values()), outputs, count)

    def pushed(self, wrt: Sequence[int]) -> Plan:
        """The JVP: a tangent for each position goes in, one for each output comes out."""
        slots, tangents = list(self.slots), {}
        found = [self._slot_of(position) for position in wrt]
        for slot in dict.fromkeys(slot for slot, _ in found):
            place, positions = self.slots[slot]
            where = {leaf: self.count + i for i, (s, leaf) in enumerate(found) if s == slot}
            slots.append((place, tuple(where.get(leaf) for leaf in range(len(positions)))))
            tangents[slot] = len(slots) - 1
        groups = []
        for place, terms in self.groups:
            moved = [
                term.pushed(slot, self.arguments.get(slot), tangent)
                for slot, tangent in tangents.items()
                for term in terms
            ]
            groups.append((place, tuple(t for t in moved if t is not None)))
        return Plan(tuple(slots), self.arguments, tuple(groups), self.outputs, self.count + len(wrt))

    def require(self, point: Point) -> None:
        """Raise if the point cannot compute one of the forms."""
        for _, terms in self.groups:
            for term in terms:
                point.require(term.places, term.free)

    def compute(self, point: Point, arguments: Sequence[Any]) -> list[Array]:
        """The outputs, new arrays.

        Args:
            point: where.
            arguments: the params and all inputs of the call.
        """
        values = [[None if p is None else arguments[p] for p in positions] for _, positions in self.slots]
        found: list[Array | None] = [None] * len(self.outputs)
        for index, (_, terms) in enumerate(self.groups):
            mine = [i for i, (group, _) in enumerate(self.outputs) if group == index]
            wanted = [self.outputs[i][1] for i in mine]
            for term in terms:
                if any(s is not None and all(v is None for v in values[s]) for s in term.slots):
                    continue  # linear in what does not move
                fills = [None if s is None else values[s] for s in term.slots]
                for i, part in zip(mine, point.form(term.places, term.free, fills, wanted) or ()):
                    before = found[i]
                    found[i] = part if before is None else before + part
        return [
            self._zeros(point, output, arguments) if array is None else np.asarray(array)
            for array, output in zip(found, self.outputs)
        ]

    # -- private ------------------------------------------------------------------------------

    def _slot_of(self, position: int) -> tuple[int, int]:
        for slot, (_, positions) in enumerate(self.slots):
            if position in positions:
                return slot, positions.index(position)
        raise IndexError(f"there is no position {position} among {self.count}")

    def _row(self, place: int, where: Mapping[int, int]) -> tuple[int | None, ...]:
        """The positions of all leaves of a place, of which some are known."""
        size = next((len(positions) for p, positions in self.slots if p == place), len(self.outputs))
        return tuple(where.get(leaf) for leaf in range(size))

    def _zeros(self, point: Point, output: tuple[int, int], arguments: Sequence[Any]) -> Array:
        place, leaf = self.groups[output[0]][0], output[1]
        if place == OUTPUTS:
            like = np.asarray(point.answer[leaf])
        else:
            positions = next(positions for p, positions in self.slots if p == place)
            like = np.asarray(arguments[positions[leaf] or 0])
        return np.zeros(like.shape, np.complex128 if like.dtype.kind == "c" else np.float64)


@functools.lru_cache(maxsize=1024)
def planned(
    places: tuple[tuple[int, tuple[int, ...]], ...],
    inputs: int,
    outputs: int,
    wrts: tuple[tuple[int, ...], ...],
) -> Plan:
    """The plan of the pullback of the pullback …; asked on every call, so it is remembered.

    Args:
        places: (argument, positions of its leaves) of the function.
        inputs, outputs: how many leaves it has of each.
        wrts: the positions of each pullback.
    """
    if wrts:
        return planned(places, inputs, outputs, wrts[:-1]).pulled(wrts[-1])
    return Plan.value(dict(places), inputs, outputs)


class PullbackAdapter(Adapter):
    """A derivative of a root, as an adapter: ``(params, *inputs, *cotangents …) ↦ gradients``.

    Args:
        root: the adapter that is differentiated.
        signature: of its call.
        wrts: the positions of each pullback, one on the other.
    """

    def __init__(self, root: Root, signature: Signature, wrts: tuple[tuple[int, ...], ...]) -> None:
        self.label = "gradient of " * len(wrts) + root.label
        self.is_forward_mode_checked = root.is_forward_mode_checked
        self.layout, self.gradient_note = root.layout, root.gradient_note
        self.takes_complex = root.takes_complex
        self._root, self._signature, self._wrts = root, signature, wrts

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self._root.params()

    def model(self, params: Array) -> Any:
        """See `Adapter.model`: the function that this is a derivative of."""
        return self._root.model(params)

    def update(self, params: Array) -> Any:
        """See `Adapter.update`."""
        # The vector itself is an argument of the forms.
        return params.copy(), self._root.update(params)

    def forward(
        self, loaded: Any, inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """See `Adapter.forward`.

        Raises:
            HigherOrderError: nothing is known of the derivative with respect to one of `wrt`.
        """
        point, arguments = self._at(loaded, inputs)
        outputs = tuple(self._plan(len(inputs)).compute(point, arguments))
        if not wrt:
            return outputs, None
        self._plan(len(inputs), wrt).require(point)
        return outputs, (point, arguments)

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """See `Adapter.backward`."""
        point, arguments = residuals
        plan = self._plan(len(arguments) - 1, wrt)
        return plan.compute(point, [*arguments, *cotangents])

    def pushforward(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        """See `Adapter.pushforward`.

        Raises:
            HigherOrderError: as for `forward`.
        """
        point, arguments = self._at(loaded, inputs)
        return self._plan(len(inputs)).pushed(wrt).compute(point, [*arguments, *tangents])

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> Adapter:
        """See `Adapter.pullback`. A derivative that is not known is refused where it is asked for."""
        return PullbackAdapter(self._root, self._signature, (*self._wrts, wrt))

    def _at(self, loaded: Any, inputs: Sequence[Any]) -> tuple[Point, list[Any]]:
        params, inner = loaded
        count = self._signature.count
        # Copies: the caller may change its arrays before it pulls back.
        point = self._root.point(inner, inputs[:count], self._signature)
        return point, [params, *inputs[:count], *(np.array(x) for x in inputs[count:])]

    def _plan(self, inputs: int, *more: tuple[int, ...]) -> Plan:
        primals = self._signature.count
        outputs = inputs - primals - sum(map(len, self._wrts[:-1]))
        places = tuple(self._root.places(self._signature).items())
        return planned(places, primals, outputs, (*self._wrts, *more))
