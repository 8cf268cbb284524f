"""The reference guest: a callable with a written or numeric gradient. It needs no framework.

This is also the smallest complete guest half, and the one to read before writing another.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.errors import (
    BackendUnavailableError,
    GradbridgeError,
    GradientShapeError,
    GuestError,
    HigherOrderError,
    MissingVJPError,
    OptionError,
)
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter, Array, GuestOptions, Signature, refuse_unknown_options
from gradbridge_numpy.architectures import Network, NetworkAdapter
from gradbridge_numpy.estimators import EstimatorAdapter, is_estimator
from gradbridge_numpy.rules import VJPRules

OPTIONS = ("gradient", "vjp", "step", "order")


def adapt(model: Callable[..., Any], options: GuestOptions) -> Adapter:
    """Make an adapter of a callable: the guest half of backend ``numpy``.

    Args:
        model: a `Network`, or a fitted scikit-learn estimator of `estimators.CLASSES`; or a callable ``fn(*inputs)``, or ``fn(parameter tree, *inputs)`` if `options.params` is given.
        options: `dtype` casts what the function sees. Extra options:
            gradient: ``"numeric"`` for finite differences; None for written rules.
            vjp: a written rule for each argument in order, or one alone, as for `defvjp`.
            step, order: of the finite differences; None leaves them to the library.

    Raises:
        OptionError: an unknown option, or a model that is not callable.
    """
    if is_estimator(model):
        refuse_unknown_options("numpy", options.extra, ())
        return EstimatorAdapter(model, options)
    if isinstance(model, Network):
        refuse_unknown_options("numpy", options.extra, ())
        return NetworkAdapter(model, options)
    refuse_unknown_options("numpy", options.extra, OPTIONS)
    if not callable(model):
        raise OptionError(f"backend 'numpy' bridges callables, got a {type(model).__name__}")
    if options.device is not None:
        raise OptionError(
            f"backend 'numpy' computes where NumPy does and has no device, got {options.device!r}"
        )
    gradient = options.extra.get("gradient")
    if gradient not in (None, "numeric"):
        raise OptionError(f"gradient must be 'numeric' or left out, got {gradient!r}")
    numeric = {k: options.extra[k] for k in ("step", "order") if options.extra.get(k) is not None}
    if numeric and gradient is None:
        raise OptionError(f"{', '.join(numeric)} belong to gradient='numeric', which was not asked for")
    adapter = CallableAdapter(model, options, numeric if gradient else None)
    written = options.extra.get("vjp")
    if written is not None:
        adapter.defvjp(*(written if isinstance(written, (tuple, list)) else (written,)))
    return adapter


class CallableAdapter(Adapter):
    """A callable of arrays with a VJP written down for it, or finite differences."""

    def __init__(
        self, function: Callable[..., Any], options: GuestOptions, numeric: dict[str, Any] | None
    ) -> None:
        self.label = getattr(function, "__name__", type(function).__name__)
        self._function = function
        self._dtype = np.dtype(options.dtype) if options.dtype is not None else None
        self._numeric = numeric
        self._has_params = options.params is not None
        self.layout = ParameterLayout.of_tree(options.params) if self._has_params else ParameterLayout.empty()
        # Law 5: the caller may change the arrays of the tree later.
        self._present = self.layout.ravel(options.params) if self._has_params else np.empty(0)
        self._rules = VJPRules(function, self.label)

    def defvjp(self, *makers: Callable[..., Any] | None, argnums: Sequence[int] | None = None) -> None:
        """Write down the gradient, one maker per argument of the function.

        A maker is called as ``maker(ans, *arguments)``, the function's own arguments after its
        result, and returns ``v ↦ vᵀ ∂ans/∂argument``. None declares that an argument has no
        influence; an argument without a maker cannot be differentiated.

        Args:
            *makers: in the order of the arguments; for a function of parameters the first is theirs,
                and returns a tree like the parameters or the flat vector.
            argnums: which arguments they are for; by default 0, 1, 2 …

        Raises:
            VJPSignatureError: a maker does not take (ans, *arguments).
        """
        if self._numeric is not None:
            raise OptionError(
                f"{self.label} was made with gradient='numeric'; leave that out to write its VJP"
            )
        self._rules.define(makers, argnums)

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self._present.copy()

    def model(self, params: Array) -> Callable[..., Any]:
        """The function with the parameters filled in: ``fn(*inputs)``."""
        function = copy.copy(self._function)
        if not self._has_params:
            return function
        tree = self._tree(params.copy())
        return lambda *args, **kwargs: function(tree, *args, **kwargs)

    def update(self, params: Array) -> Array:
        """See `Adapter.update`. A copy, because the caller may change its vector in place."""
        return params.copy()

    def forward(
        self, loaded: Array, inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """See `Adapter.forward`. The function gets copies: it cannot write to the caller's arrays."""
        kept = [self._own(leaf) for leaf in inputs] if wrt else []
        args, kwargs = signature.bind([self._own(leaf) for leaf in inputs])
        # Copied, because the function may return an array that it keeps, or one of its inputs.
        answer = trees_map(np.array, self._call(loaded, args, kwargs))
        if not wrt:
            return answer, None
        return trees_map(np.array, answer), _Residuals(loaded, kept, signature, answer)

    def backward(
        self, residuals: _Residuals, cotangents: Sequence[Array], wrt: tuple[int, ...]
    ) -> list[Array]:
        """See `Adapter.backward`.

        Raises:
            MissingVJPError: an argument has no written rule.
            GradientShapeError: a rule returned a wrong shape.
        """
        if self._numeric is not None:
            return [self._numeric_gradient(residuals, cotangents, position) for position in wrt]
        return [self._written_gradient(residuals, cotangents, position) for position in wrt]

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> Adapter:
        """A written or numeric gradient is opaque, so it cannot be differentiated again.

        Raises:
            HigherOrderError: always.
        """
        how = "numeric" if self._numeric is not None else "written-down"
        raise HigherOrderError(
            f"a derivative of the {how} gradient of {self.label} was asked for, and NumPy code cannot be "
            f"differentiated; use first-order derivatives only, or write {self.label} in a framework that "
            f"has higher orders: @gradbridge.primitive(backend='torch')"
        )

    # -- private ------------------------------------------------------------------------------

    def _own(self, leaf: Any) -> Any:
        if type(leaf) is not np.ndarray:
            return leaf
        if self._dtype is not None and leaf.dtype.kind == "f":
            return leaf.astype(self._dtype)
        return leaf.copy()

    def _tree(self, params: Array) -> Any:
        vector = params if self._dtype is None else params.astype(self._dtype)
        arrays = list(self.layout.unravel(vector).values())
        assert self.layout.structure is not None
        return trees.unflatten(self.layout.structure, arrays)

    def _arguments(self, loaded: Array, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._tree(loaded), *args) if self._has_params else args

    def _call(self, loaded: Array, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            output = self._function(*self._arguments(loaded, args), **kwargs)
        except GradbridgeError:
            raise
        except Exception as error:
            shapes = ", ".join(str(getattr(a, "shape", type(a).__name__)) for a in args)
            raise GuestError(
                f"{self.label} failed on inputs {shapes or '(none)'}: {type(error).__name__}: {error}"
            ) from error
        return np.asarray(output) if isinstance(output, (float, int, np.generic)) else output

    def _written_gradient(self, residuals: _Residuals, cotangents: Sequence[Array], position: int) -> Array:
        # Copies throughout: a rule may write to what it is given, and is asked more than once.
        args, kwargs = residuals.signature.bind([_copied(leaf) for leaf in residuals.leaves])
        arguments = self._arguments(residuals.loaded.copy(), args)
        argument, path = self._argument_of(residuals.signature, position)
        _, structure = trees.flatten(residuals.answer)
        cotangent = trees.unflatten(structure, [np.array(c) for c in cotangents])
        answer = trees_map(np.array, residuals.answer)
        gradient = self._rules.pull(argument, answer, arguments, kwargs, cotangent)
        expected = np.shape(residuals.leaves[position - 1]) if position else (self.layout.size,)
        if gradient is None:
            return np.zeros(expected)
        if position == 0:
            array = self._params_gradient(gradient)
        else:
            array = self._leaf(gradient, args[argument - self._has_params], path)
        if array.shape != expected or array.dtype.kind not in "fiub":
            raise GradientShapeError(
                f"the VJP of {self.label} for argument {argument} must return a real array of that argument's "
                f"shape {expected}, got {array.shape} of dtype {array.dtype}; for a cotangent v of shape "
                f"{np.shape(cotangents[0])} return vᵀ times the Jacobian, summed over the output's axes"
            )
        return np.array(array, dtype=np.result_type(array, np.float32))

    def _params_gradient(self, gradient: Any) -> Array:
        if not isinstance(gradient, (dict, list, tuple)) and np.shape(gradient) == (self.layout.size,):
            return np.asarray(gradient)
        return self.layout.ravel(gradient)

    def _leaf(self, gradient: Any, argument: Any, path: int) -> Array:
        """The part of an argument's gradient that belongs to one leaf of the argument."""
        _, structure = trees.flatten(argument)
        if structure.num_nodes == 1:
            return np.asarray(gradient)
        found, shape = trees.flatten(gradient)
        if shape != structure:
            raise GradientShapeError(
                f"the VJP of {self.label} must return a tree like its argument's, {structure}, got {shape}"
            )
        return np.asarray(found[path])

    def _argument_of(self, signature: Signature, position: int) -> tuple[int, int]:
        """Which argument of the function a leaf position belongs to, and the leaf's place in it."""
        if position == 0:
            return 0, 0
        args, kwargs = signature.bind(range(1, signature.count + 1))
        for index, tree in enumerate(args):
            leaves, _ = trees.flatten(tree)
            if position in leaves:
                return index + int(self._has_params), leaves.index(position)
        names = [name for name, tree in kwargs.items() if position in trees.flatten(tree)[0]]
        raise MissingVJPError(
            f"argument {names[0]!r} of {self.label} was passed by keyword, and written gradients belong to "
            f"positional arguments; pass it by position to differentiate with respect to it"
        )

    def _numeric_gradient(self, residuals: _Residuals, cotangents: Sequence[Array], position: int) -> Array:
        jacobian = residuals.jacobians.get(position)
        if jacobian is None:
            jacobian = residuals.jacobians[position] = self._numeric_jacobian(residuals, position)
        expected = np.shape(residuals.leaves[position - 1]) if position else (self.layout.size,)
        cotangent = np.concatenate([np.ravel(c) for c in cotangents])
        return (cotangent @ jacobian).reshape(expected)

    def _numeric_jacobian(self, residuals: _Residuals, position: int) -> Array:
        try:
            import numdifftools
        except ImportError as error:
            raise BackendUnavailableError(
                "gradient='numeric' needs numdifftools, which is not installed; install it with: "
                'pip install "gradbridge[numeric]"'
            ) from error
        point = residuals.leaves[position - 1] if position else residuals.loaded
        size = int(np.size(point))
        outputs = sum(np.size(leaf) for leaf in trees.flatten(residuals.answer)[0])
        if size == 0 or outputs == 0:
            return np.zeros((outputs, size))

        def flat(x: Array) -> Array:
            leaves, loaded = list(residuals.leaves), residuals.loaded
            if position:
                leaves[position - 1] = x.reshape(np.shape(point)).astype(np.result_type(point, np.float64))
            else:
                loaded = x
            args, kwargs = residuals.signature.bind(leaves)
            result, _ = trees.flatten(self._call(loaded, args, kwargs))
            return np.concatenate([np.ravel(np.asarray(leaf, dtype=np.float64)) for leaf in result])

        # Central differences with Richardson extrapolation, step sizes chosen by the library.
        derivative = numdifftools.Jacobian(flat, method="central", **(self._numeric or {}))
        return np.asarray(derivative(np.ravel(point).astype(np.float64))).reshape(outputs, size)


class _Residuals:
    """Copies of what one call saw and returned; numeric Jacobians are kept once they are computed."""

    __slots__ = ("answer", "jacobians", "leaves", "loaded", "signature")

    def __init__(self, loaded: Array, leaves: list[Any], signature: Signature, answer: Any) -> None:
        self.loaded, self.leaves, self.signature, self.answer = loaded, leaves, signature, answer
        self.jacobians: dict[int, Array] = {}


def _copied(leaf: Any) -> Any:
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def trees_map(convert: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a conversion to every number or array of a tree; leave the rest for the border to refuse."""
    leaves, structure = trees.flatten(tree)
    numbers = (float, int, np.ndarray, np.generic)
    return trees.unflatten(structure, [convert(x) if isinstance(x, numbers) else x for x in leaves])
