"""Rows into the object store, once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import ray

from gradbridge.admission import as_array
from gradbridge.errors import InputError
from gradbridge.execution.piecewise import even_pieces
from gradbridge.execution.reuse import same_content
from gradbridge.placed import Piece, PlacedArray
from gradbridge.protocol import Array
from gradbridge_ray import cluster
from gradbridge_ray.errors import ClusterError
from gradbridge_ray.messages import Order
from gradbridge_ray.waiting import Call

if TYPE_CHECKING:
    from gradbridge_ray.pool import Pool


class Handle(NamedTuple):
    """What leads to an array in the object store.

    Attributes:
        ref: its reference.
        session: of the cluster that it is in.
    """

    ref: Any
    session: str


def ref_of(handle: Any) -> Any:
    """The reference to a placed array.

    Raises:
        InputError: placed by somebody else.
        ClusterError: in a cluster that is gone.
    """
    if not isinstance(handle, Handle):
        raise InputError(
            "an array that was placed elsewhere than in a Ray cluster was passed; place it with g.place(…)"
        )
    if handle.session != cluster.session():
        raise ClusterError(
            "the rows were placed in a Ray cluster that this process is not in any more; place them again"
        )
    return handle.ref


def fetched(pieces: Sequence[Piece]) -> list[Array]:
    """The arrays behind pieces, brought here."""
    refs = [ref_of(piece.handle) for piece in pieces]
    try:
        arrays = ray.get(refs)
    except ray.exceptions.RayError as error:
        raise ClusterError(f"placed rows cannot be brought back: {error}; place them again") from error
    return [a[p.start : p.stop] if a.ndim else a for a, p in zip(arrays, pieces)]


def place(pool: Pool, data: Any, rows: bool, column: str | None) -> PlacedArray:
    """See `ShardedBridge.place`."""
    if isinstance(data, PlacedArray):
        return data
    if hasattr(data, "to_numpy_refs"):
        return _of_refs(pool, _blocks(data, column))
    if isinstance(data, (list, tuple)) and data and all(isinstance(x, ray.ObjectRef) for x in data):
        return _of_refs(pool, list(data))
    array = as_array(data, "what is to be placed")
    _refuse_no_numbers(array.dtype)
    session = cluster.session()
    if not rows:
        handle = Handle(ray.put(array), session)
        return PlacedArray(
            array.shape, array.dtype, [Piece(handle, 0, 0 if not array.ndim else len(array))], fetched, False
        )
    if not array.ndim:
        raise InputError(
            "a single number was to be placed in rows; pass it as it is, or place it with rows=False"
        )
    parts = [array[piece] for piece in even_pieces(len(array), pool.count)]
    pieces = [Piece(Handle(ray.put(part), session), 0, len(part)) for part in parts]
    return PlacedArray(array.shape, array.dtype, pieces, fetched)


class Remembered:
    """The last few arrays that were passed without having been placed, recognised by their content.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: tuple[tuple[Array, PlacedArray], ...] = ()

    def placed(self, pool: Pool, inputs: Sequence[Any]) -> list[Any]:
        """The inputs, with those that have as many rows as the first array placed."""
        arrays = [x for x in inputs if type(x) is np.ndarray and x.ndim and x.dtype.kind in "fiubc"]
        if not self._size or not arrays or any(isinstance(x, PlacedArray) for x in inputs):
            return list(inputs)
        rows, have = len(arrays[0]), set(map(id, arrays))
        return [self._of(pool, x) if id(x) in have and len(x) == rows else x for x in inputs]

    def _of(self, pool: Pool, array: Array) -> PlacedArray:
        for own, placed in reversed(self._kept):
            # Never by identity: callers change their arrays in place.
            if placed.pieces[0].handle.session == cluster.session() and same_content(own, array):
                return placed
        placed = place(pool, array, True, None)
        self._kept = (*self._kept, (array.copy(), placed))[-self._size :]
        return placed

    def __getstate__(self) -> int:
        return self._size

    def __setstate__(self, size: int) -> None:
        self._size, self._kept = size, ()


def _blocks(dataset: Any, column: str | None) -> list[Any]:
    """A Ray Dataset's blocks as arrays of one column, where they are."""
    names = list(dataset.schema().names)
    if column is None and len(names) == 1:
        column = names[0]
    if column not in names:
        raise InputError(
            f"a Ray Dataset with the columns {', '.join(names)} was to be placed; say which: g.place(dataset, "
            f"column={names[0]!r})"
        )
    if ray.available_resources().get("CPU", 0.0) < 1.0:
        raise ClusterError(
            "a Ray Dataset is read by tasks that need a CPU, and the workers hold all of the cluster's; place a list of "
            "references, dataset.to_numpy_refs(column=…) from before, or leave a CPU free"
        )
    return list(dataset.to_numpy_refs(column=column))


def _of_refs(pool: Pool, refs: list[Any]) -> PlacedArray:
    last = len(refs)
    specs = pool.ask(
        [
            Call(pool.worker_of(i, last), Order("shape", ()), (ref,), f"piece {i + 1} of {last}")
            for i, ref in enumerate(refs)
        ]
    )
    shape, dtype = specs[0]
    _refuse_no_numbers(np.dtype(dtype))
    for index, (other, kind) in enumerate(specs):
        if not other or other[1:] != shape[1:] or kind != dtype:
            raise InputError(
                f"references to arrays of one kind are placed, and piece {index} is {other} {kind} where piece 0 is {shape} "
                f"{dtype}; their rows must have the same shape and dtype"
            )
    session = cluster.session()
    pieces = [Piece(Handle(ref, session), 0, one[0]) for ref, (one, _) in zip(refs, specs) if one[0]]
    pieces = pieces or [Piece(Handle(refs[0], session), 0, 0)]
    rows = sum(piece.rows for piece in pieces)
    return PlacedArray((rows, *shape[1:]), np.dtype(dtype), pieces, fetched)


def _refuse_no_numbers(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "fiubc":
        traced = "; what is being differentiated is placed before" if dtype.kind == "O" else ""
        raise InputError(f"arrays of numbers are placed, got dtype {dtype}{traced}")
