"""What one trace of a computation gives: the forward, and its pullback, as functions of arrays alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbridge.framework import Computation, Form, filled
from gradbridge_jax.isolation import isolated
from gradbridge_jax.jaxprs import constant_arrays, has_primitive


@jax.tree_util.register_static
@dataclass(frozen=True)
class Trace:
    """Which trace of a program a result came from: static, so it leaves the trace in the result's structure.

    A number, and not what it stands for: JAX keeps thousands of such structures in tables of its own, and
    with them whatever they hold. A bridge that was dropped would leave 1.6 to 9 MB behind.
    """

    number: int


class CompiledPullback:
    """JAX's VJP of one trace, as a function of the arrays that this trace leaves for it.

    With the VJP itself as a result of one compiled function and an argument of the other, its
    structure is taken apart and compared in Python in every call: 80 of 140 µs for 11 parameters.

    Args:
        vjp: (arrays, cotangents) ↦ gradients of all leaves that the program is pulled back to.
        jitted: whether it is compiled.
    """

    def __init__(self, vjp: Callable[[list[Any], list[Any]], Sequence[Any]], jitted: bool) -> None:
        self._vjp, self._jitted = vjp, jitted
        self._compiled: dict[Hashable, Callable[..., Any]] = {}
        #: What `compiled` made for a key, or None: no call of ours.
        self.find = self._compiled.get
        #: Whether 64-bit numbers exist in it.
        self.x64: bool = jax.config.jax_enable_x64  # type: ignore[attr-defined]
        #: Whether it, and the forward, may be differentiated in a trace other than theirs; None is not known yet.
        self.is_recorded: bool | None = None

    def pull(self, wanted: tuple[int, ...], many: bool = False) -> Callable[..., Any]:
        """(arrays of the VJP, cotangents) ↦ gradients of the leaves `wanted`; no others are computed.

        Args:
            wanted: places among the leaves that the program is pulled back to.
            many: whether the cotangents have a leading axis, which the gradients get, too.
        """
        vjp = jax.vmap(self._vjp, (None, 0)) if many else self._vjp

        def pull(arrays: list[Any], cotangents: list[Any]) -> list[Any]:
            gradients = vjp(arrays, cotangents)
            return [gradients[place] for place in wanted]

        return self.compiled((wanted, many), lambda: pull)

    def transposed(
        self, arrays: list[Any], cotangents: list[Any], wanted: tuple[int, ...], tangents: list[Any]
    ) -> tuple[list[Any], list[Any]]:
        """The VJP of `pull`: → (gradients by its floating arrays, by its cotangents)."""

        def pull(floating: list[Any], cotangents: list[Any]) -> Any:
            return gradients(filled(arrays, places, floating), cotangents)

        places, gradients = inexact_places(arrays), self.pull(wanted)
        _, vjp = jax.vjp(pull, [arrays[i] for i in places], cotangents)
        by_arrays, by_cotangents = vjp(tangents)
        return by_arrays, by_cotangents

    def compiled(self, key: Hashable, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """A function that belongs to this trace, made and compiled once; it may hold no arrays."""
        known = self._compiled.get(key)
        if known is None:
            made = _apart(make())
            known = self._compiled[key] = jax.jit(made) if self._jitted else made
        return known


def _apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, each of whose results has memory of its own: not that of an argument, nor of another result."""

    def apart(*arguments: Any) -> Any:
        taken = {id(leaf) for leaf in jax.tree.leaves(arguments)}

        def own(result: Any) -> Any:
            if id(result) in taken or not isinstance(
                result, jax.Array
            ):  # a constant of a trace, of JAX's own kind
                return jnp.array(result)
            taken.add(id(result))
            return result

        return jax.tree.map(own, function(*arguments))

    return apart


