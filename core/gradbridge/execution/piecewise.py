"""Rows computed in pieces and joined: what chunks one after the other and shards on other machines have in common.

Only for models whose rows are independent of each other, which the first call in several pieces makes sure of.
Outputs, and gradients of what has rows, are rows again; gradients of what all rows share are sums over the pieces,
in the fixed order of a binary tree.
"""

from __future__ import annotations

import itertools
import operator
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from gradbridge import trees
from gradbridge.borders import Border
from gradbridge.call_spec import CallSpec
from gradbridge.derivatives.independence import seem_independent
from gradbridge.errors import OptionError, OutputError
from gradbridge.execution.looks import Looks, kind_of
from gradbridge.execution.steps import check_results
from gradbridge.layout import Array
from gradbridge.protocol import Adapter

T = TypeVar("T")

# Rows that the first call in pieces computes together, to see whether each is what it was in its piece.
_PROBED = 8


class Cut(NamedTuple):
    """How the arguments of one call are cut.

    Attributes:
        rows: how many there are.
        has_rows: for each input leaf, whether its first axis are the rows.
        pieces: the rows of each piece, in order; one or more.
    """

    rows: int
    has_rows: tuple[bool, ...]
    pieces: tuple[slice, ...]

    def of(self, leaves: Sequence[Any], have_rows: Sequence[bool], piece: slice, axis: int = 0) -> list[Any]:
        """Leaves, with this piece of those that have rows; all of them where it is the only one."""
        if len(self.pieces) == 1:
            return list(leaves)
        where = (*(slice(None),) * axis, piece)
        return [leaf[where] if yes else leaf for leaf, yes in zip(leaves, have_rows)]


class Words(NamedTuple):
    """What errors call the pieces, and who asked for them.

    Attributes:
        pieces: ``"chunks of 3 rows"``.
        kind: ``"chunk"``.
        option: ``"rows_per_chunk="``.
        asked: ``"rows_per_chunk=3"``.
        without: what to do where it cannot be.
    """

    pieces: str
    kind: str
    option: str
    asked: str
    without: str


class TreeSum(Generic[T]):
    """The sum of terms that come in order, as a binary tree that their number alone decides.

    Args:
        add: of two terms.
    """

    def __init__(self, add: Callable[[T, T], T]) -> None:
        self._add = add
        self._open: list[tuple[int, T]] = []  # (height, sum) of full trees, the highest first

    def put(self, term: T) -> None:
        """The next term."""
        height = 0
        while self._open and self._open[-1][0] == height:
            term, height = self._add(self._open.pop()[1], term), height + 1
        self._open.append((height, term))

    def total(self) -> T:
        """Of all terms; there is at least one."""
        _, total = self._open[-1]
        for _, earlier in reversed(self._open[:-1]):
            total = self._add(earlier, total)
        return total


