"""Compiled programs: traced once for each shape, with their pullbacks to every order.

A forward returns its outputs and the arrays that its pullback needs; the pullback is a second compiled function, of
these arrays and of the cotangents. The derivative of a gradient goes by the same two: the VJP of a pullback gives what
goes on to the arrays; and the forward, as a function that returns them, carries that back to the leaves, together
with what goes to its outputs, in one walk. Nothing is traced anew: both are the compiled functions
that are there already. Measured on a multilayer perceptron of 662 k parameters, one core: 1.4 to 1.5 × one jitted
Hessian-vector product; 2.0 × where the two are walked apart; no better where the forward keeps the arrays of its
second derivative, too, which would make it another program than that of a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gradbridge.errors import Unsupported
from gradbridge.execution.programs import LRUCache
from gradbridge.framework import Computation, Form, Program, filled
from gradbridge_jax.explain import NOT_TRACEABLE
from gradbridge_jax.scalars import fits_int32, keeps_integers
from gradbridge_jax.traces import Forward, Run


class Compiling:
    """Whether the programs of one adapter are compiled.

    Attributes:
        jit: True, False, or ``"auto"``, which becomes False with the first that cannot be traced.
    """

    def __init__(self, jit: bool | str) -> None:
        self.jit = jit


@dataclass(slots=True)
class RecordedPull:
    """What a gradient keeps that can be differentiated: nothing but what it was computed from."""

    run: Run
    cotangents: list[Any]
    wanted: tuple[int, ...]


class JaxProgram(Program):
    """A computation, compiled, or step by step where it cannot be traced.

    Args:
        compiling: whether to compile.
        fn: the computation.
        places: of the leaves that it is pulled back to.
        reusable: whether compiling pays.
        owns: whether an array is a parameter of the user's own model.
    """

    records = True
    merges_from = 0

    def __init__(
        self,
        compiling: Compiling,
        fn: Computation,
        places: tuple[int, ...],
        reusable: bool,
        owns: Callable[[Any], bool],
    ) -> None:
        self._owns = owns
        self._compiling, self._fn, self._places = compiling, fn, places
        self._reusable = reusable
        self._forward = Forward(fn, places, True)
        self._is_dynamic: dict[Hashable, bool] = {}
        self._of_values: LRUCache[JaxProgram] = LRUCache()

    def run(self, leaves: list[Any]) -> tuple[list[Any], list[Any], Form, Sequence[Any], Any]:
        forward, compiling = self._forward, self._compiling
        if not (self._reusable and compiling.jit):
            forward, leaves = self._step_by_step(leaves)
        elif int in map(type, leaves) and not self._takes_integers(leaves):
            return self._with_integers(leaves)
        try:
            floats, others, after, trace, arrays = forward.run(leaves)
        except NOT_TRACEABLE:
            if compiling.jit is True or not forward.jitted:
                raise
            compiling.jit = False  # from now on step by step
            forward, leaves = self._step_by_step(leaves)
            floats, others, after, trace, arrays = forward.run(leaves)
        form, pullback, _ = forward.traces[trace.number]
        for array in floats or others:
            array.block_until_ready()  # errors come to light here, where they are explained
        run = Run(forward, leaves, pullback, forward.arrays(trace, arrays, leaves)) if pullback else None
        return floats, others, form, after, run

    def _step_by_step(self, leaves: list[Any]) -> tuple[Forward, list[Any]]:
        arrays = [leaf if type(leaf) is int else jnp.asarray(leaf) for leaf in leaves]
        return Forward(self._fn, self._places, False), arrays

    def pull(
        self, kept: Run | RecordedPull, cotangents: Sequence[Any], wanted: Sequence[int], many: bool = False
    ) -> Sequence[Any]:
        if isinstance(kept, RecordedPull):
            return _pull_recorded_pull(kept, list(cotangents), tuple(wanted), many)
        pull = kept.pullback.find((tuple(wanted), many)) or kept.pullback.pull(tuple(wanted), many)
        gradients: list[Any] = pull(kept.arrays, list(cotangents))
        for gradient in gradients:
            gradient.block_until_ready()
        return gradients

    def strangers(self, kept: Run) -> Sequence[Any]:
        return [array for array in kept.forward.constants(kept) if self._owns(array)]

    def pull_recorded(
        self, kept: Run | RecordedPull, cotangents: Sequence[Any], wanted: Sequence[int]
    ) -> tuple[Sequence[Any], RecordedPull]:
        if isinstance(kept, RecordedPull):
            raise Unsupported("its program records the gradient, not the derivative of that")
        if not kept.forward.jitted:
            raise Unsupported("it runs step by step")
        pullback = kept.pullback
        if pullback.is_recorded is None:
            pullback.is_recorded = kept.forward.may_leave_its_trace(kept, list(cotangents))
        if not pullback.is_recorded:
            raise Unsupported("a custom rule of it closes over arrays of its trace")
        gradients = self.pull(kept, cotangents, wanted)
        return gradients, RecordedPull(kept, list(cotangents), tuple(wanted))

    def pull_to_boundary(
        self, kept: Run, recorded: RecordedPull, cotangents: Sequence[Any]
    ) -> tuple[Sequence[Any], list[Any]]:
        transposed, of = kept.pullback.transposed, recorded.wanted
        pull = kept.pullback.compiled(("boundary", of), lambda: lambda a, c, t: transposed(a, c, of, t))
        by_arrays, by_cotangents = pull(kept.arrays, recorded.cotangents, list(cotangents))
        return jax.block_until_ready(by_cotangents), by_arrays

    def pull_merged(
        self, kept: Run, cotangents: Sequence[Any], wanted: Sequence[int], left: Sequence[list[Any]]
    ) -> Sequence[Any]:
        forward, wanted = kept.forward, tuple(wanted)

        def merged(leaves: list[Any], cotangents: list[Any], left: list[list[Any]]) -> list[Any]:
            by_arrays = [sum(parts[1:], parts[0]) for parts in zip(*left)]
            gradients = forward.pull(leaves, cotangents, by_arrays)
            return [gradients[place] for place in wanted]

        pull = kept.pullback.compiled(("merged", wanted), lambda: merged)
        gradients: list[Any] = pull(kept.leaves, list(cotangents), list(left))
        return jax.block_until_ready(gradients)

    # -- Python integers among the leaves -----------------------------------------------------

    def _takes_integers(self, leaves: list[Any]) -> bool:
        """Whether one program serves for all values of the integers, at these shapes."""
        if not fits_int32(leaves):
            return False
        x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]
        key = (x64, *((None if type(x) is int else (x.shape, x.dtype)) for x in leaves))
        known = self._is_dynamic.get(key)
        if known is None:
            try:
                traced = self._forward.run.trace(leaves)  # type: ignore[attr-defined]
            except (
                Exception
            ):  # whatever it is: with their values it is gone, or it comes again and is explained
                known = False
            else:
                known = keeps_integers(traced.jaxpr.jaxpr, [type(x) is int for x in leaves])
            self._is_dynamic[key] = known
        return known

    def _with_integers(self, leaves: list[Any]) -> tuple[list[Any], list[Any], Form, Sequence[Any], Any]:
        """Run the program for these values of the integers."""
        integers = {i: leaf for i, leaf in enumerate(leaves) if type(leaf) is int}
        fn, count = self._fn, len(leaves)

        def make() -> JaxProgram:
            rest = [i for i in range(count) if i not in integers]
            every: list[Any] = [integers.get(i) for i in range(count)]
            places = tuple(rest.index(place) for place in self._places)
            return JaxProgram(
                self._compiling, lambda few: fn(filled(every, rest, few)), places, True, self._owns
            )

        program = self._of_values.get(tuple(integers.items()), make)
        return program.run([leaf for leaf in leaves if type(leaf) is not int])


def _pull_recorded_pull(
    recorded: RecordedPull, tangents: list[Any], wanted: tuple[int, ...], many: bool
) -> Sequence[Any]:
    """Cotangents of a recorded gradient → to the leaves, then to its own cotangents."""
    run, of = recorded.run, recorded.wanted
    pullback, forward = run.pullback, run.forward
    count = len(forward.places)

    def pull(leaves: list[Any], arrays: list[Any], cotangents: list[Any], tangents: list[Any]) -> list[Any]:
        by_arrays, by_cotangents = pullback.transposed(arrays, cotangents, of, tangents)
        by_leaves: Sequence[Any] = [None] * count
        if any(place < count for place in wanted):
            by_leaves = forward.pull(leaves, [jnp.zeros_like(c) for c in cotangents], by_arrays)
        gradients = [*by_leaves, *by_cotangents]
        return [gradients[place] for place in wanted]

    compiled = pullback.compiled(
        ("recorded", of, wanted, many),
        lambda: jax.vmap(pull, (None, None, None, 0)) if many else pull,
    )
    gradients: list[Any] = compiled(run.leaves, run.arrays, recorded.cotangents, tangents)
    return jax.block_until_ready(gradients)
