"""A host's arguments as leaves: each is one of an adapter's, or the flat vector of all weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from gradbridge.borders import Border
from gradbridge.layout import Array


class Arguments:
    """Which leaves each argument of a host is; or each result, for what a pullback returns.

    Args:
        vectors: for each, whether it is a flat vector of all weights.
        width: how many leaves such a vector is: one per weight, or one where weights are packed.
    """

    __slots__ = ("_starts", "count", "first_only", "known", "vectors", "width")

    def __init__(self, vectors: tuple[bool, ...], width: int) -> None:
        self.vectors, self.width = vectors, width
        self._starts, start = [], 0
        for is_vector in vectors:
            self._starts.append(start)
            start += width if is_vector else 1
        #: Number of leaves.
        self.count = start
        #: Whether the first is the only vector, as in every call that is not a derivative.
        self.first_only = vectors[:1] == (True,) and not any(vectors[1:])
        #: {arguments: their leaves}, of those that were asked for.
        self.known: dict[tuple[int, ...], tuple[int, ...]] = {}

    @staticmethod
    @lru_cache(maxsize=512)
    def of(vectors: tuple[bool, ...], width: int) -> Arguments:
        """The same object for the same arguments: what it has worked out is kept."""
        return Arguments(vectors, width)

    def leaves(self, wrt: tuple[int, ...]) -> tuple[int, ...]:
        """Arguments → their leaves, in order."""
        known = self.known.get(wrt)
        if known is None:
            known = self.known[wrt] = tuple(
                leaf
                for i in wrt
                for leaf in range(self._starts[i], self._starts[i] + (self.width if self.vectors[i] else 1))
            )
        return known

    def split(self, arrays: Sequence[Any], cut: Callable[[Any], Sequence[Any]]) -> list[Any]:
        """Arrays of the host → leaves, as many for each vector as `cut` makes of it."""
        leaves: list[Any] = []
        for array, is_vector in zip(arrays, self.vectors):
            if is_vector:
                leaves += cut(array)
            else:
                leaves.append(array)
        return leaves

    def join(
        self, leaves: Sequence[Any], which: Sequence[int], border: Border, lead: tuple[int, ...] = ()
    ) -> list[Any]:
        """Natives of some arguments → one array each: vectors as float64 of NumPy, the others as they are."""
        if len(leaves) == len(which) and not any(self.vectors[i] for i in which):
            return list(leaves)
        arrays, start = [], 0
        for i in which:
            if self.vectors[i]:
                arrays.append(border.join(leaves[start : start + self.width], lead))
                start += self.width
            else:
                arrays.append(leaves[start])
                start += 1
        return arrays

    def to_host(
        self,
        leaves: Sequence[Any],
        which: Sequence[int],
        border: Border,
        dtype: np.dtype[Any],
        lead: tuple[int, ...] = (),
        views: bool = False,
    ) -> list[Array]:
        """Natives of some arguments → one array each in the host's dtype; complex ones stay complex.

        They are new ones; with `views` they may share the guest's memory.
        """
        arrays = self.join(leaves, which, border, lead)
        return [
            # What was joined is a new array already.
            (array if array.dtype == dtype else array.astype(dtype))
            if self.vectors[i]
            else (border.cast if views else border.copy)(array, dtype)
            for i, array in zip(which, arrays)
        ]