class Forward:
    """A computation as a function that JAX runs, and what was found out while it was traced.

    Args:
        fn: the computation.
        places: of the leaves that it is pulled back to.
        jitted: whether it is compiled, or run step by step.
    """

    def __init__(self, fn: Computation, places: tuple[int, ...], jitted: bool) -> None:
        self.places, self.jitted = places, jitted
        #: By the number of the trace: how the outputs are together, the pullback if there is one, and which of its
        #: arrays are leaves: these do not leave the forward, where they would be copied.
        self.traces: dict[int, tuple[Form, CompiledPullback | None, dict[int, int]]] = {}
        forward = _recording(fn, places, jitted, self.traces) if places else _plain(fn, self.traces)
        #: leaves ↦ (floats, others, state after it, the trace, arrays that the pullback needs and that are not leaves)
        self.run: Callable[[list[Any]], Any] = jax.jit(forward) if jitted else forward

    def pull(self, leaves: list[Any], cotangents: list[Any], by_arrays: list[Any]) -> list[Any]:
        """Pull cotangents of the outputs, and of the pullback's floating arrays, back to the leaves."""

        def of(values: list[Any]) -> tuple[list[Any], list[Any]]:
            given = filled(leaves, self.places, values)
            floats, _, _, trace, own = self.run(given)
            arrays = self.arrays(trace, own, given)
            return floats, [arrays[i] for i in inexact_places(arrays)]

        _, vjp = jax.vjp(of, [leaves[i] for i in self.places])
        gradients: list[Any] = vjp((cotangents, by_arrays))[0]
        return gradients

    def arrays(self, trace: Trace, own: list[Any], leaves: list[Any]) -> list[Any]:
        """What the pullback of a trace needs: what the forward made for it, and leaves."""
        given = self.traces[trace.number][2]
        if not given:
            return own
        rest = iter(own)
        return [leaves[given[i]] if i in given else next(rest) for i in range(len(own) + len(given))]

    def constants(self, run: Run) -> list[Any]:
        """The arrays that a run was computed with and that are none of its leaves."""
        if not self.jitted:
            return []
        with isolated(run.pullback.x64):  # it is traced already
            return list(constant_arrays(self.run.trace(run.leaves).jaxpr))  # type: ignore[attr-defined]

    def may_leave_its_trace(self, run: Run, cotangents: list[Any]) -> bool:
        """Whether derivatives of a run and of its pullback, as they were traced, hold for themselves.

        What a custom rule closes over does not come out of its trace, where the rule is applied later on.
        """
        pullback, every = run.pullback, tuple(range(len(self.places)))
        traced = self.run.trace(run.leaves), pullback.pull(every).trace(run.arrays, cotangents)  # type: ignore[attr-defined]
        if not any(has_primitive(each.jaxpr, "custom_vjp_call") for each in traced):
            return True

        def derivatives(leaves: list[Any], arrays: list[Any], cotangents: list[Any]) -> Any:
            tangents = [leaves[place] for place in self.places]
            by_arrays, by_cotangents = pullback.transposed(arrays, cotangents, every, tangents)
            return self.pull(leaves, cotangents, by_arrays), by_cotangents

        try:
            closed = jax.make_jaxpr(derivatives)(run.leaves, run.arrays, cotangents)
        except jax.errors.UnexpectedTracerError:
            return False
        return not any(isinstance(array, jax.core.Tracer) for array in constant_arrays(closed))


@dataclass(slots=True)
class Run:
    """What a forward keeps.

    Attributes:
        forward: that was run.
        leaves: at which it was run.
        pullback: of its trace.
        arrays: that the pullback needs.
    """

    forward: Forward
    leaves: list[Any]
    pullback: CompiledPullback
    arrays: list[Any]


def inexact_places(arrays: Sequence[Any]) -> list[int]:
    """Which of some arrays are floating or complex."""
    return [i for i, array in enumerate(arrays) if _is_inexact(array)]


def _is_inexact(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))


def _plain(fn: Computation, traces: dict[int, Any]) -> Callable[[list[Any]], Any]:
    numbers = itertools.count()

    def forward(leaves: list[Any]) -> Any:
        floats, others, form, after = fn(leaves)
        trace = Trace(next(numbers))
        traces[trace.number] = (form, None, {})
        return floats, others, after, trace, []

    return forward


def _recording(
    fn: Computation, places: tuple[int, ...], jitted: bool, traces: dict[int, Any]
) -> Callable[[list[Any]], Any]:
    numbers = itertools.count()

    def forward(leaves: list[Any]) -> Any:
        form: Any = None

        def of(values: list[Any]) -> Any:
            nonlocal form
            floats, others, form, after = fn(filled(leaves, places, values))
            return floats, (others, after)

        floats, vjp, (others, after) = jax.vjp(of, [leaves[i] for i in places], has_aux=True)
        pull, arrays = _staged(vjp, floats) if jitted else _flattened(vjp)
        trace = Trace(next(numbers))
        tracers = {id(leaf): i for i, leaf in enumerate(leaves) if jitted and _is_inexact(leaf)}
        given = {i: tracers[id(array)] for i, array in enumerate(arrays) if id(array) in tracers}
        traces[trace.number] = (form, CompiledPullback(pull, jitted), given)
        return floats, others, after, trace, [a for i, a in enumerate(arrays) if i not in given]

    return forward


def _staged(vjp: Callable[[list[Any]], Any], floats: list[Any]) -> tuple[Callable[..., Any], list[Any]]:
    """A VJP within a trace → (arrays, cotangents) ↦ gradients, and its arrays, which leave the trace.

    All of them are found by tracing it: what the VJP has as a pytree leaves out what a custom rule closes
    over, which implicit layers do. What is constant in the trace stays a constant of the pull.
    """
    try:
        closed = jax.make_jaxpr(lambda cotangents: vjp(cotangents)[0])(floats)
    except ValueError as error:  # a loop that has no reverse mode: its value is to be had, and its tangents
        said = str(error)

        def refused(arrays: list[Any], cotangents: list[Any]) -> list[Any]:
            raise ValueError(said)

        return refused, []
    # The user may change NumPy's in place before a pull of them is compiled.
    jaxpr, constants = closed.jaxpr, [np.array(c) if isinstance(c, np.ndarray) else c for c in closed.consts]
    places = [i for i, constant in enumerate(constants) if isinstance(constant, jax.core.Tracer)]
    arrays = [constants[i] for i in places]
    for i in places:
        constants[i] = None  # a trace must not outlive itself

    def pull(arrays: list[Any], cotangents: list[Any]) -> list[Any]:
        return jax.core.eval_jaxpr(jaxpr, filled(constants, places, arrays), *cotangents)

    return pull, arrays


def _flattened(vjp: Callable[[list[Any]], Any]) -> tuple[Callable[..., Any], list[Any]]:
    """The same of a VJP outside of any trace, where it holds nothing but numbers."""
    arrays, structure = jax.tree.flatten(vjp)
    return lambda arrays, cotangents: jax.tree.unflatten(structure, arrays)(cotangents)[0], arrays
