"""The reference guest: a callable with written or numeric derivatives. It needs no framework."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.call_spec import CallSpec, argument_names
from gradbridge.errors import OptionError
from gradbridge.layout import Array, ParameterLayout
from gradbridge.option_values import ANYTHING, POSITIVE, Takes
from gradbridge.options import parameter_array
from gradbridge.protocol import Adapter, GuestOptions, Traits, refuse_unknown_options
from gradbridge.wording import described
from gradbridge_numpy.architectures import Network, NetworkAdapter
from gradbridge_numpy.called import CalledJet, PlainFunction, copies
from gradbridge_numpy.chains import has_second_order
from gradbridge_numpy.closed import FormsAdapter, floating_dtype
from gradbridge_numpy.estimators import EstimatorAdapter, is_estimator
from gradbridge_numpy.numeric import Differences, NumericGradient, NumericJet, numeric_refusal
from gradbridge_numpy.outputs import TriedOutputs
from gradbridge_numpy.rules import Rules
from gradbridge_numpy.traced import system_of
from gradbridge_numpy.written import WrittenJet

OPTIONS = {
    "gradient": Takes("'numeric' or left out", lambda value: isinstance(value, str) and value == "numeric"),
    "vjp": ANYTHING,
    "jvp": ANYTHING,
    "step": POSITIVE,
    "order": Takes(
        "2, 4 or 6, that of central differences",
        lambda value: isinstance(value, (int, np.integer)) and value in (2, 4, 6),
    ),
}


def adapt(model: Callable[..., Any], options: GuestOptions) -> Adapter:
    """Make an adapter of a callable: the guest half of backend ``numpy``.

    Args:
        model: a `Network`, or a fitted scikit-learn estimator of `ESTIMATORS`; or a callable
            ``fn(*inputs)``, or ``fn(parameter tree, *inputs)`` if `options.params` is given.
        options: `dtype` casts what the function sees. Extra options:
            gradient: ``"numeric"`` for finite differences; None for written rules.
            vjp: a written rule for each argument in order, or one alone, as for `defvjp`. A rule that
                takes rules of its own is a `gradbridge_numpy.rules.VJPRule`.
            jvp: likewise, as for `defjvp`.
            step, order: of the finite differences; None leaves them to the library.

    Raises:
        OptionError: an unknown option, or a model that is not callable.
    """
    if is_estimator(model) or isinstance(model, Network):
        refuse_unknown_options("numpy", options.extra, ())
        return (
            NetworkAdapter(model, options) if isinstance(model, Network) else EstimatorAdapter(model, options)
        )
    refuse_unknown_options("numpy", options.extra, OPTIONS)
    if not callable(model):
        raise OptionError(f"backend 'numpy' bridges callables, got {described(model)}")
    if options.device is not None:
        raise OptionError(
            f"backend 'numpy' computes where NumPy does and has no device, got {options.device!r}"
        )
    gradient = options.extra.get("gradient")
    numeric = {k: options.extra[k] for k in ("step", "order") if options.extra.get(k) is not None}
    if numeric and gradient is None:
        raise OptionError(f"{', '.join(numeric)} belong to gradient='numeric', which was not asked for")
    adapter = CallableAdapter(model, options, numeric if gradient else None)
    for option, define in (("vjp", adapter.defvjp), ("jvp", adapter.defjvp)):
        written = options.extra.get(option)
        if written is not None:
            define(*(written if isinstance(written, (tuple, list)) else (written,)))
    return adapter


class CallableAdapter(FormsAdapter):
    """A callable of arrays with its derivatives written down for it, or finite differences."""

    def __init__(
        self, function: Callable[..., Any], options: GuestOptions, numeric: dict[str, Any] | None
    ) -> None:
        self.label = getattr(function, "__name__", type(function).__name__)
        self.dtype = floating_dtype(options.dtype)
        has_params = options.params is not None
        self.layout = ParameterLayout.of_tree(options.params) if has_params else ParameterLayout.empty()
        leaves = trees.flatten(options.params)[0]
        arrays = [parameter_array(leaf, name, "fiu") for leaf, name in zip(leaves, self.layout.names)]
        # Law 5: the caller may change the arrays of the tree later.
        self._present = [np.array(array, dtype=np.float64) for array in arrays]
        self._differences = Differences(numeric, self.label) if numeric is not None else None
        self._rules = Rules.of(function, self.label)
        self._plain = PlainFunction(function, self.label, self.layout, self._rules)
        self._outputs = TriedOutputs(self.label)
        self.argument_names = argument_names(function, skip=int(has_params))
        self._look()

    def renew_pulls(self) -> bool:
        changes = not self._plain.renews
        self._plain = replace(self._plain, renews=True)
        return changes

    def defvjp(self, *makers: Callable[..., Any] | None, argnums: Sequence[int] | None = None) -> Any:
        """Write down the gradient, one maker per argument of the function.

        A maker is called as ``maker(ans, *arguments)``, the function's own arguments after its
        result, and returns ``v ↦ vᵀ ∂ans/∂argument``. None declares that an argument has no
        influence; an argument without a maker cannot be differentiated.

        Args:
            *makers: in the order of the arguments; for a function of parameters the first is theirs,
                and returns a tree like the parameters or the flat vector. Without any, a decorator is
                given back.
            argnums: which arguments they are for; by default 0, 1, 2 …, those of a method after ``self``.
                They count as the function's signature does, where ``self`` is 0.

        Returns:
            The rule, a `VJPRule`, which is called as the maker and takes rules for higher orders by its
            own `defvjp` and `defjvp`; a tuple of them where there are several.

        Raises:
            VJPSignatureError: a maker does not take (ans, *arguments).
        """
        self._refuse_rules("VJP")
        if not makers:
            return lambda maker: self.defvjp(maker, argnums=argnums)
        rules = self._rules.defvjp(*makers, argnums=argnums)
        self._look()
        return rules

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
        if not makers:
            return lambda maker: self.defjvp(maker, argnums=argnums)
        rules = self._rules.defjvp(*makers, argnums=argnums)
        self._look()
        return rules

    @property
    def numeric(self) -> NumericGradient | None:
        """How the numeric gradient is taken and its estimated error so far; None for written ones."""
        return self._differences.account if self._differences is not None else None

    @property
    def gradient_note(self) -> str:  # type: ignore[override]
        """Where the gradient comes from, in words."""
        if self._differences is not None:
            return str(self._differences.account)
        if self._rules.vjps or not self._rules.jvps:
            return "written down" if self._rules.vjps else "not written down yet"
        return "written down as JVPs, one for each number of the argument"

    def weights(self) -> Sequence[Array]:
        return self._present

    def model(self, weights: Sequence[Array]) -> Callable[..., Any]:
        """The function with the parameters filled in: ``fn(*inputs)``."""
        function = copy.copy(self._plain.function)
        if self.layout.structure is None:
            return function
        tree = trees.unflatten(self.layout.structure, self.update(weights))
        return lambda *args, **kwargs: function(tree, *args, **kwargs)

    def forward(
        self, loaded: Sequence[Array], inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """The function gets copies: it cannot write to the caller's arrays."""
        if not wrt:
            return self._plain([*copies(loaded), *map(self.own, inputs)], spec), None
        return super().forward(loaded, inputs, spec, wrt)

    def jet(self, loaded: Sequence[Array], inputs: Sequence[Any], spec: CallSpec) -> CalledJet:
        leaves = [*loaded, *map(self.own, inputs)]
        if self._differences is None:
            return WrittenJet(self._plain, leaves, spec)
        return NumericJet(self._plain, leaves, spec, self._differences)

    def output_spec(self, inputs: Sequence[Any], spec: CallSpec) -> Any:
        def function(leaves: list[Any]) -> Any:
            return self._plain([*self.update(self._present), *map(self.own, leaves)], spec)

        return self._outputs.of(inputs, spec, function)

    def refusal(self, operation: str) -> str:
        if operation == "pullback":
            return self._second_order_refusal()
        if operation == "pushforward" and not self.traits.has_forward_mode:
            return f"no derivative of {self.label} is written down"
        return super().refusal(operation)

    # -- private ------------------------------------------------------------------------------

    def _look(self) -> None:
        """Say what it is like with the rules that are written by now."""
        numeric, vjps, jvps = self._differences is not None, self._rules.vjps, self._rules.jvps
        self.traits = Traits(
            takes_complex=not numeric,  # differences are taken along real numbers alone
            has_forward_mode=numeric or bool(vjps or jvps),
            checks_jvp=False,
            is_gradient_cheap=not numeric and all(argument in vjps for argument in jvps),
        )

    def _refuse_rules(self, kind: str) -> None:
        if self._differences is not None:
            raise OptionError(
                f"{self.label} was made with gradient='numeric'; leave that out to write its {kind}"
            )

    def _second_order_refusal(self) -> str:
        """Why there is no derivative of the gradient, "" where there is for some argument."""
        if self._differences is not None:
            return numeric_refusal(self.label)
        names = self._rules.names
        count = len(names) if names is not None else max([*self._rules.vjps, *self._rules.jvps, 0]) + 1
        if self.traits.has_forward_mode and has_second_order(self._rules, count):
            return ""
        if any(rule is not None and system_of(rule) for rule in self._rules.vjps.values()):
            return ""  # by the system in whose functions a rule is written
        return (
            f"a derivative of the written-down gradient of {self.label} was asked for, and NumPy code cannot be "
            f"differentiated; use first-order derivatives only, write the derivative of Q_vjp, the rule that "
            f"@{self.label}.defvjp gives back, with @Q_vjp.defvjp or @Q_vjp.defjvp, or write {self.label} in a "
            f"framework that has higher orders: @gradbridge.primitive(backend='torch')"
        )
