"""Rows apart: one compiled program that maps a model's VJP over the rows of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optree

from gradbridge_jax.programs import Compute, split_output


@jax.tree_util.register_static
@dataclass(frozen=True)
class RowShapes:
    """Shapes of the floating outputs for one row; static, so that they leave the trace.

    Attributes:
        of_row: one shape per output.
    """

    of_row: tuple[tuple[int, ...], ...]


class RowProgram:
    """Jacobians of each row with respect to what the rows share, compiled.

    Args:
        compute: the adapter's computation.
        label: what errors call it.
        structure: of the inputs.
        constants: input leaves that are no arrays, by their index.
        wrt: positions of the shared arguments.
        rowed: for each input leaf, whether its first axis are the rows.
    """

    def __init__(
        self,
        compute: Compute,
        label: str,
        structure: optree.PyTreeSpec,
        constants: dict[int, Any],
        wrt: tuple[int, ...],
        rowed: tuple[bool, ...],
    ) -> None:
        self._compute, self._label, self._structure = compute, label, structure
        self._constants, self._wrt, self._rowed = constants, wrt, rowed
        #: (loaded, arrays, state) ↦ (for each output, for each of wrt: (rows, numbers, …); shapes)
        self.run: Callable[..., Any] = jax.jit(self._run)

    def _run(self, loaded: Any, arrays: list[Any], state: Any) -> tuple[Any, RowShapes]:
        rest = iter(arrays)
        leaves = [self._constants[i] if i in self._constants else next(rest) for i in range(len(self._rowed))]
        shared = [loaded if p == 0 else leaves[p - 1] for p in self._wrt]
        shapes: list[tuple[int, ...]] = []

        def of_row(rows: Sequence[jax.Array]) -> Any:
            def flat(shared: list[Any]) -> list[jax.Array]:
                row, mine, filled = iter(rows), loaded, list(leaves)
                for index, yes in enumerate(self._rowed):
                    if yes:
                        filled[index] = next(row)[None]
                for position, value in zip(self._wrt, shared):
                    if position == 0:
                        mine = value
                    else:
                        filled[position - 1] = value
                output, _ = self._compute(mine, filled, self._structure, None, state)
                floats, _, _ = split_output(output, self._label)
                shapes[:] = [f.shape[1:] for f in floats]
                return [f.reshape(-1) for f in floats]

            outputs, vjp = jax.vjp(flat, shared)
            found = []
            for index, output in enumerate(outputs):
                units = [
                    jnp.eye(len(output), dtype=o.dtype)
                    if i == index
                    else jnp.zeros((len(output), len(o)), o.dtype)
                    for i, o in enumerate(outputs)
                ]
                found.append(jax.vmap(lambda *c: vjp(list(c))[0])(*units))
            return found

        found = jax.vmap(of_row)([leaf for leaf, yes in zip(leaves, self._rowed) if yes])
        return found, RowShapes(tuple(shapes))