class PiecewiseAdapter(Adapter):
    """An adapter whose rows are computed apart by another one, and joined."""

    words: Words

    #: At which calls the rows are looked at; None where it is known that they are independent of each other.
    _looks: Looks | None

    @abstractmethod
    def cut(self, inputs: Sequence[Any]) -> Cut:
        """How a call with these input leaves is cut."""

    def outputs_with_rows(self, has_rows: tuple[bool, ...], count: int) -> tuple[bool, ...]:
        """Which outputs have rows; the others are sums over the rows."""
        return (True,) * count

    def arguments_with_rows(self, cut: Cut) -> tuple[bool, ...]:
        """Which of the weights and input leaves have rows."""
        return (*(False,) * len(self.layout), *cut.has_rows)

    # -- joining ------------------------------------------------------------------------------

    def joined_outputs(self, parts: Iterable[Any], cut: Cut) -> Any:
        """The outputs of the pieces, in order → those of all.

        Raises:
            OutputError: they have no row for each row of the inputs, or are not arrays.
        """
        columns, structure, outputs = list[list[Any]](), None, None
        for outputs in parts:
            if len(cut.pieces) == 1:
                return outputs
            leaves, structure = trees.flatten(outputs)
            columns.append([self.border.view(leaf) if hasattr(leaf, "dtype") else leaf for leaf in leaves])
        assert structure is not None
        self._refuse_beside(outputs)
        return trees.unflatten(structure, self._joined(columns, cut))

    def joined_gradients(
        self, parts: Iterable[Mapping[int, Array]], cut: Cut, axis: int = 0
    ) -> dict[int, Array]:
        """{argument: gradient} of the pieces, in order → those of all; the rows are along `axis`."""
        have_rows = self.arguments_with_rows(cut)
        gradients: dict[int, Array] = {}
        sums: dict[int, TreeSum[Array]] = {}
        for piece, part in zip(cut.pieces, parts):
            if len(cut.pieces) == 1:
                return dict(part)
            for argument, array in part.items():
                if have_rows[argument]:
                    if argument not in gradients:
                        shape = (*array.shape[:axis], cut.rows, *array.shape[axis + 1 :])
                        gradients[argument] = np.empty(shape, array.dtype)
                    gradients[argument][(*(slice(None),) * axis, piece)] = array
                else:
                    sums.setdefault(argument, TreeSum(operator.add)).put(array)
        return gradients | {argument: total.total() for argument, total in sums.items()}

    def joined_tangents(self, parts: Sequence[Sequence[Array]], cut: Cut, axis: int = 0) -> list[Array]:
        """The tangents of the pieces, in order → those of all."""
        if len(cut.pieces) == 1:
            return list(parts[0])
        have_rows = self.outputs_with_rows(cut.has_rows, len(parts[0]))
        return [
            np.concatenate(column, axis=axis) if yes else _summed(column)
            for column, yes in zip(zip(*parts), have_rows)
        ]

    @staticmethod
    def joined_jacobians(parts: Sequence[Sequence[Sequence[Array]]]) -> list[list[Array]]:
        """Per-example Jacobians of the pieces, in order → those of all."""
        return [[np.concatenate(blocks) for blocks in zip(*output)] for output in zip(*parts)]

    def _joined(self, columns: Sequence[Sequence[Any]], cut: Cut) -> list[Array]:
        have_rows = self.outputs_with_rows(cut.has_rows, len(columns[0]))
        return [
            self._concatenated(index, column, cut.rows) if yes else _summed(column)
            for index, (column, yes) in enumerate(zip(zip(*columns), have_rows))
        ]

    def _concatenated(self, index: int, parts: Sequence[Array], count: int) -> Array:
        if (
            any(not isinstance(p, np.ndarray) or not p.ndim for p in parts)
            or sum(map(len, parts)) != count
            or len({p.shape[1:] for p in parts}) > 1
        ):
            came = ", ".join(list(dict.fromkeys(str(np.shape(p)) for p in parts))[:2])
            raise OutputError(
                f"output {index} of {self.label} has shape {came} on {self.words.pieces}; {self.words.option} "
                f"needs outputs with a row for each row of the inputs: {self.words.without}, and reduce outside of the model"
            )
        return np.concatenate(parts)

    # -- whether it may be cut at all ---------------------------------------------------------

    def look_in_turn(self, loaded: Any, inputs: Sequence[Any], cut: Cut, spec: CallSpec) -> None:
        """Look whether the rows of a call are independent of each other, if it is its turn; see `Looks`."""
        if self._looks is not None:
            kind = kind_of(inputs, cut.has_rows, spec)
            self._looks.take(kind, lambda: self._look(loaded, inputs, cut, spec))

    @abstractmethod
    def _look(self, loaded: Any, inputs: Sequence[Any], cut: Cut, spec: CallSpec) -> bool:
        """Compute some rows together: each must be what it was. Returns whether anything could be told."""

    def _refuse_beside(self, outputs: Any) -> None:
        for where, value in trees.beside(outputs)[:1]:
            raise OutputError(
                f"output {where} of {self.label} is a {type(value).__name__}, and those of several {self.words.pieces} "
                f"cannot be joined; {self.words.without}, or turn that output off"
            )

    def refuse_noise(self) -> None:
        """Refuse a model that is random.

        Raises:
            OptionError
        """
        if self.stochastic:
            raise OptionError(
                f"{self.label} draws random numbers, which would be the same in every {self.words.kind}; "
                f"{self.words.without}"
            )

    def refuse_dependent_rows(self, same: bool | None) -> bool:
        """Take what `seem_independent` said of some rows.

        Returns:
            False where nothing could be told.

        Raises:
            OptionError: the rows depend on each other.
        """
        if same is False:
            raise OptionError(
                f"{self.words.asked} was asked for, and the rows of {self.label} are not independent of "
                f"each other: computed together they give other numbers than in parts, or an output has no row for each row; "
                f"{self.words.without}"
            )
        return same is True


