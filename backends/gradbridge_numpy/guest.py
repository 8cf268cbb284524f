"""The reference guest: a callable with written or numeric derivatives. It needs no framework."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradbridge.borders import host_dtype
from gradbridge.errors import GradbridgeError, GuestError, HigherOrderError, OptionError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter, Array, GuestOptions, Signature, refuse_unknown_options
from gradbridge.signatures import argument_names
from gradbridge_numpy.architectures import Network, NetworkAdapter
from gradbridge_numpy.called import CalledPoint, Plain, trees_map
from gradbridge_numpy.estimators import EstimatorAdapter, is_estimator
from gradbridge_numpy.forms import has_second_order
from gradbridge_numpy.numeric import Differences, NumericGradient, NumericPoint, refuse_numeric
from gradbridge_numpy.pullbacks import Plan, PullbackAdapter, Root, planned
from gradbridge_numpy.rules import Rules
from gradbridge_numpy.written import WrittenPoint

OPTIONS = ("gradient", "vjp", "jvp", "step", "order")


def adapt(model: Callable[..., Any], options: GuestOptions) -> Adapter:
    """Make an adapter of a callable: the guest half of backend ``numpy``.

    Args:
        model: a `Network`, or a fitted scikit-learn estimator of `estimators.CLASSES`; or a callable ``fn(*inputs)``, or ``fn(parameter tree, *inputs)`` if `options.params` is given.
        options: `dtype` casts what the function sees. Extra options:
            gradient: ``"numeric"`` for finite differences; None for written rules.
            vjp: a written rule for each argument in order, or one alone, as for `defvjp`. A rule that
                takes rules of its own is a `gradbridge_numpy.rules.VJPRule`.
            jvp: likewise, as for `defjvp`.
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
    for option, define in (("vjp", adapter.defvjp), ("jvp", adapter.defjvp)):
        written = options.extra.get(option)
        if written is not None:
            define(*(written if isinstance(written, (tuple, list)) else (written,)))
    return adapter


