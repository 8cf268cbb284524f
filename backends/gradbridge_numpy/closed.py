"""Adapters whose derivatives are forms: closed under differentiation, to the order that the forms are known."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from gradbridge.borders import INEXACT, host_dtype
from gradbridge.call_spec import CallSpec
from gradbridge.errors import HigherOrderError, Unsupported
from gradbridge.layout import Array
from gradbridge.options import floating_name
from gradbridge.protocol import Adapter, ArraySpec, Traits
from gradbridge_numpy.forms import Jet, Potential, potential


def floating_dtype(name: str | None) -> np.dtype[Any] | None:
    """One of NumPy's floating dtypes by its name; None for None.

    Raises:
        OptionError: none of them.
    """
    full = floating_name(name, ("float64", "float32", "float16"))
    return np.dtype(full) if full is not None else None


class FormsAdapter(Adapter):
    """A function whose derivatives are forms.

    Attributes:
        dtype: that it computes in; None for that of what it is given.
    """

    dtype: np.dtype[Any] | None = None

    # Rules are the user's word, and a JVP may be made of many VJPs.
    traits = Traits(has_forward_mode=True, checks_jvp=False)

    @abstractmethod
    def jet(self, loaded: Sequence[Array], inputs: Sequence[Any], spec: CallSpec) -> Jet:
        """Evaluate, and keep copies of what that took."""

    def in_dtype(self, name: str) -> Self:
        dtype = floating_dtype(name)
        if self.dtype is None or self.dtype == dtype:
            return self  # it computes in the dtype of what it is given, or in this one
        twin = copy.copy(self)
        twin.dtype = dtype
        return twin

    def in_eval_mode(self) -> Self:
        return self  # nothing here has a mode

    def update(self, weights: Sequence[Any]) -> list[Array]:
        arrays = [self.own(w if hasattr(w, "dtype") else np.asarray(w)) for w in weights]
        # A tree may hold Python's integers, which are parameters all the same.
        return [a if a.dtype.kind in INEXACT else a.astype(self.dtype or np.float64) for a in arrays]

    def forward(
        self, loaded: Sequence[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        jet = self.jet(loaded, inputs, spec)
        return jet.tree, (jet if wrt else None)

    def backward(self, residuals: Jet, cotangents: Sequence[Any], wrt: tuple[int, ...]) -> list[Array]:
        jet = residuals
        values = [*_unread(jet), *map(self.border.view, cotangents)]
        return potential(jet.arguments, len(jet.answer)).gradients(jet, values, wrt)

    def pushforward(
        self,
        loaded: Sequence[Array],
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Any],
    ) -> tuple[Any, list[Array]]:
        """Written, or exact from the VJP with one cotangent per output number."""
        if not self.traits.has_forward_mode:
            raise Unsupported(self.refusal("pushforward"))
        jet = self.jet(loaded, inputs, spec)
        start, count = _unread(jet), len(jet.answer)
        values = [*start, *[None] * count, *map(self.border.view, tangents)]
        outputs = range(len(start), len(start) + count)
        return jet.tree, potential(jet.arguments, count, wrt).gradients(jet, values, outputs)

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        """It can always be differentiated by its cotangents, for it is linear in them.

        Where the derivative by an argument is not known, its forward says so when that is asked for.
        """
        if not self.traits.has_forward_mode:
            raise HigherOrderError(self.refusal("pullback"))
        return PullbackAdapter(self, spec, (wrt,), residuals)

    def own(self, leaf: Any) -> Any:
        """A copy of an array in the dtype of the computation; what is not an array as it is."""
        if type(leaf) is not np.ndarray:
            if not hasattr(leaf, "__dlpack__"):
                return leaf
            leaf = self.border.view(leaf)
        return leaf.copy() if self.dtype is None else leaf.astype(host_dtype(leaf.dtype, self.dtype))


class PullbackAdapter(Adapter):
    """A derivative of an adapter of forms: ``(*weights, *inputs, *cotangents …) ↦ gradients``.

    Args:
        root: the adapter that is differentiated.
        spec: of its call.
        wrts: the arguments of each pullback, one on the other.
        jet: of that call, where it is known.
    """

    def __init__(
        self, root: FormsAdapter, spec: CallSpec, wrts: tuple[tuple[int, ...], ...], jet: Jet | None
    ) -> None:
        self.label = "gradient of " * len(wrts) + root.label
        self.layout, self.traits, self.gradient_note = root.layout, root.traits, root.gradient_note
        self.step = "forward" if jet is None else "backward"
        self._root, self._spec, self._wrts, self._jet = root, spec, wrts, jet

    def weights(self) -> Sequence[Any]:
        return self._root.weights()

    def model(self, weights: Sequence[Array]) -> Any:
        """The function that this is a derivative of."""
        return self._root.model(weights)

    def update(self, weights: Sequence[Any]) -> Any:
        return self._root.update(weights) if self._jet is None else None

    def forward(
        self, loaded: Any, inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        jet, values = self._at(loaded, inputs)
        gradients = self._potential(jet).gradients(jet, values, self._wrts[-1])
        if not wrt:
            return tuple(gradients), None
        # What is not known is refused before anybody waits for it.
        self._potential(jet, self._wrts[-1]).require(jet, wrt)
        # Copies: the caller may change its arrays before it pulls back.
        return tuple(gradients), (jet, [None if v is None else np.array(v) for v in values])

    def backward(self, residuals: Any, cotangents: Sequence[Any], wrt: tuple[int, ...]) -> list[Array]:
        jet, values = residuals
        values = [*values, *map(self.border.view, cotangents)]
        return self._potential(jet, self._wrts[-1]).gradients(jet, values, wrt)

    def pushforward(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Any],
    ) -> tuple[Any, list[Array]]:
        jet, values = self._at(loaded, inputs)
        gradients = self._potential(jet).gradients(jet, values, self._wrts[-1])
        values = [*values, *map(self.border.view, tangents)]
        return tuple(gradients), self._potential(jet, wrt).gradients(jet, values, self._wrts[-1])

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        jet, _ = residuals or (None, None)
        return PullbackAdapter(self._root, self._spec, (*self._wrts, wrt), jet)

    def output_spec(self, inputs: Sequence[Any], spec: CallSpec) -> Any:
        dtype = self._root.dtype or np.dtype(np.float64)
        weights = [ArraySpec(shape, dtype) for shape in self.layout.shapes]
        if self._root.dtype is not None:  # floating inputs are cast to it on their way in
            cast = self._root.dtype
            inputs = [
                ArraySpec(x.shape, host_dtype(x.dtype, cast)) if isinstance(x, ArraySpec) else x
                for x in inputs
            ]
        arguments = [*weights, *inputs]
        return tuple(arguments[position] for position in self._wrts[-1])

    def _at(self, loaded: Any, inputs: Sequence[Any]) -> tuple[Jet, list[Any]]:
        """The function at the point of a call, and the values of all positions there."""
        count = self._spec.count
        jet = self._jet
        if jet is None:
            jet = self._root.jet(loaded, inputs[:count], self._spec)
        return jet, [*_unread(jet), *map(self.border.view, inputs[count:])]

    def _potential(self, jet: Jet, *last: tuple[int, ...]) -> Potential:
        return potential(jet.arguments, len(jet.answer), *self._wrts[:-1], *last)


def _unread(jet: Jet) -> list[Any]:
    """In place of the arguments of a function: they are in its jet."""
    return [None] * sum(count for _, count in jet.arguments)
