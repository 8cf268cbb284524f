"""Per-example Jacobians: all rows at once, where each row of the outputs depends on its own row of the inputs alone.

That is never assumed. What was computed row by row is compared with what the model's own backward
makes of random cotangents: a Jacobian E away from the true one would have to satisfy vᵀE = 0 for a
random v (R. Freivalds, Probabilistic machines can use less running time, 1977).
"""

from __future__ import annotations

import numpy as np

from gradbridge.derivatives.problem import JacobianProblem, may_have_rows, unit_arrays
from gradbridge.errors import Unsupported
from gradbridge.execution import batched
from gradbridge.layout import Array


class PerExampleStrategy:
    """The strategy ``"rows"``.

    Args:
        problem: to solve.
    """

    def __init__(self, problem: JacobianProblem) -> None:
        self._problem = problem

    def solve(self) -> list[Array]:
        """A flat Jacobian for each argument.

        Raises:
            Unsupported: rows are not independent, or the guest cannot compute them apart.
        """
        problem = self._problem
        has_rows = self.rows()
        if has_rows is None:
            raise Unsupported("its outputs have no rows in common with its inputs")
        n = problem.shapes[0][0]
        blocks: dict[int, Array] = {}  # {argument: (n, outputs of a row, argument or its row)}
        shared = tuple(i for i in problem.wrt if not has_rows[i])
        own = tuple(i for i in problem.wrt if has_rows[i])
        if shared:
            self._shared_blocks(blocks, n, shared, has_rows)
        if own:
            self._own_blocks(blocks, n, own)
        if not self._passes_freivalds(blocks, n, shared, has_rows):
            raise Unsupported("its per-example Jacobians are not its Jacobian")
        return [
            blocks[i].reshape(problem.total, *problem.point.shape(i))
            if i in shared and len(problem.shapes) == 1
            else self._spread(blocks[i], n, i, i in shared)
            for i in problem.wrt
        ]

    def rows(self) -> tuple[bool, ...] | None:
        """For each argument whether its first axis are the rows; None if there can be none."""
        problem = self._problem
        counts = {shape[0] if shape else 0 for shape in problem.shapes}
        if len(counts) != 1 or min(counts) < 2:
            return None
        (n,), first = counts, problem.point.call.first_input
        has_rows = tuple(
            i >= first and may_have_rows(leaf) and leaf.shape[0] == n
            for i, leaf in enumerate(problem.point.values)
        )
        return has_rows if any(has_rows) else None

    def _shared_blocks(
        self, blocks: dict[int, Array], n: int, shared: tuple[int, ...], has_rows: tuple[bool, ...]
    ) -> None:
        """Of arguments that all rows share: by the guest's own computation for each row."""
        problem = self._problem
        per_row = problem.total // n
        sizes = {i: int(np.prod(problem.point.shape(i))) for i in shared}
        chunk = min(n, problem.chunk(per_row * sum(sizes.values())))
        for i in shared:
            blocks[i] = np.empty((n, per_row, sizes[i]), problem.dtype)
        first_input = problem.point.call.first_input
        for first in range(0, n, chunk):
            rows = slice(first, first + chunk)
            values = [leaf[rows] if yes else leaf for leaf, yes in zip(problem.point.values, has_rows)]
            jacobians = batched.row_jacobians(problem.evaluation, values, shared, has_rows[first_input:])
            if not self._fits(jacobians, shared):
                raise Unsupported("a row alone gives other shapes than in a batch")
            for i, parts in zip(shared, zip(*jacobians)):
                count = len(parts[0])
                joined = [part.reshape(count, -1, sizes[i]) for part in parts]
                blocks[i][rows] = joined[0] if len(joined) == 1 else np.concatenate(joined, axis=1)

    def _fits(self, jacobians: list[list[Array]], shared: tuple[int, ...]) -> bool:
        """Whether a row alone gives as many numbers as it has among others."""
        problem = self._problem
        return len(jacobians) == len(problem.shapes) and all(
            part.shape[1:] == (*shape[1:], *problem.point.shape(p))
            for parts, shape in zip(jacobians, problem.shapes)
            for part, p in zip(parts, shared)
        )

    def _own_blocks(self, blocks: dict[int, Array], n: int, own: tuple[int, ...]) -> None:
        """Of arguments that have the rows: one cotangent for an output pulls back that of all rows."""
        problem = self._problem
        per_row = problem.total // n
        shapes = [shape[1:] for shape in problem.shapes]
        for p in own:
            blocks[p] = np.empty((n, per_row, int(np.prod(problem.point.shape(p)[1:]))), problem.dtype)
        chunk = problem.chunk(problem.total + problem.arguments)
        can_batch = True
        for first in range(0, per_row, chunk):
            stop = min(first + chunk, per_row)
            units = unit_arrays(shapes, first, stop, problem.dtype)
            cotangents = problem.with_flat_outputs(
                [np.repeat(unit[:, None], n, axis=1) for unit in units], stop - first
            )
            many: list[Array] | None = None
            if can_batch:
                try:
                    many = batched.pull_many(problem.evaluation, cotangents, own, "rows at once")
                except Unsupported:
                    can_batch = False
            if many is None:
                each = [problem.evaluation.pull([c[i] for c in cotangents], own) for i in range(stop - first)]
                many = [np.stack(gradients) for gradients in zip(*each)]
            for p, gradients in zip(own, many):
                blocks[p][:, first:stop] = gradients.reshape(stop - first, n, -1).swapaxes(0, 1)

    def _passes_freivalds(
        self, blocks: dict[int, Array], n: int, shared: tuple[int, ...], has_rows: tuple[bool, ...]
    ) -> bool:
        """Whether the blocks are the Jacobian: the model's own backward of random cotangents tells."""
        problem = self._problem
        draw = np.random.default_rng(0)
        v = draw.normal(size=(n, problem.total // n))
        half = draw.permutation(n) < n // 2
        watched = tuple(i for i in problem.evaluation.wrt if has_rows[i]) if problem.checks_rows else ()
        asked = tuple(dict.fromkeys((*problem.wrt, *watched)))
        pulled: dict[int, Array] = {}
        for rows in (half, ~half) if watched else (np.ones(n, bool),):
            gradients = dict(zip(asked, problem.evaluation.pull(self._by_leaf(v * rows[:, None]), asked)))
            if any(np.any(gradients[p][~rows]) for p in watched):
                return False
            for p in problem.wrt:
                pulled[p] = pulled[p] + gradients[p] if p in pulled else gradients[p]
        for p in problem.wrt:
            # As (groups, outputs, numbers): the outputs of all rows pull on what the rows share.
            block = blocks[p].reshape(1, problem.total, -1) if p in shared else blocks[p]
            w = v.reshape(len(block), 1, -1)
            if not problem.is_close(p, w, block, pulled[p].reshape(len(block), -1)):
                return False
        return True

    def _spread(self, block: Array, n: int, position: int, shared: bool) -> Array:
        """Blocks of rows → a flat Jacobian, with exact zeros where another row is."""
        problem = self._problem
        flat = (
            problem.empty(position)
            if shared
            else np.zeros((problem.total, *problem.point.shape(position)), problem.dtype)
        )
        start, column, rows = 0, 0, np.arange(n)
        for size in problem.sizes:
            per_row = size // n
            part = block[:, column : column + per_row]
            if shared:
                flat[start : start + size] = part.reshape(size, *problem.point.shape(position))
            else:
                flat[start : start + size].reshape(n, per_row, n, -1)[rows, :, rows] = part
            start, column = start + size, column + per_row
        return flat

    def _by_leaf(self, v: Array) -> list[Array]:
        """(n, outputs of a row) → a cotangent for each output leaf."""
        problem = self._problem
        n, parts, column = len(v), [], 0
        for shape, size in zip(problem.shapes, problem.sizes):
            parts.append(v[:, column : column + size // n].reshape(shape).astype(problem.dtype))
            column += size // n
        return [c[0] for c in problem.with_flat_outputs([part[None] for part in parts], 1)]
