"""`BackendUnderTest`: what the author of a backend hands to the kit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any, ClassVar, NoReturn

from gradbridge.architectures import Architecture
from gradbridge.errors import BackendError, OptionError
from gradbridge.layout import Array
from gradbridge.protocol import Adapter, GuestOptions
from gradbridge.registry import Registry, default_registry
from gradbridge.testing.outside import Outside


class NotOfferedError(Exception):
    """A scenario that the backend has no factory for, or a check that cannot apply to it: skipped, with the reason."""


class Native:
    """A model with the keyword arguments that `gradbridge.bridge` needs beside it.

    Args:
        model: the native model or function.
        params: the parameter pytree of a function.
        **options: options of the backend.
    """

    def __init__(self, model: Any, *, params: Any = None, **options: Any) -> None:
        self.model, self.params, self.options = model, params, options


class BackendUnderTest:
    """Factories for the scenarios, written by the author of a backend. Subclass it.

    Each factory takes NumPy float64 arrays and returns the native model or function that holds
    them: whatever one would hand to `gradbridge.bridge`, or `Native(function, params=tree)` where
    keyword arguments are needed. Leave out what the framework cannot do: its rows say so.

    ====================================  ==========================================================
    factory                               the model, x of shape (N, …)
    ====================================  ==========================================================
    mlp(weight1, bias1, weight2, bias2)   tanh(x @ weight1 + bias1) @ weight2 + bias2
    embedding(table)                      table[x], x (N, 3) of integers
    energy()                              f(x, y) = Σ x² y, a 0-d array; no parameters
    outputs(scale)                        {"scaled": x * scale, "rest": (x², Σ scale²)}
    tied(weight)                          tanh(x @ weight) @ weight, one parameter used twice
    unused(weight, spare)                 f(x, y) = exp(x @ weight / 4); spare and y do nothing
    dropout(rate)                         each element of x: 0 with probability rate, else x/(1-rate)
    batchnorm(scale, shift, epsilon)      batch normalization over N, mean 0 and variance 1 stored
    wave(scale)                           f(x, z) = (scale · exp(ix) · z |z|², |z|²), z complex
    broadcast(scale)                      f(t, x, m) = tanh(scale * x + m) * t[:, None], t (N,), m (1, 3)
    masked()                              f(x, m, k) = k * x² where m, else x; m booleans, k integers
    root(scale)                           scale * √x
    switch()                              f(x, name, k) = k * x³ if name == "cube" else k * x²
    labels(scale)                         (scale * x, the column of each row's largest x, integers)
    ====================================  ==========================================================

    Sizes are those of the arrays: mlp is built with other ones, too.

    The arrays may be stored in any order and orientation: the kit finds out which parameter lies
    where in `layout` by building the model once with its parameters numbered.
    """

    #: Name of the backend in the registry.
    backend: ClassVar[str] = ""

    #: The dtypes that ``dtype=`` accepts, the most precise first. The laws are checked in the first.
    dtypes: ClassVar[tuple[str, ...]] = ("float64", "float32")

    #: {factory: why the framework cannot do it}, for those that are left out; and for some checks, see `reading`.
    reasons: ClassVar[Mapping[str, str]] = {}

    #: Whether what the backend's builder makes, by `gradbridge.build`, is checked as well; `find` says
    #: so of every backend that has one.
    builds: bool = False

    def __init__(self, registry: Registry | None = None) -> None:
        self.registry = registry if registry is not None else default_registry()

    def mlp(self, weight1: Array, bias1: Array, weight2: Array, bias2: Array) -> Any:
        """x (N, 3) ↦ tanh(x @ weight1 + bias1) @ weight2 + bias2, (N, 2)."""
        self._leave_out("mlp")

    def embedding(self, table: Array) -> Any:
        """x (N, 3) of integers ↦ table[x], (N, 3, 2)."""
        self._leave_out("embedding")

    def energy(self) -> Any:
        """x, y of one shape, also () ↦ Σ x² y, shape (). A function without parameters."""
        self._leave_out("energy")

    def outputs(self, scale: Array) -> Any:
        """x (N, 2) ↦ {"scaled": x * scale, "rest": (x**2, (scale**2).sum())}."""
        self._leave_out("outputs")

    def tied(self, weight: Array) -> Any:
        """x (N, 3) ↦ tanh(x @ weight) @ weight; the parameter is in the layout once."""
        self._leave_out("tied")

    def unused(self, weight: Array, spare: Array) -> Any:
        """x (N, 3), y (N, 2) ↦ exp(x @ weight / 4); `spare` is a parameter without influence."""
        self._leave_out("unused")

    def dropout(self, rate: float) -> Any:
        """x (N, 8) ↦ x with dropout, no parameters; bridged with ``mode="train"`` and with ``"eval"``."""
        self._leave_out("dropout")

    def batchnorm(self, scale: Array, shift: Array, epsilon: float) -> Any:
        """x (N, 3) ↦ batch normalization, then * scale + shift; statistics move in train mode."""
        self._leave_out("batchnorm")

    def wave(self, scale: Array) -> Any:
        """x (N, 2), z (N, 2) complex ↦ (scale * exp(1j * x) * z * |z|**2, |z|**2)."""
        self._leave_out("wave")

    def broadcast(self, scale: Array) -> Any:
        """t (N,), x (N, 3), m (1, 3) ↦ tanh(scale * x + m) * t[:, None], (N, 3)."""
        self._leave_out("broadcast")

    def masked(self) -> Any:
        """x (N, 2), m (N, 2) booleans, k (N, 2) integers of any width ↦ k * x**2 where m, else x. No parameters."""
        self._leave_out("masked")

    def root(self, scale: Array) -> Any:
        """x (N, 2) ↦ scale * sqrt(x)."""
        self._leave_out("root")

    def switch(self) -> Any:
        """x (N, 2), a string, a Python integer k ↦ k * x**3 if the string is "cube", else k * x**2. No parameters."""
        self._leave_out("switch")

    def labels(self, scale: Array) -> Any:
        """x (N, 2) ↦ (scale * x, argmax(x, axis 1)), the second (N,) of integers, which have no derivative."""
        self._leave_out("labels")

    # -- optional -----------------------------------------------------------------------------

    def state(self, model: Any) -> Any:
        """What must stay as it was, compared with ``==`` before and after (laws 5 and 9).

        For example the model's parameters as bytes, its mode flags and accumulated gradients, and
        the framework's random state, default dtype and flags.

        Args:
            model: what the factory returned.
        """
        return None

    def surroundings(self) -> Iterable[tuple[str, AbstractContextManager[Any]]]:
        """Surroundings that must not matter (law 9): (what they are, a context that sets them up).

        For example another default dtype, another random seed, or a block without gradients.
        """
        return ()

    def counted(self, native: Native) -> tuple[Native, Callable[[], int]] | None:
        """A model whose evaluations can be counted (law 8), where that is possible.

        A compiler evaluates a model once for many calls: the count tells how often at most.

        Args:
            native: what the factory made; it may be changed.

        Returns:
            (the model to bridge, how often it was evaluated so far); by default that of functions alone.
        """
        if not isinstance(native.model, FunctionType):
            return None
        function, calls = native.model, []

        @functools.wraps(function)
        def counting(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return function(*args, **kwargs)

        return Native(counting, params=native.params, **native.options), lambda: len(calls)

    def reading(self, native: Native, outside: Outside) -> Native:
        """`energy` as a function of x alone, which reads y from outside (laws 3 and 4).

        By default that of a function without options. Where your framework means what a function reads to be fixed once
        it is bridged, say so in `reasons` under ``"outside_is_fresh"``: the check is skipped with it.

        Args:
            native: what `energy` made.
            outside: the variable.

        Raises:
            NotOfferedError: there is no such function.
        """
        if not isinstance(native.model, FunctionType) or native.options:
            raise NotOfferedError(
                f"{self.name}: energy() is not a plain function, and reading() was not given"
            )
        return Native(outside.reading(native.model))

    def adapt(self, model: Any, options: GuestOptions) -> Adapter:
        """Make the adapter, by the backend's guest half. Override it to test an adapter alone."""
        return self.registry.guest(self.backend)(model, options)

    def portable(self, architecture: Architecture, params: Mapping[str, Array]) -> Any:
        """The native model of a portable architecture, by the backend's builder.

        Raises:
            NotOfferedError: it has none, or none for layers of this kind.
        """
        if not self.builds:
            raise NotOfferedError(
                f"{self.name}: {self.reasons.get('portable', 'it builds no architectures')}"
            )
        try:
            return self.registry.builder(self.backend)(architecture, dict(params))
        except (BackendError, OptionError) as error:
            raise NotOfferedError(f"{self.name}: {error}") from error

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.backend or type(self).__name__

    def _leave_out(self, factory: str) -> NoReturn:
        reason = self.reasons.get(factory, f"no factory {factory}() was given")
        raise NotOfferedError(f"{self.name}: {reason}")
