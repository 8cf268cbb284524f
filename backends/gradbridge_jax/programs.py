"""Compiled programs: one for each static structure of a call, traced once for each shape.

A program is a pair: the forward, which returns the outputs and the arrays of JAX's own VJP (a pytree, so it
can be taken apart), and the pull, a second compiled function that puts the VJP together again.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optree

from gradbridge import trees
from gradbridge.errors import OutputError

V = TypeVar("V")

#: Programs kept for each adapter; a call with Python numbers that change makes one for each value.
KEPT = 64

# (parameters as loaded, input leaves, structure, key bits, state) ↦ (output tree, state after it)
Compute = Callable[[Any, list[Any], optree.PyTreeSpec, Any, Any], tuple[Any, Any]]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Form:
    """What the outputs of a trace look like: static, so it leaves the trace in the output's structure.

    Attributes:
        structure: of the output tree; None for one array alone.
        floating: for each leaf, whether it is floating or complex and has a derivative.
    """

    structure: optree.PyTreeSpec | None
    floating: tuple[bool, ...]

    def merge(self, floats: Sequence[Any], others: Sequence[Any]) -> list[Any]:
        """Leaves in the order of the model's output."""
        left, right = iter(floats), iter(others)
        return [next(left) if floating else next(right) for floating in self.floating]

    def assemble(self, leaves: Sequence[Any]) -> Any:
        """Leaves → the tree that the model returned."""
        return leaves[0] if self.structure is None else trees.unflatten(self.structure, leaves)


def split_output(output: Any, label: str) -> tuple[list[Any], list[Any], Form]:
    """Output tree → (floating leaves, other leaves, how they were together).

    Raises:
        OutputError: a leaf is not an array.
    """
    structure = None
    leaves = [output]
    if not isinstance(output, jax.Array):
        leaves, structure = trees.flatten(output)
    arrays = []
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)):
            raise OutputError(
                f"output {index} of {label} is a {type(leaf).__name__}; a bridged model returns an array, or "
                f"a tuple, list, dict or dataclass of arrays: drop the rest or make it an array"
            )
        arrays.append(jnp.asarray(leaf))
    for index, array in enumerate(arrays):
        if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != jnp.bool_:
            raise OutputError(f"output {index} of {label} has dtype {array.dtype}; return numbers")
    floating = tuple(bool(jnp.issubdtype(array.dtype, jnp.inexact)) for array in arrays)
    floats = [array for array, yes in zip(arrays, floating) if yes]
    others = [array for array, yes in zip(arrays, floating) if not yes]
    return floats, others, Form(structure, floating)


@jax.tree_util.register_static
class WayBack:
    """JAX's VJP of one trace without its arrays: static, so it leaves the trace once and for all.

    With the VJP itself as a result of one compiled function and an argument of the other, its
    structure is taken apart and compared in Python in every call: 80 of 140 µs for 11 parameters.
    """

    def __init__(self, structure: Any, jitted: bool) -> None:
        self._structure, self._jitted = structure, jitted
        self._pulls: dict[tuple[tuple[int, ...], bool], Callable[..., Any]] = {}

    def pull(
        self, leaves: list[Any], cotangents: list[Any], kept: tuple[int, ...], many: bool = False
    ) -> Any:
        """Gradients at the places `kept` of `wrt`; what is not kept is not computed.

        Args:
            leaves: the VJP's arrays.
            cotangents: of the floating outputs; with `many` each with a leading axis, which the
                gradients get, too.
            kept: places.
            many: whether there are many.
        """
        known = self._pulls.get((kept, many))
        if known is None:

            def pull(leaves: list[Any], cotangents: list[Any]) -> list[Any]:
                vjp = jax.tree.unflatten(self._structure, leaves)
                (gradients,) = (jax.vmap(vjp) if many else vjp)(cotangents)
                return [gradients[place] for place in kept]

            known = self._pulls[kept, many] = jax.jit(pull) if self._jitted else pull
        return known(leaves, cotangents)


