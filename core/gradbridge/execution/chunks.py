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

from gradbridge import trees
from gradbridge.call_spec import CallSpec
from gradbridge.derivatives.independence import seem_independent
from gradbridge.errors import OptionError, OutputError
from gradbridge.execution.steps import check_results
from gradbridge.inspection import Stranger
from gradbridge.layout import Array
from gradbridge.option_values import check_options
from gradbridge.protocol import Adapter

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
        check_options(rows_per_chunk=rows)
        self.label, self.layout, self.traits = inner.label, inner.layout, replace(inner.traits, packs=False)
        self.argument_names, self.border = inner.argument_names, inner.border
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
        return self._inner.isolate_calls()

    def strangers(self, residuals: Any) -> Sequence[Stranger]:
        if isinstance(residuals, _Chunked):  # what takes part in one chunk does so in all
            count, has_rows = self.rows_of(residuals.inputs)
            inputs = _cut(residuals.inputs, has_rows, next(self._chunks(count)))
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
        count, has_rows = self.rows_of(inputs)
        if count <= self._rows:
            outputs, residuals = self._inner.forward(loaded, inputs, spec, wrt)
            return outputs, _Whole(residuals)
        parts: list[list[Any]] = []
        outputs = structure = None
        for chunk in self._chunks(count):
            outputs, _ = self._inner.forward(loaded, _cut(inputs, has_rows, chunk), spec, ())
            leaves, structure = trees.flatten(outputs)
            parts.append([self.border.view(leaf) if hasattr(leaf, "dtype") else leaf for leaf in leaves])
            self._refuse_noise()
        assert structure is not None
        if not self._checked:
            self._refuse_beside(outputs)
        outputs_have_rows = self.outputs_with_rows(has_rows, len(parts[0]))
        joined = [
            self._concatenated(index, column, count) if yes else np.asarray(sum(column[1:], column[0]))
            for index, (column, yes) in enumerate(zip(zip(*parts), outputs_have_rows))
        ]
        if not self._checked:
            self._checked = self._check(loaded, inputs, has_rows, count, spec)
        kept = None
        if wrt:
            copies = [x.copy() if isinstance(x, np.ndarray) else x for x in inputs]
            kept = _Chunked(loaded, copies, spec.replayed(), wrt)
        return trees.unflatten(structure, joined), kept

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        if isinstance(residuals, _Whole):
            return self._inner.pull(residuals.inner, cotangents, wrt)
        count, has_rows = self.rows_of(residuals.inputs)
        outputs_have_rows = self.outputs_with_rows(has_rows, len(cotangents))
        of_argument = (*(False,) * len(self.layout), *has_rows)
        gradients: dict[int, Array] = {}
        for chunk in self._chunks(count):
            inputs = _cut(residuals.inputs, has_rows, chunk)
            _, inner = self._inner.forward(residuals.loaded, inputs, residuals.spec, wrt)
            parts = self._inner.pull(inner, _cut(cotangents, outputs_have_rows, chunk), wrt)
            shapes = [*self.layout.shapes, *map(np.shape, inputs)]
            check_results(self._inner, parts, wrt, [shapes[i] for i in wrt], kinds=["fc"] * len(wrt))
            for argument, part in zip(wrt, map(self.border.view, parts)):
                if of_argument[argument]:
                    if argument not in gradients:
                        gradients[argument] = np.empty((count, *part.shape[1:]), part.dtype)
                    gradients[argument][chunk] = part
                elif argument in gradients:
                    gradients[argument] += part
                else:
                    gradients[argument] = np.array(part)
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
        parts = []
        for chunk in self._chunks(count):
            jacobians = self._inner.row_jacobians(loaded, _cut(inputs, has_rows, chunk), spec, wrt, has_rows)
            parts.append([[self.border.view(a) for a in output] for output in jacobians])
        return [[np.concatenate(blocks) for blocks in zip(*output)] for output in zip(*parts)]

    def pushforward(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Any],
    ) -> tuple[Any, list[Any]]:
        count, has_rows = self.rows_of(inputs)
        if count <= self._rows:
            return self._inner.pushforward(loaded, inputs, spec, wrt, tangents)
        of_argument = (*(False,) * len(self.layout), *has_rows)
        moving_rows = tuple(of_argument[p] for p in wrt)
        values: list[list[Any]] = []
        pushed: list[list[Any]] = []
        structure = None
        for chunk in self._chunks(count):
            some, moved = _cut(inputs, has_rows, chunk), _cut(tangents, moving_rows, chunk)
            outputs, parts = self._inner.pushforward(loaded, some, spec, wrt, moved)
            leaves, structure = trees.flatten(outputs)
            shapes = [tuple(y.shape) for y in leaves]
            kinds = ["fc"] * len(leaves)
            check_results(self._inner, parts, range(len(leaves)), shapes, "tangent", "output", kinds)
            values.append([self.border.view(leaf) for leaf in leaves])
            pushed.append([self.border.view(part) for part in parts])
        assert structure is not None
        outputs_have_rows = self.outputs_with_rows(has_rows, len(pushed[0]))
        joined = [
            [
                np.concatenate(column) if yes else np.asarray(sum(column[1:], column[0]))
                for column, yes in zip(zip(*parts), outputs_have_rows)
            ]
            for parts in (values, pushed)
        ]
        return trees.unflatten(structure, joined[0]), joined[1]

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return _ChunkedPullback(self, spec, wrt)

    def rows_of(self, inputs: Sequence[Any]) -> tuple[int, tuple[bool, ...]]:
        """(how many rows there are, which input leaves have them): those as long as the first array."""
        arrays = [x for x in inputs if isinstance(x, np.ndarray) and x.ndim]
        count = len(arrays[0]) if arrays else 0
        return count, tuple(getattr(x, "ndim", 0) > 0 and len(x) == count for x in inputs)

    def outputs_with_rows(self, has_rows: tuple[bool, ...], count: int) -> tuple[bool, ...]:
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

    def _refuse_beside(self, outputs: Any) -> None:
        for where, value in trees.beside(outputs)[:1]:
            raise OutputError(
                f"output {where} of {self.label} is a {type(value).__name__}, and those of several chunks of rows "
                f"cannot be joined; leave rows_per_chunk= out, or turn that output off"
            )

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
        has_rows: tuple[bool, ...],
        count: int,
        spec: CallSpec,
    ) -> bool:
        """Compute some rows of all chunks together: each must be what it was; see `gradbridge.derivatives.independence`.

        Returns:
            False where nothing can be told, and the next long call is to be looked at.
        """
        rows = np.unique(np.linspace(0, count - 1, min(count, _PROBED)).astype(int))
        first = next(x for x, yes in zip(inputs, has_rows) if yes)
        if (
            isinstance(first, np.ndarray) and first.dtype.kind in "fiu"
        ):  # the largest, too, which are the first that a maximum takes
            sizes = np.abs(first.reshape(count, -1).astype(np.float64)).sum(axis=1)
            rows = np.unique([*rows, *np.argsort(sizes)[-2:]])
        some = [x[rows] if yes else x for x, yes in zip(inputs, has_rows)]
        # A numeric gradient costs as many evaluations as there are numbers, and nobody asked for one.
        gradients = self._inner.traits.is_gradient_cheap
        same: bool | None = True
        if len(rows) > 1:
            same = seem_independent(self._inner, loaded, some, has_rows, spec, gradients)
        if same is False:
            raise OptionError(
                f"rows_per_chunk={self._rows} was asked for, and the rows of {self.label} are not independent of "
                f"each other: together they give something else than apart; leave rows_per_chunk= out"
            )
        return same is True