class PiecewisePullback(PiecewiseAdapter):
    """The VJP of a piecewise adapter: gradients of rows are in pieces, those of shared arguments are sums.

    Args:
        parent: whose VJP it is.
        spec: of its call.
        wrt: the arguments whose gradients it returns.
    """

    def of(self, parent: PiecewiseAdapter, spec: CallSpec, wrt: tuple[int, ...]) -> None:
        """Say whose it is; if the parent's rows are independent, these are."""
        self._parent, self._count, self._wrt = parent, spec.count, wrt
        self._looks = None

    def cut(self, inputs: Sequence[Any]) -> Cut:
        """The parent's; its cotangents have rows where its outputs do."""
        count, has_rows, pieces = self._parent.cut(inputs[: self._count])
        outputs = self._parent.outputs_with_rows(has_rows, len(inputs) - self._count)
        return Cut(count, (*has_rows, *outputs), pieces)

    def outputs_with_rows(self, has_rows: tuple[bool, ...], count: int) -> tuple[bool, ...]:
        """Gradients have rows where their argument does."""
        k = len(self.layout)
        return tuple(p >= k and has_rows[p - k] for p in self._wrt)


def even_pieces(rows: int, count: int) -> tuple[slice, ...]:
    """So many rows in so many pieces of nearly the same length, none empty but where there are no rows."""
    count = max(1, min(count, rows))
    ends = [rows * i // count for i in range(count + 1)]
    return tuple(slice(a, b) for a, b in itertools.pairwise(ends))


def rows_to_probe(count: int, sizes: Array | None = None) -> Array:
    """A few rows that are looked at together: some of all pieces, and the largest, the first that a maximum takes.

    Args:
        count: of all rows.
        sizes: of each of them, if they are known.
    """
    rows = np.unique(np.linspace(0, count - 1, min(count, _PROBED)).astype(int))
    return rows if sizes is None else np.unique([*rows, *np.argsort(sizes)[-2:]])


def sizes_of_rows(array: Array) -> Array:
    """(rows, …) → (rows,): the sum of magnitudes in each."""
    sizes: Array = np.abs(array.reshape(len(array), -1).astype(np.float64)).sum(axis=1)
    return sizes


def look_at_rows(
    adapter: Adapter, loaded: Any, some: Sequence[Any], has_rows: Sequence[bool], spec: CallSpec
) -> bool | None:
    """Whether a few rows are independent of each other, as far as they tell; see `gradbridge.derivatives.independence`."""
    if next(len(x) for x, yes in zip(some, has_rows) if yes) < 2:
        return True
    # A numeric gradient costs as many evaluations as there are numbers, and nobody asked for one.
    return seem_independent(adapter, loaded, some, has_rows, spec, adapter.traits.is_gradient_cheap)


def pulled_piece(
    adapter: Adapter,
    residuals: Any,
    cotangents: Sequence[Any],
    wrt: tuple[int, ...],
    inputs: Sequence[Any],
    many: bool = False,
) -> dict[int, Array]:
    """{argument: gradient} of one piece, checked; for many cotangents at once with their leading axis."""
    pull = adapter.backward_many if many else adapter.pull
    if many:
        adapter.zero(residuals)
    parts = pull(residuals, cotangents, wrt)
    lead = tuple(np.shape(cotangents[0])[:1]) if many else ()
    shapes = [(*lead, *shape) for shape in (*adapter.layout.shapes, *map(np.shape, inputs))]
    check_results(adapter, parts, wrt, [shapes[i] for i in wrt], kinds=["fc"] * len(wrt))
    return dict(zip(wrt, map(adapter.border.view, parts)))


def pushed_piece(
    adapter: Adapter,
    loaded: Any,
    inputs: Sequence[Any],
    spec: CallSpec,
    wrt: tuple[int, ...],
    tangents: Sequence[Any],
) -> tuple[Any, list[Array]]:
    """(outputs, tangents) of one piece, checked."""
    outputs, parts = adapter.pushforward(loaded, inputs, spec, wrt, tangents)
    leaves = trees.flatten(outputs)[0]
    shapes, kinds = [tuple(y.shape) for y in leaves], ["fc"] * len(leaves)
    check_results(adapter, parts, range(len(leaves)), shapes, "tangent", "output", kinds)
    return viewed(outputs, adapter.border), [adapter.border.view(part) for part in parts]


def viewed(outputs: Any, border: Border) -> Any:
    """A tree of a guest's arrays as NumPy's."""
    leaves, structure = trees.flatten(outputs)
    arrays = [border.view(leaf) if hasattr(leaf, "dtype") else leaf for leaf in leaves]
    return trees.unflatten(structure, arrays)


def _summed(parts: Sequence[Array]) -> Array:
    total = TreeSum[Array](operator.add)
    for part in parts:
        total.put(part)
    return np.asarray(total.total())
