"""The strategies for a Jacobian, and which one the structure allows.

========  ==========================================================  ======================
strategy  what it does                                                cost, in backwards
========  ==========================================================  ======================
rows      each row of the outputs depends on its own row of the       outputs of one row
          inputs alone: all rows at once
vjp       one cotangent per output, many at once                      outputs
jvp       one tangent per number of the arguments, many at once       the arguments; 3 × without a
                                                                      forward mode in the guest
loop      one cotangent per output, one after the other               outputs
========  ==========================================================  ======================

That rows are independent is never assumed. What was computed row by row is compared with what the
model's own backward makes of random cotangents: a Jacobian E away from the true one would have to
satisfy vᵀE = 0 for a random v (R. Freivalds, Probabilistic machines can use less running time,
1977). Where that is not so the next strategy is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gradbridge.errors import (
    DerivativeError,
    GradbridgeError,
    GuestError,
    NotDifferentiableError,
    OptionError,
)
from gradbridge.points import Forward, Point
from gradbridge.protocol import Adapter, Array

STRATEGIES = ("auto", "rows", "vjp", "jvp", "loop")

#: The strategies in words.
NAMES = {"rows": "rows apart", "vjp": "batched VJP", "jvp": "JVPs", "loop": "one backward per output"}

# With fewer outputs than this a row by row computation and its check do not pay.
_FEW = 8


class Work:
    """One Jacobian: the evaluation, and the strategies over it.

    A flat Jacobian is (M, *argument shape), M the numbers in all floating outputs one after the other.

    Args:
        point: where; it is evaluated here.
        positions: of the arguments.
        max_chunk: bytes that the cotangents and gradients of one chunk may take.
        watched: whether rows may be taken for independent if the model's own backward agrees.
    """

    def __init__(self, point: Point, positions: tuple[int, ...], max_chunk: int, watched: bool) -> None:
        self.point, self.call = point, point.call
        self.positions = positions
        self.max_chunk = max_chunk
        self.watched = watched and point.steady
        self._evaluate()
        self._refuse_complex()
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
            self._note(strategy)
            return found
        candidates = self._candidates()
        for candidate in candidates:
            try:
                found = self._followed(candidate)
            except DerivativeError:
                if candidate == "loop":
                    raise
                continue
            except GuestError as error:
                if candidate != "loop":
                    continue  # the loop asks for the least, and its error is the one to tell
                found = self._pushed_after(error)
                candidate = "jvp"
            if found is not None:
                self._note(candidate)
                return found
        raise AssertionError("the loop follows always")  # pragma: no cover

    def _pushed_after(self, error: GuestError) -> list[Array]:
        """By tangents, where the guest cannot pull back but has a forward mode (a while loop in JAX)."""
        try:
            return self._by_tangents()
        except GradbridgeError:
            raise error from None

    def _note(self, strategy: str) -> None:
        sizes = f"{self.total} outputs and {self.arguments} numbers of the arguments"
        self.point.taken.append(f"{NAMES[strategy]}, for {sizes}")

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

    def _refuse_complex(self) -> None:
        kinds = {np.asarray(self.point.leaves[p - 1]).dtype.kind for p in self.positions if p}
        if "c" in kinds or any(dtype.kind == "c" for _, dtype in self.call.outputs):
            raise NotDifferentiableError(
                f"the Jacobian of {self.point.label} was asked for, and complex numbers are among its outputs or the "
                f"arguments asked for; a function of complex numbers that is not holomorphic has none: ask for "
                f"f.jvp and f.vjp, or for that of its real and imaginary parts"
            )

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
                self.point.run(wider)
                return
            except GradbridgeError:
                self.watched = False  # some models can be differentiated by their params alone
        self.point.run(self.positions)

    def _candidates(self) -> list[str]:
        if self.total == 1:
            return ["loop"]
        pushes = type(self.call.adapter).pushforward_many is not Adapter.pushforward_many
        costs = {"vjp": self.total, "jvp": self.arguments + 2 if pushes else 3 * self.arguments + 3}
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

    def _by_tangents(self) -> list[Array]:
        forward = Forward(self.point, self.positions)
        found = [self._empty(p) for p in self.positions]
        shapes = [self.point.shape(p) for p in self.positions]
        starts = np.cumsum([0, *(int(np.prod(s)) for s in shapes)])
        chunk = self._chunk(self.total + self.arguments)
        batched = True
        for flat, start, size in zip(found, starts, np.diff(starts)):
            columns = flat.reshape(self.total, size)
            for first in range(0, size, chunk):
                stop = min(first + chunk, size)
                tangents = _units(shapes, int(start) + first, int(start) + stop, self.call.dtype)
                many = forward.push_many(tangents) if batched else None
                if many is None:
                    batched = False
                    each = [
                        self._floating(forward.push([t[i] for t in tangents])) for i in range(stop - first)
                    ]
                    many = [np.stack(moved) for moved in zip(*each)]
                parts = [m.reshape(stop - first, -1) for m in many]
                columns[:, first:stop] = np.concatenate(parts, axis=1).T
        return found

    def _floating(self, leaves: list[Array]) -> list[Array]:
        return [leaf for leaf, (_, dtype) in zip(leaves, self.call.outputs) if dtype.kind == "f"]

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
            if not self._fits(found, shared):
                return False
            for p, parts in zip(shared, zip(*found)):
                count = len(parts[0])
                joined = [part.reshape(count, -1, sizes[p]) for part in parts]
                blocks[p][rows] = joined[0] if len(joined) == 1 else np.concatenate(joined, axis=1)
        return True

    def _fits(self, found: list[list[Array]], shared: tuple[int, ...]) -> bool:
        """Whether a row alone gives as many numbers as it has among others."""
        return len(found) == len(self.shapes) and all(
            part.shape[1:] == (*shape[1:], *self.point.shape(p))
            for parts, shape in zip(found, self.shapes)
            for part, p in zip(parts, shared)
        )

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
            expected = (w @ block)[:, 0]
            with np.errstate(over="ignore"):
                scale = np.linalg.norm(w, axis=2) * np.sqrt(np.einsum("gka,gka->ga", block, block))
            # Rounding follows the largest numbers that are summed up, which are those of one array.
            largest = np.concatenate(
                [
                    np.full(scale[:, part].shape, np.max(scale[:, part], initial=0.0))
                    for part in self._arrays(p)
                ],
                axis=1,
            )
            bound = relative * (scale + 1e-3 * largest)
            error = np.abs(expected - pulled[p].reshape(expected.shape))
            # What overflows here says nothing, so it does not pass.
            if not np.isfinite(bound).all() or not np.all(error <= bound):
                return False
        return True

    def _arrays(self, position: int) -> list[slice]:
        """Where the arrays lie that make up an argument: the parameters are several in one vector."""
        slices = self.call.adapter.layout.slices if position == 0 else ()
        return list(slices) or [slice(None)]

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
}


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