class _ChunkedPullback(ChunkedAdapter):
    """The VJP of a chunked adapter: gradients of rows are chunks, those of shared arguments sums."""

    def __init__(self, parent: ChunkedAdapter, spec: CallSpec, wrt: tuple[int, ...]) -> None:
        super().__init__(parent._inner.pullback(spec, wrt), parent._rows)
        self._parent, self._count, self._wrt = parent, spec.count, wrt
        self._checked = True  # if the parent's rows are independent, these are

    def rows_of(self, inputs: Sequence[Any]) -> tuple[int, tuple[bool, ...]]:
        """The parent's; its cotangents have rows where its outputs do."""
        count, has_rows = self._parent.rows_of(inputs[: self._count])
        return count, (*has_rows, *self._parent.outputs_with_rows(has_rows, len(inputs) - self._count))

    def outputs_with_rows(self, has_rows: tuple[bool, ...], count: int) -> tuple[bool, ...]:
        """Gradients have rows where their argument does."""
        k = len(self.layout)
        return tuple(p >= k and has_rows[p - k] for p in self._wrt)


class _Whole(NamedTuple):
    """Residuals of a call of one chunk."""

    inner: Any


class _Chunked(NamedTuple):
    """What it takes to compute a chunk again."""

    loaded: Any
    inputs: list[Any]
    spec: CallSpec
    wrt: tuple[int, ...]


def _cut(leaves: Sequence[Any], has_rows: Sequence[bool], chunk: slice) -> list[Any]:
    return [leaf[chunk] if yes else leaf for leaf, yes in zip(leaves, has_rows)]
