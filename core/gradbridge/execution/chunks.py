"""Long inputs: an adapter that computes another one in chunks of rows, in bounded memory.

Only for models whose rows are independent of each other. The forward keeps no residuals of its
chunks; the backward computes each chunk again and pulls it back at once. So a gradient costs one
more forward, and the guest never holds more than one chunk.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.execution.looks import Looks
from gradbridge.execution.piecewise import (
    Cut,
    PiecewiseAdapter,
    PiecewisePullback,
    Words,
    look_at_rows,
    pulled_piece,
    pushed_piece,
    rows_to_probe,
    sizes_of_rows,
)
from gradbridge.inspection import Stranger
from gradbridge.layout import Array
from gradbridge.option_values import check_options
from gradbridge.protocol import Adapter


class ChunkedAdapter(PiecewiseAdapter):
    """An adapter that hands another one at most so many rows at a time.

    Args:
        inner: computes; in eval mode, rows independent of each other.
        rows: most that it is handed at once.

    Raises:
        OptionError: not a number of rows.
    """

    def __init__(self, inner: Adapter, rows: int) -> None:
        check_options(rows_per_chunk=rows)
        self.label, self.layout, self.traits = inner.label, inner.layout, replace(inner.traits, packs=False)
        self.argument_names, self.border = inner.argument_names, inner.border
        self._inner, self._rows, self._looks = inner, int(rows), Looks()
        option = "rows_per_chunk="
        self.words = Words(
            f"chunks of {self._rows} rows", "chunk", option, f"{option}{self._rows}", f"leave {option} out"
        )

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
    def moves(self) -> bool:  # type: ignore[override]
        """As the inner one."""
        return self._inner.moves

    @property
    def refusals_met(self) -> Mapping[str, str]:  # type: ignore[override]
        """As the inner one."""
        return self._inner.refusals_met

    def in_dtype(self, name: str) -> ChunkedAdapter:
        inner = self._inner.in_dtype(name)
        return self if inner is self._inner else ChunkedAdapter(inner, self._rows)

    def fresh(self) -> ChunkedAdapter | None:
        inner = self._inner.fresh()
        return None if inner is None else ChunkedAdapter(inner, self._rows)

    def renew_pulls(self) -> bool:
        return self._inner.renew_pulls()

    def isolate_calls(self) -> bool:
        if self._looks is not None:
            self._looks.forget()  # what a model kept from call to call may have hidden what it does to rows
        return self._inner.isolate_calls()

    def strangers(self, residuals: Any) -> Sequence[Stranger]:
        if isinstance(residuals, _Chunked):  # what takes part in one chunk does so in all
            cut = self.cut(residuals.inputs)
            inputs = cut.of(residuals.inputs, cut.has_rows, cut.pieces[0])
            _, inner = self._inner.forward(residuals.loaded, inputs, residuals.spec, residuals.wrt)
            return self._inner.strangers(inner)
        return self._inner.strangers(residuals.inner) if isinstance(residuals, _Whole) else ()

    def operations(self, residuals: Any) -> Hashable:
        return self._inner.operations(residuals.inner) if isinstance(residuals, _Whole) else None

    @property
    def results_are_typed(self) -> bool:  # type: ignore[override]
        """As the inner one."""
        return self._inner.results_are_typed

    def refusal(self, operation: str) -> str:
        if operation in ("backward_many", "pushforward_many"):
            return f"{self.label} is computed in chunks, one cotangent or tangent at a time"
        return self._inner.refusal(operation)

    def weights(self) -> Sequence[Any]:
        return self._inner.weights()

    def model(self, weights: Sequence[Array]) -> Any:
        return self._inner.model(weights)

    def update(self, weights: Sequence[Any]) -> Any:
        return self._inner.update(weights)

    def update_flat(self, vector: Array, packed: bool) -> Any:
        return self._inner.update_flat(vector, packed)

    def output_spec(self, inputs: Sequence[Any], spec: CallSpec) -> Any:
        return self._inner.output_spec(inputs, spec)

    def forward(
        self, loaded: Any, inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        cut = self.cut(inputs)
        if len(cut.pieces) == 1:
            outputs, residuals = self._inner.forward(loaded, inputs, spec, wrt)
            return outputs, _Whole(residuals)

        def parts() -> Iterator[Any]:
            for piece in cut.pieces:
                yield self._inner.forward(loaded, cut.of(inputs, cut.has_rows, piece), spec, ())[0]
                self.refuse_noise()

        joined = self.joined_outputs(parts(), cut)
        self.look_in_turn(loaded, inputs, cut, spec)
        kept = None
        if wrt:
            copies = [x.copy() if isinstance(x, np.ndarray) else x for x in inputs]
            kept = _Chunked(loaded, copies, spec.replayed(), wrt)
        return joined, kept

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        if isinstance(residuals, _Whole):
            return self._inner.pull(residuals.inner, cotangents, wrt)
        cut = self.cut(residuals.inputs)
        outputs_have_rows = self.outputs_with_rows(cut.has_rows, len(cotangents))

        def parts() -> Iterator[dict[int, Array]]:
            for piece in cut.pieces:
                inputs = cut.of(residuals.inputs, cut.has_rows, piece)
                _, inner = self._inner.forward(residuals.loaded, inputs, residuals.spec, wrt)
                pulled = cut.of(cotangents, outputs_have_rows, piece)
                yield pulled_piece(self._inner, inner, pulled, wrt, inputs)

        gradients = self.joined_gradients(parts(), cut)
        return [gradients[argument] for argument in wrt]

    def row_jacobians(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        has_rows: tuple[bool, ...],
    ) -> list[list[Any]]:
        count = next(len(x) for x, yes in zip(inputs, has_rows) if yes)
        cut, parts = Cut(count, has_rows, tuple(self._chunks(count))), []
        for piece in cut.pieces:
            some = cut.of(inputs, has_rows, piece)
            jacobians = self._inner.row_jacobians(loaded, some, spec, wrt, has_rows)
            parts.append([[self.border.view(a) for a in output] for output in jacobians])
        return self.joined_jacobians(parts)

    def pushforward(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Any],
    ) -> tuple[Any, list[Any]]:
        cut = self.cut(inputs)
        if len(cut.pieces) == 1:
            return self._inner.pushforward(loaded, inputs, spec, wrt, tangents)
        moving_rows = [self.arguments_with_rows(cut)[p] for p in wrt]
        values, pushed = [], []
        for piece in cut.pieces:
            some, moved = cut.of(inputs, cut.has_rows, piece), cut.of(tangents, moving_rows, piece)
            outputs, parts = pushed_piece(self._inner, loaded, some, spec, wrt, moved)
            values.append(outputs)
            pushed.append(parts)
        return self.joined_outputs(values, cut), self.joined_tangents(pushed, cut)

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return _ChunkedPullback(self, spec, wrt)

    def cut(self, inputs: Sequence[Any]) -> Cut:
        """Those have rows that are as long as the first array."""
        arrays = [x for x in inputs if isinstance(x, np.ndarray) and x.ndim]
        count = len(arrays[0]) if arrays else 0
        has_rows = tuple(getattr(x, "ndim", 0) > 0 and len(x) == count for x in inputs)
        return Cut(count, has_rows, tuple(self._chunks(count)))

    # -- private ------------------------------------------------------------------------------

    def _chunks(self, count: int) -> Iterator[slice]:
        for first in range(0, max(count, 1), self._rows):
            yield slice(first, min(first + self._rows, count))

    def _look(self, loaded: Any, inputs: Sequence[Any], cut: Cut, spec: CallSpec) -> bool:
        """Compute some rows of all chunks together: each must be what it was."""
        first = next(x for x, yes in zip(inputs, cut.has_rows) if yes)
        is_number = isinstance(first, np.ndarray) and first.dtype.kind in "fiu"
        rows = rows_to_probe(cut.rows, sizes_of_rows(first) if is_number else None)
        some = [x[rows] if yes else x for x, yes in zip(inputs, cut.has_rows)]
        return self.refuse_dependent_rows(look_at_rows(self._inner, loaded, some, cut.has_rows, spec))


class _ChunkedPullback(PiecewisePullback, ChunkedAdapter):
    """The VJP of a chunked adapter."""

    def __init__(self, parent: ChunkedAdapter, spec: CallSpec, wrt: tuple[int, ...]) -> None:
        super().__init__(parent._inner.pullback(spec, wrt), parent._rows)
        self.of(parent, spec, wrt)


class _Whole(NamedTuple):
    """Residuals of a call of one chunk."""

    inner: Any


class _Chunked(NamedTuple):
    """What it takes to compute a chunk again."""

    loaded: Any
    inputs: list[Any]
    spec: CallSpec
    wrt: tuple[int, ...]
