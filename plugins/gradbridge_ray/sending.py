"""The arguments of a call, cut and sent to the workers that have their rows."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.errors import InputError
from gradbridge.execution.piecewise import Cut, PiecewiseAdapter, Words, even_pieces
from gradbridge.placed import PlacedArray
from gradbridge_ray.messages import Order, Path
from gradbridge_ray.placing import ref_of
from gradbridge_ray.pool import Pool
from gradbridge_ray.waiting import Call

_WORDS = Words(
    "shards of its rows",
    "shard",
    "shard_rows",
    "shard_rows",
    "use gradbridge.bridge, in one process; what all rows share, and is as long as they are, goes by g.place(x, rows=False)",
)


class Kept:
    """An evaluation whose residuals the workers hold, and what it takes to make them again.

    Attributes:
        key: of the evaluation.
        params, inputs: as they were sent.
        spec, wrt, cut: of the call.
    """

    def __init__(
        self, pool: Pool, key: int, params: Any, inputs: Sent, spec: CallSpec, wrt: tuple[int, ...], cut: Cut
    ) -> None:
        self.key, self.params, self.inputs = key, params, inputs
        self.spec, self.wrt, self.cut = spec, wrt, cut
        weakref.finalize(self, pool.drop, key)


class Sent:
    """Arrays as they are sent: for each piece, and which rows of them are meant.

    Args:
        arrays, slices: one list for each piece.
        note: what errors say of how they were cut.
    """

    def __init__(self, arrays: list[list[Any]], slices: list[list[slice | None]], note: str = "") -> None:
        self.arrays, self.slices, self.note = arrays, slices, note

    def __add__(self, other: Sent) -> Sent:
        return Sent(
            [a + b for a, b in zip(self.arrays, other.arrays)],
            [a + b for a, b in zip(self.slices, other.slices)],
            self.note + other.note,
        )


class SendingAdapter(PiecewiseAdapter):
    """The half of `ShardedAdapter` that sends."""

    words = _WORDS

    _pool: Pool
    _path: Path

    def cut(self, inputs: Sequence[Any]) -> Cut:
        """As placed inputs are cut; where none is, evenly. Other arrays as long as these are cut alike."""
        placed = [(i, x) for i, x in enumerate(inputs) if isinstance(x, PlacedArray) and x.has_rows]
        if placed:
            (first, array), *others = placed
            for index, other in others:
                if other.cuts != array.cuts:
                    raise InputError(
                        f"inputs {first} and {index} of {self.label} are placed and cut differently: rows "
                        f"{_cuts(array)} and {_cuts(other)}; place arrays with equally many rows by the same bridge, or "
                        f"references in pieces of the same lengths"
                    )
            rows, pieces = len(array), array.cuts
        else:
            arrays = [x for x in inputs if isinstance(x, np.ndarray) and x.ndim]
            rows = len(arrays[0]) if arrays else 0
            pieces = even_pieces(rows, self._pool.count)
        has_rows = tuple(
            x.has_rows if isinstance(x, PlacedArray) else getattr(x, "ndim", 0) > 0 and len(x) == rows
            for x in inputs
        )
        return Cut(rows, has_rows, pieces)

    def _inputs(self, inputs: Sequence[Any], cut: Cut, keeps: bool) -> Sent:
        """Input leaves as they are sent; `keeps` where they will be sent again, whatever the caller does to them."""
        arrays: list[list[Any]] = [[] for _ in cut.pieces]
        slices: list[list[slice | None]] = [[] for _ in cut.pieces]
        for leaf, yes in zip(inputs, cut.has_rows):
            if isinstance(leaf, PlacedArray) and leaf.has_rows:
                for i, piece in enumerate(leaf.pieces):
                    arrays[i].append(ref_of(piece.handle))
                    slices[i].append(slice(piece.start, piece.stop))
                continue
            if isinstance(leaf, PlacedArray):
                every = [ref_of(leaf.pieces[0].handle)] * len(cut.pieces)
            elif not isinstance(leaf, np.ndarray):
                every = [leaf] * len(cut.pieces)
            elif yes and len(cut.pieces) > 1:
                every = [self._pool.shipped(leaf[piece], keeps) for piece in cut.pieces]
            else:
                every = [self._pool.shipped(leaf, keeps)] * len(cut.pieces)
            for i, one in enumerate(every):
                arrays[i].append(one)
                slices[i].append(None)
        return Sent(arrays, slices, _cut_along(inputs, cut))

    def _plain(self, leaves: Sequence[Any], have_rows: Sequence[bool], cut: Cut, axis: int = 0) -> Sent:
        """Cotangents or tangents as they are sent."""
        arrays: list[list[Any]] = [[] for _ in cut.pieces]
        for leaf, yes in zip(leaves, have_rows):
            alone = None if yes and len(cut.pieces) > 1 else self._pool.shipped(np.asarray(leaf), False)
            for i, piece in enumerate(cut.pieces):
                arrays[i].append(
                    self._pool.shipped(cut.of([leaf], [yes], piece, axis)[0], False)
                    if alone is None
                    else alone
                )
        return Sent(arrays, [[None] * len(leaves) for _ in cut.pieces])

    def _calls(self, what: str, cut: Cut, key: int, arrays: Sent | None = None, **order: Any) -> list[Call]:
        """An order for each piece."""
        count, calls = len(cut.pieces), []
        for i, piece in enumerate(cut.pieces):
            some, slices = ([], []) if arrays is None else (arrays.arrays[i], arrays.slices[i])
            cuts = tuple(slices) if any(s is not None for s in slices) else ()
            rows = piece.stop - piece.start
            which = f"rows {piece.start} to {piece.stop - 1}" if rows else "no rows"
            where = f"shard {i + 1} of {count} ({which}{'' if arrays is None else arrays.note})"
            one = Order(what, self._path, key=key, piece=i, rows=rows, slices=cuts, **order)
            calls.append(Call(self._pool.worker_of(i, count), one, some, f"{self.label}, {where}"))
        return calls

    def _forwards(
        self,
        what: str,
        loaded: Any,
        inputs: Sent,
        cut: Cut,
        spec: CallSpec,
        wrt: tuple[int, ...],
        key: int,
        more: Any = None,
    ) -> list[Call]:
        params = Sent([[loaded] for _ in cut.pieces], [[None] for _ in cut.pieces])
        return self._calls(
            what, cut, key, params + inputs, spec=replace(spec, packed=False), wrt=wrt, more=more
        )


def _cuts(array: PlacedArray) -> str:
    return " + ".join(str(piece.rows) for piece in array.pieces)


def _cut_along(inputs: Sequence[Any], cut: Cut) -> str:
    """Which inputs are cut because they are as long as those that decide it, in words; "" for none."""
    arrays = [i for i, (x, yes) in enumerate(zip(inputs, cut.has_rows)) if yes and isinstance(x, np.ndarray)]
    if not any(isinstance(x, PlacedArray) and x.has_rows for x in inputs):
        arrays = arrays[1:]  # the first decided
    if not arrays or len(cut.pieces) < 2:
        return ""
    return f"; input {', '.join(map(str, arrays))} was cut, too, having as many: g.place(x, rows=False) sends it whole"
