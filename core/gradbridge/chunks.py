"""Long inputs: an adapter that computes another one in chunks of rows, in bounded memory.

Only for models whose rows are independent of each other. The forward keeps no residuals of its
chunks; the backward computes each chunk again and pulls it back at once. So a gradient costs one
more forward, and the guest never holds more than one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradbridge import trees
from gradbridge.errors import OptionError, OutputError
from gradbridge.protocol import Adapter, Array, Signature
from gradbridge.rows import close, precision_of, seem_independent

# Rows that the first long call computes together, to see whether each is what it was in its chunk.
_PROBED = 8


class ChunkedAdapter(Adapter):
    """An adapter that hands another one at most so many rows at a time.

    Args:
        inner: computes; in eval mode, rows independent of each other.
        rows: most that it is handed at once.

    Raises:
        OptionError: not a number of rows.
    """

    def __init__(self, inner: Adapter, rows: int) -> None:
        if isinstance(rows, bool) or not isinstance(rows, (int, np.integer)) or rows < 1:
            raise OptionError(f"rows_per_chunk must be a number of rows, 1 or more, got {rows!r}")
        self.label, self.layout = inner.label, inner.layout
        self.argument_names = inner.argument_names
        self._inner, self._rows = inner, int(rows)
        self._checked = False

    @property
    def inner(self) -> Adapter:
        """What it hands the chunks to."""
        return self._inner

    @property
    def gradient_note(self) -> str:  # type: ignore[override]
        """As the inner one."""
        return self._inner.gradient_note

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """As the inner one."""
        return self._inner.stochastic

    @property
    def is_forward_mode_checked(self) -> bool:  # type: ignore[override]
        """As the inner one."""
        return self._inner.is_forward_mode_checked

    @property
    def takes_complex(self) -> bool:  # type: ignore[override]
        """As the inner one."""
        return self._inner.takes_complex

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self._inner.params()

    def model(self, params: Array) -> Any:
        """See `Adapter.model`."""
        return self._inner.model(params)

    def update(self, params: Array) -> Any:
        """See `Adapter.update`."""
        return self._inner.update(params)

    def forward(
        self, loaded: Any, inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """See `Adapter.forward`.

        Raises:
            OutputError: an output has no rows.
            OptionError: the rows are not independent of each other, as the first long call tells.
        """
        count, rowed = self.rows_of(inputs)
        if count <= self._rows:
            outputs, residuals = self._inner.forward(loaded, inputs, signature, wrt)
            return outputs, _Whole(residuals)
        parts: list[list[Any]] = []
        structure = None
        for chunk in self._chunks(count):
            outputs, _ = self._inner.forward(loaded, _cut(inputs, rowed, chunk), signature, ())
            leaves, structure = trees.flatten(outputs)
            parts.append(leaves)
            self._refuse_noise()
        assert structure is not None
        has_rows = self.outputs_with_rows(rowed, len(parts[0]))
        joined = [
            self._concatenated(index, column, count) if yes else np.asarray(sum(column[1:], column[0]))
            for index, (column, yes) in enumerate(zip(zip(*parts), has_rows))
        ]
        if not self._checked:
            self._check(loaded, inputs, rowed, count, signature, joined)
            self._checked = True
        kept = None
        if wrt:
            copies = [x.copy() if isinstance(x, np.ndarray) else x for x in inputs]
            kept = _Chunked(loaded, copies, signature.replayed())
        return trees.unflatten(structure, joined), kept

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """See `Adapter.backward`: chunk by chunk, each computed again."""
        if isinstance(residuals, _Whole):
            self._inner.zero(residuals.inner)
            return self._inner.backward(residuals.inner, cotangents, wrt)
        count, rowed = self.rows_of(residuals.inputs)
        has_rows = self.outputs_with_rows(rowed, len(cotangents))
        found: dict[int, Array] = {}
        for chunk in self._chunks(count):
            inputs = _cut(residuals.inputs, rowed, chunk)
            _, inner = self._inner.forward(residuals.loaded, inputs, residuals.signature, wrt)
            self._inner.zero(inner)
            gradients = self._inner.backward(inner, _cut(cotangents, has_rows, chunk), wrt)
            for position, gradient in zip(wrt, gradients):
                if position and rowed[position - 1]:
                    if position not in found:
                        found[position] = np.empty((count, *gradient.shape[1:]), gradient.dtype)
                    found[position][chunk] = gradient
                elif position in found:
                    found[position] += gradient
                else:
                    found[position] = gradient
        return [found[position] for position in wrt]

    def row_jacobians(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        rowed: tuple[bool, ...],
    ) -> list[list[Array]] | None:
        """See `Adapter.row_jacobians`; in chunks of its own."""
        count, _ = self.rows_of(inputs)
        parts = []
        for chunk in self._chunks(count):
            found = self._inner.row_jacobians(loaded, _cut(inputs, rowed, chunk), signature, wrt, rowed)
            if found is None:
                return None
            parts.append(found)
        return [[np.concatenate(pieces) for pieces in zip(*output)] for output in zip(*parts)]

    def pushforward(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        """See `Adapter.pushforward`; chunk by chunk."""
        count, rowed = self.rows_of(inputs)
        if count <= self._rows:
            return self._inner.pushforward(loaded, inputs, signature, wrt, tangents)
        moved_rows = tuple(bool(p) and rowed[p - 1] for p in wrt)
        parts: list[list[Array]] = []
        for chunk in self._chunks(count):
            found = self._inner.pushforward(
                loaded, _cut(inputs, rowed, chunk), signature, wrt, _cut(tangents, moved_rows, chunk)
            )
            if found is None:
                return None
            parts.append(found)
        has_rows = self.outputs_with_rows(rowed, len(parts[0]))
        return [
            np.concatenate(column) if yes else np.asarray(sum(column[1:], column[0]))
            for column, yes in zip(zip(*parts), has_rows)
        ]

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> Adapter:
        """See `Adapter.pullback`: that of the inner one, in chunks of the same rows."""
        return _ChunkedPullback(self, signature, wrt)

    def rows_of(self, inputs: Sequence[Any]) -> tuple[int, tuple[bool, ...]]:
        """(how many rows there are, which input leaves have them): those as long as the first array."""
        arrays = [x for x in inputs if isinstance(x, np.ndarray) and x.ndim]
        count = len(arrays[0]) if arrays else 0
        return count, tuple(isinstance(x, np.ndarray) and x.ndim > 0 and len(x) == count for x in inputs)

    def outputs_with_rows(self, rowed: tuple[bool, ...], count: int) -> tuple[bool, ...]:
        """Which outputs have rows; the others are sums over the rows."""
        return (True,) * count

    # -- private ------------------------------------------------------------------------------

    def _chunks(self, count: int) -> Iterator[slice]:
        for first in range(0, max(count, 1), self._rows):
            yield slice(first, min(first + self._rows, count))

    def _concatenated(self, index: int, parts: Sequence[Array], count: int) -> Array:
        if (
            any(not isinstance(p, np.ndarray) or not p.ndim for p in parts)
            or sum(map(len, parts)) != count
            or len({p.shape[1:] for p in parts}) > 1
        ):
            came = ", ".join(list(dict.fromkeys(str(np.shape(p)) for p in parts))[:2])
            raise OutputError(
                f"output {index} of {self.label} has shape {came} on chunks of {self._rows} rows; rows_per_chunk= "
                f"needs outputs with a row for each row of the inputs: leave it out, and reduce outside of the model"
            )
        return np.concatenate(parts)

    def _refuse_noise(self) -> None:
        if self._inner.stochastic:
            raise OptionError(
                f"{self.label} draws random numbers, which would be the same in every chunk; leave "
                f"rows_per_chunk= out"
            )

    def _check(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        rowed: tuple[bool, ...],
        count: int,
        signature: Signature,
        outputs: Sequence[Array],
    ) -> None:
        """Compute some rows of all chunks together: each must be what it was; see `gradbridge.rows`."""
        rows = np.unique(np.linspace(0, count - 1, min(count, _PROBED)).astype(int))
        some = [x[rows] if yes else x for x, yes in zip(inputs, rowed)]
        together, _ = self._inner.forward(loaded, some, signature.replayed(), ())
        precision = precision_of(outputs)
        same: bool | None = all(
            close(a, b[rows], precision) for a, b in zip(trees.flatten(together)[0], outputs)
        )
        if same and len(rows) > 1:
            # A numeric gradient costs as many evaluations as there are numbers, and nobody asked for one.
            gradients = not self._inner.gradient_note.startswith("numeric")
            same = seem_independent(self._inner, loaded, some, rowed, signature, gradients)
        if same is None:
            raise OptionError(
                f"rows_per_chunk={self._rows} was asked for, and whether the rows of {self.label} are independent of "
                f"each other cannot be told from its first long input: gradients there are not finite; call it "
                f"first where they are, or leave rows_per_chunk= out"
            )
        if not same:
            raise OptionError(
                f"rows_per_chunk={self._rows} was asked for, and the rows of {self.label} are not independent of "
                f"each other: together they give something else than apart; leave rows_per_chunk= out"
            )


class _ChunkedPullback(ChunkedAdapter):
    """The VJP of a chunked adapter: gradients of rows are chunks, those of shared arguments sums."""

    def __init__(self, parent: ChunkedAdapter, signature: Signature, wrt: tuple[int, ...]) -> None:
        super().__init__(parent._inner.pullback(signature, wrt), parent._rows)
        self._parent, self._count, self._wrt = parent, signature.count, wrt
        self._checked = True  # if the parent's rows are independent, these are

    def rows_of(self, inputs: Sequence[Any]) -> tuple[int, tuple[bool, ...]]:
        """The parent's; its cotangents have rows where its outputs do."""
        count, rowed = self._parent.rows_of(inputs[: self._count])
        return count, (*rowed, *self._parent.outputs_with_rows(rowed, len(inputs) - self._count))

    def outputs_with_rows(self, rowed: tuple[bool, ...], count: int) -> tuple[bool, ...]:
        """Gradients have rows where their argument does."""
        return tuple(bool(p) and rowed[p - 1] for p in self._wrt)


class _Whole(NamedTuple):
    """Residuals of a call of one chunk."""

    inner: Any


class _Chunked(NamedTuple):
    """What it takes to compute a chunk again."""

    loaded: Any
    inputs: list[Any]
    signature: Signature


def _cut(leaves: Sequence[Any], rowed: Sequence[bool], chunk: slice) -> list[Any]:
    return [leaf[chunk] if yes else leaf for leaf, yes in zip(leaves, rowed)]
