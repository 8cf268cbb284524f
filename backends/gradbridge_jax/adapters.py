"""Adapters over JAX arrays: the four steps once for functions, modules and their pullbacks.

Every adapter says how to compute its outputs from arrays, purely; compiled forward and backward
follow, and so does the pullback, by composition: ``jax.vjp`` of that computation is a computation.
"""

from __future__ import annotations

import copy
import threading
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optree

from gradbridge.borders import INEXACT, real_dtype
from gradbridge.constants import constant_key
from gradbridge.errors import GradbridgeError, InputError, NotDifferentiableError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter, Array, Signature
from gradbridge_jax.arrays import compute_device, to_array, to_guest
from gradbridge_jax.explain import NOT_TRACEABLE, explained
from gradbridge_jax.isolation import isolated, key_bits, key_of
from gradbridge_jax.jacobians import RowProgram
from gradbridge_jax.programs import Form, Program, Recent, WayBack, split_output

# Below this many parameters one flat argument, cut inside the program, is quicker than many (35 µs
# against 69 µs for 57 of them in 4 arrays); above it the cuts cost copies (9.5 ms against 7.1 ms for 670k).
_FLAT_BELOW = 16384


class ArrayAdapter(Adapter):
    """A pure function of JAX arrays.

    Args:
        label: what errors call it.
        layout: of the parameters.
        dtypes: of each parameter in the computation.
        dtype: of floating inputs in the computation; None keeps theirs.
        device: where it computes; None is where JAX likes.
        jit: True, False, or ``"auto"``: compiled, unless the model cannot be traced.
        state: arrays of the model that are no parameters.
    """

    def __init__(
        self,
        label: str,
        layout: ParameterLayout,
        dtypes: Sequence[np.dtype[Any]],
        dtype: np.dtype[Any] | None,
        device: jax.Device | None,
        jit: bool | str,
        state: Sequence[Any] = (),
    ) -> None:
        self.label = label
        self.layout = layout
        self._dtypes = tuple(dtypes)
        self._dtype = dtype
        self._device = device
        self._jit = jit
        self._state = tuple(state)
        self._moves = threading.Lock()
        one = len(set(self._dtypes)) == 1
        self._flat = one and layout.size < _FLAT_BELOW
        self._own_wide: bool | None = None
        if self._dtypes or dtype is not None:
            self._own_wide = any(d == np.float64 for d in (*self._dtypes, dtype))
        self._programs: Recent[Program] = Recent()
        self._row_programs: Recent[RowProgram] = Recent()
        self._derivatives: Recent[PullbackAdapter] = Recent()

    takes_complex = True  # JAX's gradients are the protocol's: ∂/∂x - i ∂/∂y

    #: Whether it draws random numbers, so that a key must be made for each call.
    draws: bool = False

    #: Whether `mode="train"` moves its state.
    moving: bool = False

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """See `Adapter.stochastic`."""
        return self.draws or self.moving

    @abstractmethod
    def compute(
        self,
        pieces: Sequence[jax.Array],
        inputs: list[Any],
        structure: optree.PyTreeSpec,
        key: jax.Array | None,
        state: tuple[Any, ...],
    ) -> tuple[Any, tuple[Any, ...]]:
        """Outputs and the state after it, a pure function of these arguments; traced by JAX.

        Args:
            pieces: one array per parameter.
            inputs: leaves, arrays and others.
            structure: of the inputs.
            key: typed PRNG key of this call, None if `draws` is False.
            state: arrays, as they stand.

        Returns:
            (a pytree of arrays, the new state; empty where it does not move).
        """

    def update(self, params: Array) -> tuple[Array, ...]:
        """See `Adapter.update`: one array, or one per parameter, in the dtype of the computation."""
        if self._flat:
            return (np.array(params, dtype=self._dtypes[0]),)
        return tuple(
            params[where].astype(dtype).reshape(shape)
            for where, dtype, shape in zip(self.layout.slices, self._dtypes, self.layout.shapes)
        )

    def forward(
        self, loaded: tuple[Array, ...], inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """See `Adapter.forward`."""
        wide = self.is_wide(inputs)
        bits = key_bits(self.noise(signature)) if self.draws else None
        arrays, constants = self._sorted(inputs, wide)
        with isolated(wide, self.draws):
            try:
                if self._device is not None:
                    loaded, arrays, bits = jax.device_put((loaded, arrays, bits), self._device)
                program, arguments = None, (loaded, arrays, bits, self.state())
                if self.is_compiled():
                    program = self._program(signature.structure, constants, wrt)
                if program is None:
                    program = self._step_by_step(signature.structure, constants, wrt)
                try:
                    floats, others, form, way, kept, after = program.run(*arguments)
                except NOT_TRACEABLE:
                    if not self._stop_compiling():
                        raise
                    program = self._step_by_step(signature.structure, constants, wrt)
                    floats, others, form, way, kept, after = program.run(*arguments)
                output: Any
                if form.structure is None:
                    output = to_array((floats or others)[0])
                else:
                    leaves = [to_array(leaf) for leaf in form.merge(floats, others)]
                    output = form.assemble(leaves)
            except GradbridgeError:
                raise
            except Exception as error:
                raise explained(error, self.label, inputs) from error
        if after and not signature.replay:
            self.move(after)
        if not wrt:
            return output, None
        dtypes = [leaf.dtype for leaf in floats]
        return output, _Residuals(way, kept, form, dtypes, wrt, wide)

    def backward(
        self, residuals: _Residuals, cotangents: Sequence[Array], wrt: tuple[int, ...]
    ) -> list[Array]:
        """See `Adapter.backward`. JAX returns gradients rather than adding them up, so there is no zero.

        Raises:
            NotDifferentiableError: no output is floating.
        """
        floating = [c for c, yes in zip(cotangents, residuals.form.floating) if yes]
        if not floating:
            raise NotDifferentiableError(
                f"{self.label} returned no floating array, so it has no derivative; return probabilities "
                f"rather than a class, say"
            )
        with isolated(residuals.wide, self.draws):
            try:
                pulled: list[Any] = [np.asarray(c, d) for c, d in zip(floating, residuals.dtypes)]
                if self._device is not None:
                    pulled = jax.device_put(pulled, self._device)
                places = tuple(residuals.wrt.index(position) for position in wrt)
                found = residuals.way.pull(residuals.kept, pulled, places)
                return [
                    self._flat_gradient(gradient) if position == 0 else to_array(gradient)
                    for position, gradient in zip(wrt, found)
                ]
            except Exception as error:
                raise explained(error, f"the derivative of {self.label}", floating) from error

    def backward_many(
        self, residuals: _Residuals, cotangents: Sequence[Array], wrt: tuple[int, ...]
    ) -> list[Array] | None:
        """See `Adapter.backward_many`: ``jax.vmap`` of the VJP. None where JAX cannot batch an operation."""
        floating = [c for c, yes in zip(cotangents, residuals.form.floating) if yes]
        places = tuple(residuals.wrt.index(position) for position in wrt)
        with isolated(residuals.wide, self.draws):
            pulled: list[Any] = [np.asarray(c, d) for c, d in zip(floating, residuals.dtypes)]
            try:
                if self._device is not None:
                    pulled = jax.device_put(pulled, self._device)
                found = residuals.way.pull(residuals.kept, pulled, places, many=True)
                return [
                    self._joined_many(gradient, (len(floating[0]),)) if position == 0 else to_array(gradient)
                    for position, gradient in zip(wrt, found)
                ]
            except Exception:  # what vmap refuses, it refuses in many ways
                return None

    def row_jacobians(
        self,
        loaded: tuple[Array, ...],
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        rowed: tuple[bool, ...],
    ) -> list[list[Array]] | None:
        """See `Adapter.row_jacobians`: ``jax.vmap`` of the model's VJP. None for what is not compiled."""
        if self.stochastic or not self.is_compiled():
            return None
        wide = self.is_wide(inputs)
        arrays, constants = self._sorted(inputs, wide)
        statics = tuple((i, constant_key(leaf)) for i, leaf in constants.items())
        if any(static is None for _, static in statics):
            return None
        program = self._row_programs.get(
            (signature.structure, wrt, rowed, statics),
            lambda: RowProgram(self._traced, self.label, signature.structure, constants, wrt, rowed),
        )
        with isolated(wide, self.draws):
            try:
                arguments: Any = (loaded, arrays, self.state())
                if self._device is not None:
                    arguments = jax.device_put(arguments, self._device)
                found, shapes = program.run(*arguments)
                results = []
                for shape, gradients in zip(shapes.of_row, found):
                    mine = []
                    for position, gradient in zip(wrt, gradients):
                        lead = (gradient[0] if position == 0 else gradient).shape[:2]
                        joined = self._joined_many(gradient, lead) if position == 0 else to_array(gradient)
                        mine.append(joined.reshape(lead[0], *shape, *joined.shape[2:]))
                    results.append(mine)
                return results
            except Exception:  # what vmap refuses, it refuses in many ways
                return None

    def pushforward(
        self,
        loaded: tuple[Array, ...],
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        """See `Adapter.pushforward`: ``jax.jvp``. None where JAX has none, as for a ``custom_vjp``."""
        return self._pushed(loaded, inputs, signature, wrt, tangents, False)

    def pushforward_many(
        self,
        loaded: tuple[Array, ...],
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        """See `Adapter.pushforward_many`: ``jax.vmap`` of ``jax.jvp``."""
        return self._pushed(loaded, inputs, signature, wrt, tangents, True)

    def _pushed(
        self,
        loaded: tuple[Array, ...],
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
        many: bool,
    ) -> list[Array] | None:
        wide = self.is_wide(inputs)
        bits = key_bits(self.noise(signature)) if self.draws else None
        arrays, constants = self._sorted(inputs, wide)
        places = [i for i in range(len(inputs)) if i not in constants]
        moves: list[Any] = []
        for position, tangent in zip(wrt, tangents):
            if position == 0:
                moves.append(self._loaded_many(tangent) if many else self.update(tangent))
            else:
                moves.append(tangent.astype(arrays[places.index(position - 1)].dtype))
        program = self._program(signature.structure, constants, wrt) if self.is_compiled() else None
        if program is None:
            program = self._step_by_step(signature.structure, constants, wrt)
        if many in program.refused:
            return None
        with isolated(wide, self.draws):
            try:
                if self._device is not None:
                    loaded, arrays, bits, moves = jax.device_put((loaded, arrays, bits, moves), self._device)
                floats, others, form = program.push(loaded, arrays, bits, self.state(), moves, many)
                lead = tangents[0].shape[:1] if many else ()
                zeros = [np.zeros((*lead, *other.shape)) for other in others]
                return form.merge([to_array(t) for t in floats], zeros)
            except Exception:  # what has no forward mode says so in many ways
                program.refused.add(many)
                return None

    def _sorted(self, inputs: Sequence[Any], wide: bool) -> tuple[list[Any], dict[int, Any]]:
        """Input leaves → (arrays for the guest, {index: what is no array})."""
        arrays: list[Any] = []
        constants: dict[int, Any] = {}
        for index, leaf in enumerate(inputs):
            if type(leaf) is np.ndarray:
                arrays.append(to_guest(leaf, self.input_dtype(index), wide, index))
            else:
                constants[index] = leaf
        return arrays, constants

    def _loaded_many(self, flat: Array) -> tuple[Array, ...]:
        """(many, P) → as `update` loads them, each with the leading axis."""
        if self._flat:
            return (flat.astype(self._dtypes[0]),)
        return tuple(
            flat[:, where].astype(dtype).reshape(len(flat), *shape)
            for where, dtype, shape in zip(self.layout.slices, self._dtypes, self.layout.shapes)
        )

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> PullbackAdapter:
        """See `Adapter.pullback`. Its programs are kept, so that it is traced once, not in every call."""
        shared = self._derivatives.get(
            (signature.structure, wrt), lambda: PullbackAdapter(self, signature.structure, wrt)
        )
        return shared.at_noise(self.noise(signature))

    # -- what a pullback asks of its parent ---------------------------------------------------

    def noise(self, signature: Signature) -> int:
        """The seed of a call's random numbers."""
        return signature.noise

    def input_dtype(self, index: int) -> np.dtype[Any] | None:
        """What an input leaf is cast to if it is floating; None keeps its own."""
        return self._dtype

    def is_wide(self, inputs: Sequence[Any]) -> bool:
        """Whether to compute with 64-bit numbers in existence: if any of them is one, or nobody says."""
        if self._own_wide is not None:
            return self._own_wide
        floating = [real_dtype(x.dtype) for x in inputs if type(x) is np.ndarray and x.dtype.kind in INEXACT]
        return not floating or any(dtype.itemsize >= 8 for dtype in floating)

    def is_compiled(self) -> bool:
        """Whether it is compiled; with ``jit="auto"`` until something cannot be traced."""
        return bool(self._jit)

    def cut(self, loaded: Sequence[Any]) -> Sequence[Any]:
        """What `update` made, or its tracers → one array per parameter."""
        if not self._flat:
            return loaded
        (flat,) = loaded
        return [flat[where].reshape(shape) for where, shape in zip(self.layout.slices, self.layout.shapes)]

    def state(self) -> tuple[Any, ...]:
        """The state as it stands: immutable arrays."""
        return self._state

    def move(self, after: tuple[Any, ...]) -> None:
        """Take the state after a forward."""
        with self._moves:
            self._state = tuple(after)

    # -- private ------------------------------------------------------------------------------

    def _traced(
        self, loaded: Any, inputs: list[Any], structure: optree.PyTreeSpec, bits: Any, state: Any
    ) -> tuple[Any, Any]:
        key = key_of(bits) if bits is not None else None
        return self.compute(self.cut(loaded), inputs, structure, key, state)

    def _program(
        self, structure: optree.PyTreeSpec, constants: dict[int, Any], wrt: tuple[int, ...]
    ) -> Program | None:
        """The compiled program of this structure; None where a constant may change unseen."""
        key: Hashable = (structure, wrt)
        if constants:
            statics = [(index, constant_key(leaf)) for index, leaf in constants.items()]
            if any(static is None for _, static in statics):
                if self._jit is True:
                    kinds = {type(constants[i]).__name__ for i, static in statics if static is None}
                    raise InputError(
                        f"{self.label} was given {', '.join(sorted(kinds))}, which may change between calls, so "
                        f"it cannot be compiled in; leave jit= out, or pass arrays, numbers and strings"
                    )
                return None
            key = (structure, wrt, tuple(statics))
        return self._programs.get(
            key, lambda: Program(self._traced, self.label, structure, constants, wrt, True)
        )

    def _step_by_step(
        self, structure: optree.PyTreeSpec, constants: dict[int, Any], wrt: tuple[int, ...]
    ) -> Program:
        return Program(self._traced, self.label, structure, constants, wrt, False)

    def _stop_compiling(self) -> bool:
        """From now on run step by step, if that is allowed and not what was done already."""
        if self._jit != "auto":
            return False
        self._jit = False
        return True

    def _joined_many(self, gradient: Sequence[jax.Array], lead: tuple[int, ...]) -> Array:
        """Gradients with leading axes → (*lead, P)."""
        flat = np.empty((*lead, self.layout.size))
        if self._flat:
            flat[...] = gradient[0]
            return flat
        for where, piece in zip(self.layout.slices, gradient):
            flat[..., where] = np.asarray(piece).reshape(*lead, -1)
        return flat

    def _flat_gradient(self, gradient: Sequence[jax.Array]) -> Array:
        # Written into the float64 vector directly: the cast is the copy.
        if self._flat:
            return np.array(gradient[0], dtype=np.float64)
        flat = np.empty(self.layout.size)
        for where, piece in zip(self.layout.slices, gradient):
            flat[where] = np.asarray(piece).reshape(-1)
        return flat

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k != "_moves"}
        device = self._device
        state["_device"] = None if device is None else f"{device.platform}:{device.id}"
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._device = compute_device(state["_device"])
        self._moves = threading.Lock()


class PullbackAdapter(ArrayAdapter):
    """The VJP of an array adapter: ``(params, *inputs, *cotangents) ↦ gradients``."""

    def __init__(self, parent: ArrayAdapter, structure: optree.PyTreeSpec, wrt: tuple[int, ...]) -> None:
        super().__init__(
            f"gradient of {parent.label}",
            parent.layout,
            parent._dtypes,
            parent._dtype,
            parent._device,
            parent._jit,
        )
        self.draws = parent.draws
        self._parent, self._structure, self._wrt, self._noise = parent, structure, wrt, 0

    def at_noise(self, noise: int) -> PullbackAdapter:
        """The same with the noise of one call; programs are shared."""
        if noise == self._noise:
            return self
        twin = copy.copy(self)
        twin._noise = noise
        return twin

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self._parent.params()

    def model(self, params: Array) -> Any:
        """See `Adapter.model`: the model that this is a derivative of."""
        return self._parent.model(params)

    def compute(
        self,
        pieces: Sequence[jax.Array],
        inputs: list[Any],
        structure: optree.PyTreeSpec,
        key: jax.Array | None,
        state: tuple[Any, ...],
    ) -> tuple[Any, tuple[Any, ...]]:
        """The gradients; the parent's state does not move."""
        count = self._structure.num_leaves
        primals, cotangents = inputs[:count], inputs[count:]
        forms: list[Form] = []

        def of(wanted: list[Any]) -> list[jax.Array]:
            mine, leaves = pieces, list(primals)
            for position, value in zip(self._wrt, wanted):
                if position == 0:
                    mine = value
                else:
                    leaves[position - 1] = value
            output, _ = self._parent.compute(mine, leaves, self._structure, key, state)
            floats, _, form = split_output(output, self._parent.label)
            forms.append(form)
            return floats

        wanted = [list(pieces) if p == 0 else primals[p - 1] for p in self._wrt]
        outputs, vjp = jax.vjp(of, wanted)
        floating = [c for c, yes in zip(cotangents, forms[0].floating) if yes]
        (gradients,) = vjp([c.astype(output.dtype) for c, output in zip(floating, outputs)])
        joined = [_joined(g) if p == 0 else g for p, g in zip(self._wrt, gradients)]
        return tuple(joined), ()

    def noise(self, signature: Signature) -> int:
        """That of the call which is differentiated."""
        return self._noise

    def input_dtype(self, index: int) -> np.dtype[Any] | None:
        """The parent's for its own inputs; cotangents keep theirs until the outputs are known."""
        return self._parent.input_dtype(index) if index < self._structure.num_leaves else None

    def is_wide(self, inputs: Sequence[Any]) -> bool:
        """As the parent computes."""
        return self._parent.is_wide(inputs[: self._structure.num_leaves])

    def is_compiled(self) -> bool:
        """As the parent is."""
        return self._parent.is_compiled()

    def state(self) -> tuple[Any, ...]:
        """The parent's."""
        return self._parent.state()

    def _stop_compiling(self) -> bool:
        return self._parent._stop_compiling()


class _Residuals:
    """What one forward keeps: the way back, and the arrays that it needs."""

    __slots__ = ("dtypes", "form", "kept", "way", "wide", "wrt")

    def __init__(
        self, way: WayBack, kept: list[Any], form: Form, dtypes: list[Any], wrt: tuple[int, ...], wide: bool
    ) -> None:
        self.way, self.kept, self.form = way, kept, form
        self.dtypes, self.wrt, self.wide = dtypes, wrt, wide


def _joined(pieces: Sequence[jax.Array]) -> jax.Array:
    flat = [piece.reshape(-1) for piece in pieces]
    return jnp.concatenate(flat) if flat else jnp.zeros(0)
