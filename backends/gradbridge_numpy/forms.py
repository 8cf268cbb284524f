"""Derivatives of any order as multilinear forms: which of them a host asks for, and what gives one.

A derivative of order k of a function f at x is one form, in a cotangent v of the outputs and a
direction for each argument that was differentiated::

    M(v; t₁ … tₖ) = ⟨v, Dᵏf(x)[t₁ … tₖ]⟩

Whatever a host asks for is a sum of such forms with one place left free. For take the scalar
S = ⟨v, f(x)⟩ = M(v) as a function of x and v. Its gradient by x, M(v; ·), is the pullback of f. The
scalar of that pullback, ⟨u, ∂S/∂x⟩ = M(v; u), is the derivative of S along u, and so on for every
order: pulling back, or pushing forward, takes the derivative of the scalar along some directions
and leaves one more place free. So there is one operation, `Potential.along`, and one way to compute,
`Potential.gradients`; a `Jet` says what the forms are.

Source:
    H. A. Schwarz (1873); W. Rudin (1976), Principles of Mathematical Analysis, theorem 9.41, for
    the symmetry in the directions. J. Townsend (2017), A new trick for calculating Jacobian-vector
    products, for the derivative by v.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradbridge.layout import Array

#: The place of the outputs, among those of the arguments 0, 1, 2 …
OUTPUTS = -1

#: The leaves that fill a place of a form; None for one that does not move.
Leaves = list[Array | None]

#: (argument, how many leaves it has) of each argument, in the order of the leaves of a call.
Arguments = tuple[tuple[int, int], ...]


class Jet(ABC):
    """A function at a point: its value, and its derivatives there as forms.

    Attributes:
        tree: what the function returned.
        answer: its leaves.
        arguments: of the function; what is differentiated together may be one of them.
    """

    tree: Any
    answer: list[Any]
    arguments: Arguments

    @abstractmethod
    def form(
        self, places: tuple[int, ...], free: int, fills: Sequence[Leaves | None], wanted: Sequence[int]
    ) -> list[Array] | None:
        """Compute a form.

        Args:
            places: OUTPUTS, then the argument of each direction.
            free: index of the place that is left free.
            fills: what is put in each place; None in the free one.
            wanted: which leaves of the free place.

        Returns:
            An array for each of `wanted`, new; None where all are zero.

        Raises:
            HigherOrderError, MissingVJPError: it is not known.
        """

    @abstractmethod
    def require(self, places: tuple[int, ...], free: int) -> None:
        """Raise what `form` would, without computing anything."""

    @abstractmethod
    def zeros(self, place: int, leaf: int) -> Array:
        """Zeros like a leaf of an argument or of the outputs, for a derivative in it."""


class Slot(NamedTuple):
    """What fills a place of forms, or is an argument: for each leaf its position in a call, None for zero."""

    place: int
    positions: tuple[int | None, ...]


@dataclass(frozen=True)
class Term:
    """One form, and which slot fills each of its places; None for the free one."""

    places: tuple[int, ...]
    slots: tuple[int | None, ...]


@dataclass(frozen=True)
class Potential:
    """A scalar, as a sum of forms with every place filled; what a host asks for is its gradient.

    Attributes:
        slots: the arguments first, then what fills the forms.
        arguments: how many of them are arguments.
        terms: the forms.
        count: how many positions there are.
    """

    slots: tuple[Slot, ...]
    arguments: int
    terms: tuple[Term, ...]
    count: int

    @classmethod
    def of(cls, arguments: Arguments, outputs: int) -> Potential:
        """⟨v, f⟩, with the cotangents of the outputs at the positions behind those of the arguments."""
        slots, count = [], 0
        for place, size in (*arguments, (OUTPUTS, outputs)):
            slots.append(Slot(place, tuple(range(count, count + size))))
            count += size
        return cls(tuple(slots), len(arguments), (Term((OUTPUTS,), (len(arguments),)),), count)

    def along(self, wrt: Sequence[int]) -> Potential:
        """Its derivative along a direction of some positions, which comes at as many further positions."""
        slots, terms = list(self.slots), []
        for slot, leaves in self._grouped(wrt).items():
            place, positions = self.slots[slot]
            moved = (self.count + leaves[i] if i in leaves else None for i in range(len(positions)))
            terms += self._by(slot, len(slots))
            slots.append(Slot(place, tuple(moved)))
        return Potential(tuple(slots), self.arguments, tuple(terms), self.count + len(wrt))

    def gradients(self, jet: Jet, values: Sequence[Any], wrt: Sequence[int]) -> list[Array]:
        """Its gradients by some positions, new arrays.

        Args:
            jet: of the function, where it is differentiated.
            values: at all positions; those of the arguments, and what is differentiated, are not looked at.
            wrt: positions.
        """
        gradients: list[Any] = [None] * len(wrt)
        for slot, leaves in self._grouped(wrt).items():
            for term in self._by(slot, None):
                fills = [None if s is None else self._filled(s, values) for s in term.slots]
                parts = jet.form(term.places, term.slots.index(None), fills, list(leaves))
                for i, part in zip(leaves.values(), parts or ()):
                    gradients[i] = part if gradients[i] is None else gradients[i] + part
            for leaf, i in leaves.items():
                if gradients[i] is None:
                    gradients[i] = jet.zeros(self.slots[slot].place, leaf)
        return gradients

    def require(self, jet: Jet, wrt: Sequence[int]) -> None:
        """Raise what `gradients` would, without computing anything."""
        for slot in self._grouped(wrt):
            for term in self._by(slot, None):
                jet.require(term.places, term.slots.index(None))

    # -- private ------------------------------------------------------------------------------

    @functools.cached_property
    def _slot_of(self) -> dict[int | None, tuple[int, int]]:
        """{position: (slot, leaf)}."""
        return {p: (s, leaf) for s, slot in enumerate(self.slots) for leaf, p in enumerate(slot.positions)}

    def _grouped(self, wrt: Sequence[int]) -> dict[int, dict[int, int]]:
        """{slot: {leaf: its index in wrt}}."""
        groups: dict[int, dict[int, int]] = {}
        for index, position in enumerate(wrt):
            slot, leaf = self._slot_of[position]
            groups.setdefault(slot, {})[leaf] = index
        return groups

    def _by(self, slot: int, direction: int | None) -> list[Term]:
        """The derivatives of the terms by a slot, along another one, or with that place left free."""
        if slot < self.arguments:
            place = self.slots[slot].place
            return [Term((*term.places, place), (*term.slots, direction)) for term in self.terms]
        # A form is linear in what fills its places.
        return [
            Term(term.places, tuple(direction if s == slot else s for s in term.slots))
            for term in self.terms
            if slot in term.slots
        ]

    def _filled(self, slot: int, values: Sequence[Any]) -> Leaves:
        return [None if p is None else values[p] for p in self.slots[slot].positions]


@functools.lru_cache(maxsize=1024)
def potential(arguments: Arguments, outputs: int, *wrts: tuple[int, ...]) -> Potential:
    """⟨v, f⟩, differentiated along directions of these positions in turn; asked on every call, so remembered."""
    if not wrts:
        return Potential.of(arguments, outputs)
    return potential(arguments, outputs, *wrts[:-1]).along(wrts[-1])
