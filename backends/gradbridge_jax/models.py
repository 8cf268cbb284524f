"""What all kinds of JAX models have in common."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np

from gradbridge.closures import surroundings
from gradbridge.errors import GradbridgeError, OptionError
from gradbridge.framework import Framework, Model
from gradbridge.inspection import Stranger
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Array, GuestOptions
from gradbridge_jax.arrays import OnDevice, compute_device, floating_dtype, has_64_bits, own_device
from gradbridge_jax.explain import explain_error
from gradbridge_jax.isolation import (
    bits_of,
    enable_x64,
    eval_context,
    flags_within,
    isolated,
    key_bits,
    key_of,
    of_bits,
    present_flags,
    under_flags,
    usual_flags,
)


class JaxModel(OnDevice, Model):
    """A model that is called with weights, a key if it draws, and its state.

    Args:
        label: what errors call it.
        layout: of the weights.
        dtypes: of each weight in the computation.
        dtype: of floating inputs in the computation; None keeps theirs.
        options: of the bridge.
        arrays: its own, which may lie on a device.
        state: arrays of the model that are not weights.
        has_key: whether each call is given a key.
        moves: whether `mode="train"` moves its state.
    """

    def __init__(
        self,
        label: str,
        layout: ParameterLayout,
        dtypes: Sequence[np.dtype[Any]],
        dtype: np.dtype[Any] | None,
        options: GuestOptions,
        arrays: Sequence[Any] = (),
        state: Sequence[Any] = (),
        has_key: bool = False,
        moves: bool = False,
    ) -> None:
        self.label, self.layout = label, layout
        # Where JAX likes is where it liked when the bridge was made.
        liked = jax.config.jax_default_device  # type: ignore[attr-defined]
        self.device = compute_device(options.device) or own_device(arrays) or compute_device(liked)
        self.state: tuple[Any, ...] = tuple(state)
        self.has_key, self.moves = has_key, moves
        self.draws = has_key or moves
        self._flags = usual_flags(has_key)
        readers = self.readers() if options.extra.get("jit", "auto") is not False else ()
        self.surroundings = surroundings(*readers) if readers else None
        self._compute_in(dtypes, dtype)

    def readers(self) -> Sequence[Any]:
        """Functions and objects whose code is traced: what it reads from outside is watched."""
        return ()

    def owns(self, native: Any) -> bool:
        """Whether an array is a parameter of the user's own model, which no call may be computed with."""
        return any(own is native for own in self.weights())

    def stranger(self, native: Any) -> Stranger:
        for name, own in zip(self.layout.names, self.weights()):
            if own is native:
                where = (
                    "a function or an object that refers to the module that was bridged, or to a part of it"
                )
                return Stranger(f"{name}, by way of {where}", True)
        return super().stranger(native)

    def _compute_in(self, dtypes: Sequence[np.dtype[Any]], dtype: np.dtype[Any] | None) -> None:
        self.dtypes, self.dtype = tuple(dtypes), dtype
        own = [d for d in (*self.dtypes, dtype) if d is not None]
        self._x64: bool | None = any(d == np.float64 for d in own) if own else None

    def in_dtype(self, name: str) -> Self:
        dtype = floating_dtype(name)
        if not self.layout.names or (self.dtype == dtype and all(d == dtype for d in self.dtypes)):
            return self  # without parameters it computes in the dtype of its inputs, or as it was asked to
        twin = copy.copy(self)
        twin._compute_in([dtype] * len(self.dtypes), dtype)
        with isolated(True):
            twin._recast(dtype)
        return twin

    def _evaluating(self, key: str | None = None) -> Self:
        """A copy that is to be in eval mode: it moves no state, and draws nothing but for an argument `key`."""
        twin = copy.copy(self)
        twin.shares_state, twin.moves, twin.draws = self.moves, False, key is not None
        return twin

    def _recast(self, dtype: np.dtype[Any]) -> None:
        """Bring what is fixed in a model, as it was bridged, into another dtype: `in_dtype` of one kind."""

    def __deepcopy__(self, memo: dict[int, Any]) -> JaxModel:
        # Nothing in it is written to: a state that moves is another tuple. (JAX's structures may hold
        # markers that are known by their identity, as Equinox's do, and bear no deep copy.)
        return copy.copy(self)

    def leaf(self, framework: Framework, index: int, array: Any, inputs: Sequence[Any]) -> Any:
        if type(array) is int:
            return array  # a leaf of its own: compiled in only where it must be
        return framework.asarray(array, self.dtype, f"input {index}")  # type: ignore[call-arg]

    def extras(self, noise: int) -> Sequence[Any]:
        return (key_bits(noise), *self.state) if self.has_key else self.state

    def opened(self, extras: Sequence[Any]) -> tuple[jax.Array | None, Sequence[Any]]:
        """What `extras` gave, as (key of this call, state)."""
        return (key_of(extras[0]), extras[1:]) if self.has_key else (None, extras)

    def move(self, after: Sequence[Any]) -> None:
        self.state = tuple(after)

    def follow(self, other: Self) -> None:
        with isolated(True):
            self.state = tuple(
                new if new.dtype == own.dtype else new.astype(own.dtype)
                for new, own in zip(other.state, self.state)
            )

    def statistics(self) -> Mapping[str, Array]:
        if not self.moves:
            return {}
        with isolated(True):
            return {f"state.{i}": np.array(bits_of(x)) for i, x in enumerate(self.state)}

    def set_statistics(self, arrays: Mapping[str, Array]) -> None:
        with isolated(True):
            self.state = tuple(
                x if (new := arrays.get(f"state.{i}")) is None else of_bits(new, x)
                for i, x in enumerate(self.state)
            )

    def uses_x64(self, inputs: Sequence[Any]) -> bool:
        """Whether 64-bit numbers exist in a call: if any of its numbers is one, or nobody says."""
        return self._x64 if self._x64 is not None else has_64_bits(inputs)

    def isolated(
        self, thunk: Callable[[], Any], inputs: Sequence[Any], noise: int | None, record: bool
    ) -> Any:
        # `isolation.isolated` without its generators, which cost four calls of ours in each step.
        x64 = has_64_bits(inputs) if self._x64 is None else self._x64
        if jax.config.jax_enable_x64 is not x64:  # type: ignore[attr-defined]
            with eval_context(), enable_x64(x64):
                return self._under_flags(thunk)
        with eval_context():
            return self._under_flags(thunk)

    def _under_flags(self, thunk: Callable[[], Any]) -> Any:
        if present_flags(jax.config) == self._flags:
            return thunk()
        with under_flags(self._flags):
            return thunk()

    def inlines(self) -> bool:
        # A program without 64-bit numbers has no place for a model that computes in them.
        has_place = not self._x64 or bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
        return has_place and not self.moves

    def within(self, compute: Callable[[list[Any]], Any], weights: list[Any], others: list[Any]) -> Any:
        with flags_within(self._flags):
            return compute([*weights, *others])

    def explain(self, error: Exception, inputs: Sequence[Any], doing: str = "") -> GradbridgeError:
        return explain_error(error, f"{doing} {self.label}" if doing else self.label, inputs)

    def own_weights(self, weights: Sequence[Array]) -> list[jax.Array]:
        """Weights as arrays of JAX's own, in the dtype and on the device of the computation."""
        with isolated(self.uses_x64(())):
            return [jax.device_put(np.array(w, d), self.device) for w, d in zip(weights, self.dtypes)]


def refuse_options(options: GuestOptions, names: Sequence[str], reason: str) -> None:
    """Raise for options of this backend that mean nothing to one kind of model.

    Raises:
        OptionError: one of them was given.
    """
    for name in names:
        if options.extra.get(name) is not None:
            raise OptionError(f"option {name!r} {reason}")
