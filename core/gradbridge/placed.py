"""Arrays that live elsewhere: on other machines, in files, in pieces of rows that nobody here holds.

A bridge hands such an array to its adapter as it is where that can reach the pieces (`Traits.takes_placed`);
to any other one as the array of NumPy that it stands for, brought here for the call.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from gradbridge.layout import Array


class Piece(NamedTuple):
    """Some rows of an array.

    Attributes:
        handle: what leads to an array that has them; opaque.
        start, stop: which of its rows they are.
    """

    handle: Any
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many they are."""
        return self.stop - self.start


class PlacedArray(NDArrayOperatorsMixin):
    """An array in pieces that live elsewhere, by its shape and dtype; immutable.

    NumPy's functions and operators bring it here (`np.asarray` does, by itself). A slice of its rows is placed
    where they are.

    Args:
        shape, dtype: of the whole.
        pieces: in order, one or more; together they have its rows.
        fetch: pieces ↦ an array for each of them.
        has_rows: False where it is one piece that belongs to every row of other arrays.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        pieces: Sequence[Piece],
        fetch: Callable[[Sequence[Piece]], Sequence[Array]],
        has_rows: bool = True,
    ) -> None:
        self.shape, self.dtype, self.pieces = tuple(shape), np.dtype(dtype), tuple(pieces)
        self.has_rows, self._fetch = has_rows, fetch

    @property
    def ndim(self) -> int:
        """Number of its axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of its numbers."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all of its numbers."""
        return self.size * int(self.dtype.itemsize)

    @property
    def cuts(self) -> tuple[slice, ...]:
        """Which of its rows each piece has."""
        ends = list(itertools.accumulate((piece.rows for piece in self.pieces), initial=0))
        return tuple(slice(a, b) for a, b in itertools.pairwise(ends))

    def __len__(self) -> int:
        count: int = self.shape[0]
        return count

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        parts = self._fetch(self.pieces)
        whole = parts[0] if len(parts) == 1 else np.concatenate(list(parts))
        return np.array(whole, dtype)  # its own: what is elsewhere does not change with it

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        here = [np.asarray(x) if isinstance(x, PlacedArray) else x for x in inputs]
        return getattr(ufunc, method)(*here, **kwargs)

    def __getitem__(self, index: Any) -> Any:
        if not self.has_rows or not isinstance(index, slice) or index.step not in (None, 1):
            return np.asarray(self)[index]
        first, last, _ = index.indices(self.shape[0])
        chosen = []
        for piece, cut in zip(self.pieces, self.cuts):
            low, high = max(first, cut.start), min(last, cut.stop)
            if low < high:
                offset = piece.start - cut.start
                chosen.append(Piece(piece.handle, low + offset, high + offset))
        chosen = chosen or [self.pieces[0]._replace(stop=self.pieces[0].start)]
        rows = sum(piece.rows for piece in chosen)
        return PlacedArray((rows, *self.shape[1:]), self.dtype, chosen, self._fetch)

    def __iter__(self) -> Iterator[Any]:
        return iter(np.asarray(self))

    def __copy__(self) -> PlacedArray:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PlacedArray:
        return self

    def __repr__(self) -> str:
        how = f"in {len(self.pieces)} pieces" if self.has_rows else "whole"
        return f"<PlacedArray {self.shape} {self.dtype}, {how}>"


def dtype_of(value: Any) -> np.dtype[Any]:
    """The dtype of an array, or of the number or list that stands for one; brings nothing here."""
    dtype: np.dtype[Any] = (
        value.dtype if isinstance(value, (np.ndarray, PlacedArray)) else np.asarray(value).dtype
    )
    return dtype