class CallableAdapter(Root):
    """A callable of arrays with its derivatives written down for it, or finite differences."""

    def __init__(
        self, function: Callable[..., Any], options: GuestOptions, numeric: dict[str, Any] | None
    ) -> None:
        self.label = getattr(function, "__name__", type(function).__name__)
        self._function = function
        self._dtype = np.dtype(options.dtype) if options.dtype is not None else None
        self._differences = Differences(numeric) if numeric is not None else None
        self._has_params = options.params is not None
        self.layout = ParameterLayout.of_tree(options.params) if self._has_params else ParameterLayout.empty()
        # Law 5: the caller may change the arrays of the tree later.
        self._present = self.layout.ravel(options.params) if self._has_params else np.empty(0)
        self._rules = Rules.of(function, self.label)
        layout = self.layout if self._has_params else None
        self.argument_names = argument_names(function, skip=int(self._has_params))
        self._plain = Plain(function, self.label, layout, self._dtype, self._rules)

    def defvjp(self, *makers: Callable[..., Any] | None, argnums: Sequence[int] | None = None) -> Any:
        """Write down the gradient, one maker per argument of the function.

        A maker is called as ``maker(ans, *arguments)``, the function's own arguments after its
        result, and returns ``v ↦ vᵀ ∂ans/∂argument``. None declares that an argument has no
        influence; an argument without a maker cannot be differentiated.

        Args:
            *makers: in the order of the arguments; for a function of parameters the first is theirs,
                and returns a tree like the parameters or the flat vector. Without any, a decorator is
                given back.
            argnums: which arguments they are for; by default 0, 1, 2 …

        Returns:
            The rule, a `VJPRule`, which is called as the maker and takes rules for higher orders by its
            own `defvjp` and `defjvp`; a tuple of them where there are several.

        Raises:
            VJPSignatureError: a maker does not take (ans, *arguments).
        """
        self._refuse_rules("VJP")
        return self._rules.defvjp(makers, argnums)

    def defjvp(self, *makers: Callable[..., Any] | None, argnums: Sequence[int] | None = None) -> Any:
        """Write down the forward mode, one maker per argument of the function.

        A maker is called as ``maker(t, ans, *arguments)`` and returns the tangent of the result,
        ``∂ans/∂argument · t``; t is like the argument. Without a VJP the gradient is made of it, by
        one JVP for each number in the argument.

        Args:
            *makers, argnums: as for `defvjp`.

        Returns:
            The maker; a tuple where there are several.

        Raises:
            VJPSignatureError: a maker does not take (t, ans, *arguments).
        """
        self._refuse_rules("JVP")
        return self._rules.defjvp(makers, argnums)

    @property
    def numeric(self) -> NumericGradient | None:
        """How the numeric gradient is taken and its estimated error so far; None for written ones."""
        return self._differences.told if self._differences is not None else None

    @property
    def gradient_note(self) -> str:  # type: ignore[override]
        """Where the gradient comes from, in words."""
        if self._differences is not None:
            return str(self._differences.told)
        if self._rules.vjps or not self._rules.jvps:
            return "written down" if self._rules.vjps else "not written down yet"
        return "written down as JVPs, one for each number of the argument"

    @property
    def second_order_refusal(self) -> str:  # type: ignore[override]
        """Why there is no derivative of the gradient, "" where there is for some argument."""
        try:
            self._require_second_order()
        except HigherOrderError as error:
            return str(error)
        return ""

    @property
    def takes_complex(self) -> bool:  # type: ignore[override]
        """Whether the gradient is written down: differences are taken along real numbers alone."""
        return self._differences is None

    @property
    def has_forward_mode(self) -> bool:  # type: ignore[override]
        """Whether `pushforward` answers: there is a rule of either kind, or the gradient is numeric."""
        return self._differences is not None or bool(self._rules.vjps or self._rules.jvps)

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self._present.copy()

    def model(self, params: Array) -> Callable[..., Any]:
        """The function with the parameters filled in: ``fn(*inputs)``."""
        function = copy.copy(self._function)
        if not self._has_params:
            return function
        tree = self._plain.tree(params)
        return lambda *args, **kwargs: function(tree, *args, **kwargs)

    def update(self, params: Array) -> Array:
        """See `Adapter.update`. A copy, because the caller may change its vector in place."""
        return params.copy()

    def forward(
        self, loaded: Array, inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """See `Adapter.forward`. The function gets copies: it cannot write to the caller's arrays."""
        if not wrt:
            args, kwargs = signature.bind([self._own(leaf) for leaf in inputs])
            # Copied, because the function may return an array that it keeps, or one of its inputs.
            return trees_map(np.array, self._call(loaded, args, kwargs)), None
        point = self.point(loaded, inputs, signature)
        return trees_map(np.array, point.tree), point

    def backward(
        self, residuals: CalledPoint, cotangents: Sequence[Array], wrt: tuple[int, ...]
    ) -> list[Array]:
        """See `Adapter.backward`.

        Raises:
            MissingVJPError: an argument has no written rule.
            GradientShapeError: a rule returned a wrong shape.
        """
        point = residuals
        return self._plan(point, wrt).compute(point, [point.params, *point.leaves, *cotangents])

    def pushforward(
        self,
        loaded: Array,
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        """See `Adapter.pushforward`: written, or exact from the VJP with one cotangent per output number.

        Raises:
            MissingVJPError: an argument has no written rule.
            GradientShapeError: a rule returned a wrong shape.
        """
        if not self.has_forward_mode:
            return None
        point = self.point(loaded, inputs, signature)
        return self._plan(point).pushed(wrt).compute(point, [point.params, *point.leaves, *tangents])

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> Adapter:
        """See `Adapter.pullback`.

        It can always be differentiated by its cotangents. Where no rule gives the derivative by an
        argument, its forward says so when that is asked for.

        Raises:
            HigherOrderError: nothing at all is written down.
        """
        if not self.has_forward_mode:
            self._require_second_order()
        return PullbackAdapter(self, signature, (wrt,))

    def point(self, loaded: Array, inputs: Sequence[Any], signature: Signature) -> CalledPoint:
        """See `Root.point`."""
        kept = [self._own(leaf) for leaf in inputs]
        args, kwargs = signature.bind([self._own(leaf) for leaf in inputs])
        answer = trees_map(np.array, self._call(loaded, args, kwargs))
        if self._differences is None:
            return WrittenPoint(self._plain, loaded, kept, signature, answer)
        return NumericPoint(self._plain, loaded, kept, signature, answer, self._call, self._differences)

    def places(self, signature: Signature) -> dict[int, tuple[int, ...]]:
        """See `Root.places`."""
        return self._plain.places(signature)

    # -- private ------------------------------------------------------------------------------

    def _own(self, leaf: Any) -> Any:
        if type(leaf) is not np.ndarray:
            return leaf
        return leaf.copy() if self._dtype is None else leaf.astype(host_dtype(leaf.dtype, self._dtype))

    def _call(self, loaded: Array, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            output = self._function(*self._plain.arguments(loaded, args), **kwargs)
        except GradbridgeError:
            raise
        except Exception as error:
            shapes = ", ".join(str(getattr(a, "shape", type(a).__name__)) for a in args)
            raise GuestError(
                f"{self.label} failed on inputs {shapes or '(none)'}: {type(error).__name__}: {error}"
            ) from error
        return np.asarray(output) if isinstance(output, (float, int, complex, np.generic)) else output

    def _plan(self, point: CalledPoint, *wrts: tuple[int, ...]) -> Plan:
        return planned(tuple(point.places.items()), len(point.leaves), len(point.answer), wrts)

    def _refuse_rules(self, kind: str) -> None:
        if self._differences is not None:
            raise OptionError(
                f"{self.label} was made with gradient='numeric'; leave that out to write its {kind}"
            )

    def _require_second_order(self) -> None:
        if self._differences is not None:
            refuse_numeric(self.label)
        names = self._rules.names
        count = len(names) if names is not None else max([*self._rules.vjps, *self._rules.jvps, 0]) + 1
        if not self.has_forward_mode or not has_second_order(self._rules, count):
            raise HigherOrderError(
                f"a derivative of the written-down gradient of {self.label} was asked for, and NumPy code cannot be "
                f"differentiated; use first-order derivatives only, write the derivative of Q_vjp, the rule that "
                f"@{self.label}.defvjp gives back, with @Q_vjp.defvjp or @Q_vjp.defjvp, or write {self.label} in a "
                f"framework that has higher orders: @gradbridge.primitive(backend='torch')"
            )
