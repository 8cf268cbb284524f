"""Jacobians at concrete arrays, by the cheapest strategy that the structure allows.

========  ==========================================================  ======================
strategy  what it does                                                cost, in backwards
========  ==========================================================  ======================
rows      each row of the outputs depends on its own row of the       outputs of one row
          inputs alone: all rows at once
vjp       one cotangent per output, many at once                      outputs
jvp       one tangent per number of the arguments, many at once       about 3 × the arguments
loop      one cotangent per output, one after the other               outputs
========  ==========================================================  ======================

That rows are independent is never assumed. What was computed row by row is compared with what the
model's own backward makes of random cotangents: a Jacobian E away from the true one would have to
satisfy vᵀE = 0 for a random v (R. Freivalds, Probabilistic machines can use less running time,
1977). Where that is not so the next strategy is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.call import Call
from gradbridge.errors import CotangentMismatchError, DerivativeError, GradbridgeError, OptionError
from gradbridge.protocol import Array

STRATEGIES = ("auto", "rows", "vjp", "jvp", "loop")

#: Bytes that the cotangents and gradients of one chunk may take, besides the Jacobian itself.
MAX_CHUNK = 1 << 24

# With fewer outputs than this a row by row computation and its check do not pay.
_FEW = 8


@dataclass(frozen=True)
class Point:
    """A bridge at concrete arguments, not evaluated yet.

    Attributes:
        call: of the evaluation.
        params: (P,) real.
        leaves: the input leaves, admitted.
        steady: whether the model was bridged in eval mode.
    """

    call: Call
    params: Array
    leaves: list[Any]
    steady: bool

    @property
    def label(self) -> str:
        """What errors call the model."""
        return self.call.adapter.label

    def shape(self, position: int) -> tuple[int, ...]:
        """Of the argument at a position."""
        shape: tuple[int, ...] = np.shape(self.leaves[position - 1] if position else self.params)
        return shape

    def positions(self, wrt: Any) -> tuple[int, ...]:
        """`wrt` as the user gave it → positions.

        Raises:
            OptionError: not one of the arguments, or one of them twice.
        """
        wanted = wrt if isinstance(wrt, tuple) else (wrt,)
        count = len(self.leaves)
        for position in wanted:
            whole = isinstance(position, (int, np.integer)) and not isinstance(position, bool)
            if not whole or not 0 <= position <= count:
                raise OptionError(
                    f"wrt counts the arguments of {self.label}: 0 is its params, 1 to {count} its input arrays "
                    f"in order; got {wrt!r}"
                )
        if len(set(wanted)) != len(wanted) or not wanted:
            raise OptionError(f"wrt names each argument once, at least one of them, got {wrt!r}")
        return tuple(map(int, wanted))


def jacobian(point: Point, wrt: Any, strategy: str = "auto", max_chunk: int = MAX_CHUNK) -> Any:
    """d outputs / d arguments.

    Args:
        point: where.
        wrt: a position, or a tuple of them.
        strategy: one of `STRATEGIES`.
        max_chunk: bytes that the cotangents and gradients of one chunk may take.

    Returns:
        The output tree with output shape + argument shape in place of each array, None in place of
        an integer or boolean one; for a tuple `wrt` a tuple of such trees.

    Raises:
        OptionError: a strategy that there is not, or that cannot be followed here.
        NotDifferentiableError: an argument or all of the outputs are not floating.
    """
    if strategy not in STRATEGIES:
        raise OptionError(f"strategy must be one of {', '.join(map(repr, STRATEGIES))}, got {strategy!r}")
    if isinstance(max_chunk, bool) or not isinstance(max_chunk, (int, np.integer)) or max_chunk < 1:
        raise OptionError(f"max_chunk must be a number of bytes, 1 or more, got {max_chunk!r}")
    positions = point.positions(wrt)
    work = _Work(point, positions, int(max_chunk), watched=strategy == "auto")
    found = work.solve(strategy)
    trees_found = tuple(work.assemble(flat) for flat in found)
    return trees_found if isinstance(wrt, tuple) else trees_found[0]


def row_gradients(point: Point, strategy: str, max_chunk: int) -> Array:
    """Gradients with respect to the params of a model with one number per row, (n, P).

    Raises:
        OptionError: it does not return one number per row.
    """
    found = jacobian(point, 0, strategy, max_chunk)
    shape = point.call.outputs[0][0]
    if not isinstance(found, np.ndarray) or int(np.prod(shape[1:])) != 1 or not shape:
        shapes = ", ".join(str(s) for s, _ in point.call.outputs)
        raise OptionError(
            f"row_gradients needs one array with one number per row, (n,) or (n, 1), and {point.label} returned "
            f"{shapes}; use f.jacobian, whose axes say which output is which"
        )
    return found.reshape(shape[0], -1)


def vjp(point: Point, cotangent: Any, wrt: Any) -> Any:
    """vᵀ ∂f/∂argument: one forward, one backward.

    Raises:
        CotangentMismatchError: the cotangent does not fit the outputs.
    """
    positions = point.positions(wrt)
    _run(point, positions)
    found = point.call.pull(_cotangents(point, cotangent), positions)
    return tuple(found) if isinstance(wrt, tuple) else found[0]


def jvp(point: Point, tangent: Any, wrt: Any) -> Any:
    """∂f/∂argument · t, by the pullback of the pullback.

    Raises:
        CotangentMismatchError: the tangent does not fit the arguments.
        HigherOrderError: the guest cannot differentiate its gradient.
    """
    positions = point.positions(wrt)
    tangents = _tangents(point, tangent, wrt, positions)
    _run(point, positions)
    return point.call.assemble(_Forward(point, positions).push(tangents))


def ggn(point: Point, vector: Any, wrt: Any, hessian: Any) -> Any:
    """JᵀHJ · v, the (generalized) Gauss-Newton product; H is the identity without `hessian`.

    Args:
        point: where.
        vector: of the argument's shape; a tuple of them for a tuple `wrt`.
        wrt: a position, or a tuple of them.
        hessian: of a loss in the outputs: an array of shape output shape + output shape, or a
            function of (an output tree's) tangent.

    Source:
        N. Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent.
    """
    pushed = jvp(point, vector, wrt)
    if callable(hessian):
        pushed = hessian(pushed)
    elif hessian is not None:
        matrix = np.asarray(hessian)
        if not isinstance(pushed, np.ndarray) or matrix.shape != pushed.shape * 2:
            shape = pushed.shape * 2 if isinstance(pushed, np.ndarray) else "one array"
            raise OptionError(
                f"hessian is an array of output shape + output shape, {shape} for {point.label}, got "
                f"{matrix.shape}; or pass a function that applies it to a tangent of the outputs"
            )
        pushed = np.tensordot(matrix, pushed, pushed.ndim)
    found = point.call.pull(_cotangents(point, pushed), point.positions(wrt))
    return tuple(found) if isinstance(wrt, tuple) else found[0]


# -- the strategies ---------------------------------------------------------------------------


class _Work:
    """One Jacobian: the evaluation, and the strategies over it.

    A flat Jacobian is (M, *argument shape), M the numbers in all floating outputs one after the other.
    """

    def __init__(self, point: Point, positions: tuple[int, ...], max_chunk: int, watched: bool) -> None:
        self.point, self.call = point, point.call
        self.positions = positions
        self.max_chunk = max_chunk
        self.watched = watched and point.steady
        self._evaluate()
        self.watched = self.watched and not self.call.adapter.stochastic
        self.shapes = [shape for shape, dtype in self.call.outputs if dtype.kind == "f"]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        self.total = sum(self.sizes)
        self.arguments = sum(int(np.prod(point.shape(p))) for p in positions)

    def solve(self, strategy: str) -> list[Array]:
        """A flat Jacobian for each position.

        Raises:
            OptionError: the strategy that was asked for cannot be followed.
        """
        if not self.total or not self.arguments:
            self.call.refuse_flat_outputs()
            return [self._empty(p) for p in self.positions]
        if strategy != "auto":
            found = self._followed(strategy)
            if found is None:
                raise OptionError(
                    f"strategy {strategy!r} was asked for the Jacobian of {self.point.label}, and "
                    f"{_WHY_NOT[strategy]}; leave strategy= out"
                )
            return found
        for candidate in self._candidates():
            try:
                found = self._followed(candidate)
            except DerivativeError:
                if candidate == "loop":
                    raise
                continue
            if found is not None:
                return found
        raise AssertionError("the loop follows always")  # pragma: no cover

    def assemble(self, flat: Array) -> Any:
        """A flat Jacobian → the tree of the outputs."""
        rest = flat.shape[1:]
        leaves: list[Any] = []
        start = 0
        for shape, dtype in self.call.outputs:
            if dtype.kind != "f":
                leaves.append(None)
                continue
            size = int(np.prod(shape))
            leaves.append(flat[start : start + size].reshape((*shape, *rest)))
            start += size
        return self.call.assemble(leaves)

    # -- private ------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        # For the check of rows the cotangents are also pulled back to the inputs, where they may be.
        more = [
            i
            for i, leaf in enumerate(self.point.leaves, 1)
            if _may_have_rows(leaf) and leaf.dtype.kind == "f"
        ]
        wider = tuple(sorted({*self.positions, *more}))
        if self.watched and wider != tuple(sorted(self.positions)):
            try:
                _run(self.point, wider)
                return
            except GradbridgeError:
                self.watched = False  # some models can be differentiated by their params alone
        _run(self.point, self.positions)

    def _candidates(self) -> list[str]:
        if self.total == 1:
            return ["loop"]
        costs = {"vjp": self.total, "jvp": 3 * self.arguments + 3}
        if self.watched and self.total >= _FEW and self._rows() is not None:
            costs["rows"] = 2 * self.total // self.shapes[0][0] + 4
        return [*(name for name in sorted(costs, key=costs.__getitem__) if costs[name] <= self.total), "loop"]

    def _followed(self, strategy: str) -> list[Array] | None:
        follow: dict[str, Callable[[], list[Array] | None]] = {
            "rows": self._by_rows,
            "vjp": self._by_cotangents,
            "jvp": self._by_tangents,
            "loop": self._by_loop,
        }
        return follow[strategy]()

    def _by_loop(self) -> list[Array]:
        found = [self._empty(p) for p in self.positions]
        for index, cotangents in enumerate(self._unit_cotangents(1)):
            one = self.call.pull([c[0] for c in cotangents], self.positions)
            for flat, gradient in zip(found, one):
                flat[index] = gradient
        return found

    def _by_cotangents(self) -> list[Array] | None:
        found = [self._empty(p) for p in self.positions]
        start = 0
        for cotangents in self._unit_cotangents(self._chunk(self.total + self.arguments)):
            many = self.call.pull_many(cotangents, self.positions, "batched VJP")
            if many is None:
                return None
            stop = start + len(cotangents[0])
            for flat, gradients in zip(found, many):
                flat[start:stop] = gradients
            start = stop
        return found

    def _by_tangents(self) -> list[Array] | None:
        forward = _Forward(self.point, self.positions)
        found = [self._empty(p) for p in self.positions]
        shapes = [self.point.shape(p) for p in self.positions]
        starts = np.cumsum([0, *(int(np.prod(s)) for s in shapes)])
        chunk = self._chunk(self.total + self.arguments)
        for flat, start, size in zip(found, starts, np.diff(starts)):
            columns = flat.reshape(self.total, size)
            for first in range(0, size, chunk):
                stop = min(first + chunk, size)
                tangents = _units(shapes, int(start) + first, int(start) + stop, self.call.dtype)
                many = forward.push_many(tangents)
                if many is None:
                    return None
                parts = [m.reshape(stop - first, -1) for m in many]
                columns[:, first:stop] = np.concatenate(parts, axis=1).T
        return found

    def _by_rows(self) -> list[Array] | None:
        rowed = self._rows()
        if rowed is None:
            return None
        n = self.shapes[0][0]
        blocks: dict[int, Array] = {}  # {position: (n, outputs of a row, argument or its row)}
        shared = tuple(p for p in self.positions if not (p and rowed[p - 1]))
        own = tuple(p for p in self.positions if p not in shared)
        if shared and not self._shared_blocks(blocks, n, shared, rowed):
            return None
        if own:
            self._own_blocks(blocks, n, own)
        if not self._holds(blocks, n, shared, rowed):
            return None
        return [
            blocks[p].reshape(self.total, *self.point.shape(p))
            if p in shared and len(self.shapes) == 1
            else self._spread(blocks[p], n, p, p in shared)
            for p in self.positions
        ]

    def _rows(self) -> tuple[bool, ...] | None:
        """For each input whether its first axis are the rows; None if there can be none."""
        counts = {shape[0] if shape else 0 for shape in self.shapes}
        if len(counts) != 1 or min(counts) < 2:
            return None
        (n,) = counts
        rowed = tuple(_may_have_rows(leaf) and leaf.shape[0] == n for leaf in self.point.leaves)
        return rowed if any(rowed) else None

    def _shared_blocks(
        self, blocks: dict[int, Array], n: int, shared: tuple[int, ...], rowed: tuple[bool, ...]
    ) -> bool:
        """Of arguments that all rows share: by the guest's own computation for each row."""
        per_row = self.total // n
        sizes = {p: int(np.prod(self.point.shape(p))) for p in shared}
        chunk = min(n, self._chunk(per_row * sum(sizes.values())))
        for p in shared:
            blocks[p] = np.empty((n, per_row, sizes[p]), self.call.dtype)
        for first in range(0, n, chunk):
            rows = slice(first, first + chunk)
            leaves = [leaf[rows] if yes else leaf for leaf, yes in zip(self.point.leaves, rowed)]
            found = self.call.row_jacobians(self.point.params, leaves, shared, rowed)
            if found is None:
                return False
            for p, parts in zip(shared, zip(*found)):
                count = len(parts[0])
                joined = [part.reshape(count, -1, sizes[p]) for part in parts]
                blocks[p][rows] = joined[0] if len(joined) == 1 else np.concatenate(joined, axis=1)
        return True

    def _own_blocks(self, blocks: dict[int, Array], n: int, own: tuple[int, ...]) -> None:
        """Of arguments that have the rows: one cotangent for an output pulls back that of all rows."""
        per_row = self.total // n
        shapes = [shape[1:] for shape in self.shapes]
        for p in own:
            blocks[p] = np.empty((n, per_row, int(np.prod(self.point.shape(p)[1:]))), self.call.dtype)
        chunk = self._chunk(self.total + self.arguments)
        batched = True
        for first in range(0, per_row, chunk):
            stop = min(first + chunk, per_row)
            units = _units(shapes, first, stop, self.call.dtype)
            cotangents = self._with_flat_outputs(
                [np.repeat(unit[:, None], n, axis=1) for unit in units], stop - first
            )
            many = self.call.pull_many(cotangents, own, "rows at once") if batched else None
            if many is None:
                batched = False
                each = [self.call.pull([c[i] for c in cotangents], own) for i in range(stop - first)]
                many = [np.stack(gradients) for gradients in zip(*each)]
            for p, gradients in zip(own, many):
                blocks[p][:, first:stop] = gradients.reshape(stop - first, n, -1).swapaxes(0, 1)

    def _holds(
        self, blocks: dict[int, Array], n: int, shared: tuple[int, ...], rowed: tuple[bool, ...]
    ) -> bool:
        """Whether the blocks are the Jacobian: the model's own backward of random cotangents tells."""
        draw = np.random.default_rng(0)
        v = draw.normal(size=(n, self.total // n))
        half = draw.permutation(n) < n // 2
        watched = tuple(p for p in self.call.wrt if p and rowed[p - 1]) if self.watched else ()
        asked = tuple(dict.fromkeys((*self.positions, *watched)))
        pulled: dict[int, Array] = {}
        for rows in (half, ~half) if watched else (np.ones(n, bool),):
            gradients = dict(zip(asked, self.call.pull(self._by_leaf(v * rows[:, None]), asked)))
            if any(np.any(gradients[p][~rows]) for p in watched):
                return False
            for p in self.positions:
                pulled[p] = pulled[p] + gradients[p] if p in pulled else gradients[p]
        relative = float(max(np.finfo(d).eps for d in self.call.guest_dtypes if d.kind == "f")) ** 0.7
        for p in self.positions:
            # As (groups, outputs, numbers): the outputs of all rows pull on what the rows share.
            block = blocks[p].reshape(1, self.total, -1) if p in shared else blocks[p]
            w = v.reshape(len(block), 1, -1)
            expected = w @ block
            scale = np.linalg.norm(w, axis=2) * np.sqrt(np.einsum("gka,gka->ga", block, block))
            scale = scale.reshape(expected.shape)
            bound = relative * (scale + 1e-3 * np.max(scale, initial=0.0))
            if not np.all(np.abs(expected - pulled[p].reshape(expected.shape)) <= bound):
                return False
        return True

    def _spread(self, block: Array, n: int, position: int, shared: bool) -> Array:
        """Blocks of rows → a flat Jacobian, with exact zeros where another row is."""
        flat = (
            self._empty(position)
            if shared
            else np.zeros((self.total, *self.point.shape(position)), self.call.dtype)
        )
        start, column, rows = 0, 0, np.arange(n)
        for size in self.sizes:
            per_row = size // n
            part = block[:, column : column + per_row]
            if shared:
                flat[start : start + size] = part.reshape(size, *self.point.shape(position))
            else:
                flat[start : start + size].reshape(n, per_row, n, -1)[rows, :, rows] = part
            start, column = start + size, column + per_row
        return flat

    def _by_leaf(self, v: Array) -> list[Array]:
        """(n, outputs of a row) → a cotangent for each output leaf."""
        n, parts, column = len(v), [], 0
        for shape, size in zip(self.shapes, self.sizes):
            parts.append(v[:, column : column + size // n].reshape(shape).astype(self.call.dtype))
            column += size // n
        return [c[0] for c in self._with_flat_outputs([part[None] for part in parts], 1)]

    def _unit_cotangents(self, chunk: int) -> Iterator[list[Array]]:
        for first in range(0, self.total, chunk):
            stop = min(first + chunk, self.total)
            yield self._with_flat_outputs(_units(self.shapes, first, stop, self.call.dtype), stop - first)

    def _with_flat_outputs(self, floating: list[Array], count: int) -> list[Array]:
        """Cotangents of the floating outputs → of all outputs; those of integers are zeros."""
        rest = iter(floating)
        return [
            next(rest) if dtype.kind == "f" else np.zeros((count, *shape), self.call.dtype)
            for shape, dtype in self.call.outputs
        ]

    def _chunk(self, numbers: int) -> int:
        return max(1, self.max_chunk // (8 * max(1, numbers)))

    def _empty(self, position: int) -> Array:
        return np.empty((self.total, *self.point.shape(position)), self.call.dtype)


_WHY_NOT = {
    "rows": "its rows are not independent of each other, or its backend cannot compute them apart",
    "vjp": "its backend cannot pull back several cotangents at once through it",
    "jvp": "its backend cannot push several tangents at once through it",
}


class _Forward:
    """The derivative as a linear function of tangents: the pullback of the pullback.

    Source:
        J. Townsend (2017), A new trick for calculating Jacobian-vector products.
    """

    def __init__(self, point: Point, positions: tuple[int, ...]) -> None:
        call = point.call
        self._point = point
        self._gradient = call.differentiated(positions)
        first = len(point.leaves) + 1
        self._wrt = tuple(first + i for i, (_, dtype) in enumerate(call.outputs) if dtype.kind == "f")
        self._gradient.wrt = self._wrt
        self._gradient.run(point.params, [*point.leaves, *call.zero_cotangents()])

    def push(self, tangents: Sequence[Array]) -> list[Array]:
        """A tangent for each position → one for each output; zeros for integer ones."""
        found = dict(zip(self._wrt, self._gradient.pull(tangents, self._wrt)))
        first = len(self._point.leaves) + 1
        zeros = self._point.call.zero_cotangents()
        return [found.get(first + i, zero) for i, zero in enumerate(zeros)]

    def push_many(self, tangents: Sequence[Array]) -> list[Array] | None:
        """The same with a leading axis, for the floating outputs; None where the guest cannot."""
        return self._gradient.pull_many(tangents, self._wrt, "batched JVP")


def _run(point: Point, wrt: tuple[int, ...]) -> None:
    point.call.wrt = wrt
    point.call.run(point.params, point.leaves)


def _may_have_rows(leaf: Any) -> bool:
    return type(leaf) is np.ndarray and leaf.ndim > 0


def _units(shapes: Sequence[tuple[int, ...]], first: int, stop: int, dtype: np.dtype[Any]) -> list[Array]:
    """Rows first … stop of the identity over several arrays laid one after the other."""
    found, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        part = np.zeros((stop - first, size), dtype)
        low, high = max(first, start), min(stop, start + size)
        if low < high:
            part[np.arange(low, high) - first, np.arange(low, high) - start] = 1.0
        found.append(part.reshape(stop - first, *shape))
        start += size
    return found


def _cotangents(point: Point, cotangent: Any) -> list[Any]:
    if len(point.call.outputs) == 1 and not isinstance(cotangent, (tuple, list, dict)):
        return [cotangent]
    return trees.flatten(cotangent)[0]


def _tangents(point: Point, tangent: Any, wrt: Any, positions: tuple[int, ...]) -> list[Array]:
    given = tangent if isinstance(wrt, tuple) else (tangent,)
    if not isinstance(given, (tuple, list)) or len(given) != len(positions):
        raise CotangentMismatchError(
            f"wrt={wrt!r} asks for a tuple of {len(positions)} tangents, one for each argument, got {type(tangent).__name__}"
        )
    arrays = [np.asarray(t, point.call.dtype) for t in given]
    for position, array in zip(positions, arrays):
        if array.shape != point.shape(position):
            raise CotangentMismatchError(
                f"the tangent of argument {position} of {point.label} must have its shape "
                f"{point.shape(position)}, got {array.shape}"
            )
    return arrays