class Program:
    """The compiled forward, with its ways back, of one adapter for one static structure.

    Args:
        compute: the adapter's computation.
        label: what errors call it.
        structure: of the inputs.
        constants: input leaves that are no arrays, by their index.
        wrt: positions that are differentiated.
        jitted: whether it is compiled, or run step by step.
    """

    def __init__(
        self,
        compute: Compute,
        label: str,
        structure: optree.PyTreeSpec,
        constants: dict[int, Any],
        wrt: tuple[int, ...],
        jitted: bool,
    ) -> None:
        self._compute, self._label, self._structure = compute, label, structure
        self._constants, self._wrt = constants, wrt
        self._jitted = jitted
        self._pushes: dict[bool, Callable[..., Any]] = {}
        #: Whether JAX refused to push one tangent, or many: it would trace in vain each time.
        self.refused: set[bool] = set()
        forward = self._forward if wrt else self._evaluate
        #: (loaded, arrays, bits, state) ↦ (floats, others, form, the way back or None, what the way
        #: back needs, state after it)
        self.run: Callable[..., Any] = jax.jit(forward) if jitted else self._step_by_step(forward)

    def push(
        self, loaded: Any, arrays: list[Any], bits: Any, state: Any, tangents: list[Any], many: bool
    ) -> Any:
        """JVP: (tangents of the floating outputs, zeros like the others, form).

        Args:
            loaded, arrays, bits, state: as for `run`.
            tangents: like the values at the positions `wrt`; with `many` each with a leading axis,
                which the tangents of the outputs get, too.
        """
        known = self._pushes.get(many)
        if known is None:
            push = functools.partial(self._push, many)
            known = self._pushes[many] = jax.jit(push) if self._jitted else self._step_by_step(push)
        return known(loaded, arrays, bits, state, tangents)

    def _push(
        self, many: bool, loaded: Any, arrays: list[Any], bits: Any, state: Any, tangents: list[Any]
    ) -> Any:
        of, wanted = self._differentiable(loaded, arrays, bits, state)
        kept: list[Any] = []

        def one(tangents: list[Any]) -> list[jax.Array]:
            _, moved, (others, form, _) = jax.jvp(of, (wanted,), (tangents,), has_aux=True)
            kept[:] = [[jnp.zeros(other.shape) for other in others], form]
            found: list[jax.Array] = moved
            return found

        moved = jax.vmap(one)(tangents) if many else one(tangents)
        return moved, *kept

    def _evaluate(self, loaded: Any, arrays: list[Any], bits: Any, state: Any) -> Any:
        output, after = self._compute(loaded, self._leaves(arrays), self._structure, bits, state)
        return *split_output(output, self._label), None, [], after

    def _forward(self, loaded: Any, arrays: list[Any], bits: Any, state: Any) -> Any:
        of, wanted = self._differentiable(loaded, arrays, bits, state)
        floats, vjp, (others, form, after) = jax.vjp(of, wanted, has_aux=True)
        leaves, structure = jax.tree.flatten(vjp)
        return floats, others, form, WayBack(structure, self._jitted), leaves, after

    def _differentiable(self, loaded: Any, arrays: list[Any], bits: Any, state: Any) -> tuple[Any, list[Any]]:
        """(the values at `wrt` ↦ (floating outputs, the rest), those values)."""

        def of(wanted: list[Any]) -> Any:
            leaves = self._leaves(arrays)
            mine = loaded
            for position, value in zip(self._wrt, wanted):
                if position == 0:
                    mine = value
                else:
                    leaves[position - 1] = value
            output, after = self._compute(mine, leaves, self._structure, bits, state)
            floats, others, form = split_output(output, self._label)
            return floats, (others, form, after)

        leaves = self._leaves(arrays)
        return of, [loaded if p == 0 else leaves[p - 1] for p in self._wrt]

    def _leaves(self, arrays: list[Any]) -> list[Any]:
        if not self._constants:
            return list(arrays)
        rest = iter(arrays)
        count = len(arrays) + len(self._constants)
        return [self._constants[i] if i in self._constants else next(rest) for i in range(count)]

    @staticmethod
    def _step_by_step(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            return forward(*jax.tree.map(jnp.asarray, arguments))

        return run


class Recent(Generic[V]):
    """A table that keeps its latest entries; from any number of threads."""

    def __init__(self, size: int = KEPT) -> None:
        self._size = size
        self._entries: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The entry of a key, made if there is none."""
        found = self._entries.get(key)
        if found is not None:
            return found
        with self._lock:
            if key not in self._entries:
                self._entries[key] = make()
                if len(self._entries) > self._size:
                    self._entries.popitem(last=False)
            return self._entries[key]

    def __getstate__(self) -> dict[str, Any]:
        # Compiled programs belong to the process.
        return {"_size": self._size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_size"])  # type: ignore[misc]
