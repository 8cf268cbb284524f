"""Derivatives of a plain function from the rules that are written for it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from gradbridge import trees
from gradbridge.admission import as_array
from gradbridge.errors import (
    GradbridgeError,
    GradientShapeError,
    GuestError,
    HigherOrderError,
    InputError,
    MissingVJPError,
    VJPSignatureError,
)
from gradbridge.layout import Array
from gradbridge.wording import described
from gradbridge_numpy.called import CalledJet, copied_tree, copies, kind_of
from gradbridge_numpy.chains import Chain, choose
from gradbridge_numpy.forms import OUTPUTS, Leaves
from gradbridge_numpy.rules import Rules, VJPRule, name_of
from gradbridge_numpy.traced import pulled, system_of


class WrittenJet(CalledJet):
    """Derivatives from written rules.

    Copies are handed out throughout: a rule may write to what it is given, and is asked more than once.
    """

    def form(
        self, places: tuple[int, ...], free: int, fills: Sequence[Leaves | None], wanted: Sequence[int]
    ) -> list[Array] | None:
        """Follow the cheapest chain of rules.

        Raises:
            MissingVJPError: no rule is written for an argument.
            HigherOrderError: no rule is written for the derivative of its rule.
            GradientShapeError: a rule returned a wrong shape.
        """
        if self.plain.renews:
            self.plain(copies(self.leaves), self.spec)
        chain = choose(self.plain.rules, self._count, places, free)
        if chain is None:
            return self._traced(places, free, fills, wanted)
        if chain.zero:
            return None
        if chain.free == free:
            return self._follow(chain, places, fills, wanted)
        return [self._by_units(chain, places, free, fills, leaf) for leaf in wanted]

    def require(self, places: tuple[int, ...], free: int) -> None:
        if choose(self.plain.rules, self._count, places, free) is None and not system_for(
            self.plain.rules, places, free
        ):
            self._refuse(places)

    # -- private ------------------------------------------------------------------------------

    @functools.cached_property
    def _count(self) -> int:
        """How many arguments the function has."""
        names = self.plain.rules.names
        return len(names) if names is not None else len(self._copied_arguments()[0])

    def _copied_arguments(self, chain: Sequence[VJPRule] = ()) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies of the arguments for the next rule of a chain.

        After the first rule come the cotangents, so that what stands before them is filled up: with
        arguments that were passed by keyword, and with defaults.
        """
        args, kwargs = self.plain.bind(copies(self.leaves), self.spec)
        if not chain or self.plain.signature is None:
            return args, kwargs
        bound = self.plain.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        # A default is the function's own.
        args = (*bound.args[: len(args)], *copies(bound.args[len(args) :]))[: chain[0].count]
        names = (self.plain.rules.names or ())[: len(args)]
        return args, {name: value for name, value in kwargs.items() if name not in names}

    def _traced(
        self, places: tuple[int, ...], free: int, fills: Sequence[Leaves | None], wanted: Sequence[int]
    ) -> list[Array]:
        """A form of second order by the system in whose functions the first argument's rule is written."""
        system = system_for(self.plain.rules, places, free)
        if not system:
            self._refuse(places)
        moved, place = places[3 - free], places[free]  # second derivatives are symmetric
        rule = self.plain.rules.vjps[moved]
        assert rule is not None
        start, _ = self._arguments[place]
        like = self.zeros
        along = [like(moved, i) if t is None else np.asarray(t) for i, t in enumerate(fills[3 - free] or ())]

        def gradient(answer: Sequence[Any], arguments: Sequence[Any], cotangents: Sequence[Any]) -> Any:
            args, kwargs = self.plain.bind(arguments, self.spec)
            pull = rule(trees.unflatten(self.structure, answer), *args, **kwargs)
            value = pull(self.tree_of(OUTPUTS, cotangents, self.tree))
            leaves = self.leaves_of(moved, value, "VJP")
            return [like(moved, i) if g is None else g for i, g in enumerate(leaves)]

        cotangents = [like(OUTPUTS, i) if v is None else np.array(v) for i, v in enumerate(fills[0] or ())]
        try:
            gradients, by_answer = pulled(
                system,
                gradient,
                copies(self.answer),
                copies(self.leaves),
                cotangents,
                [start + leaf for leaf in wanted],
                along,
            )
        except GradbridgeError as error:
            self._refuse(
                places, f"; {system}, in whose functions {name_of(rule)} is written, could not: {error}"
            )
        if any(map(np.any, by_answer)):
            first = self.form((OUTPUTS, place), 1, [list(by_answer), None], wanted)
            gradients = [g if f is None else g + f for g, f in zip(gradients, first or [None] * len(wanted))]
        return gradients

    def _follow(
        self, chain: Chain, places: tuple[int, ...], fills: Sequence[Leaves | None], wanted: Sequence[int]
    ) -> list[Array]:
        """Call the rules of a chain, one on the gradient of the other."""
        label, value = self.plain.label, self.tree
        given: list[Any] = []
        for order, (rule, place) in enumerate(zip(chain.rules, chain.taken)):
            cotangent = self._like(value, places[place], fills[place])
            args, kwargs = self._copied_arguments(chain.rules[:order])
            pull = self._called(rule, rule, copied_tree(value), *args, *map(copied_tree, given), **kwargs)
            if not callable(pull):
                what = self.plain.rules.one_each(pull) or "return `lambda v: …`"
                raise VJPSignatureError(
                    f"the VJP maker {name_of(rule)} of {label} must return a function of the cotangent, got "
                    f"{described(pull)}; {what}"
                )
            if order < len(chain.rules) - 1 or chain.last is not None:  # the next rule is given it, too
                given.append(copied_tree(cotangent))
            value = self._called(rule, pull, cotangent)
            self._refuse_none(value, "VJP", chain, places)
        if chain.last is not None:
            args, kwargs = self._copied_arguments(chain.rules)
            moved = chain.order[-1]
            tangent = self._like(args[places[moved]], places[moved], fills[moved])
            args = (tangent, copied_tree(value), *args, *map(copied_tree, given))
            value = self._called(chain.last, chain.last, *args, **kwargs)
            if callable(value):
                raise VJPSignatureError(
                    f"the JVP maker {name_of(chain.last)} of {label} must return the tangent itself, got a function; "
                    f"it is given the tangent t of the argument first: `lambda t, ans, x: …`"
                )
            self._refuse_none(value, "JVP", chain, places)
        place, words = places[chain.free], self._words(chain, places)
        leaves = self.leaves_of(place, value, words[0])
        return [self._checked(leaves[leaf], place, leaf, words, fills) for leaf in wanted]

    def _called(self, rule: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except GradbridgeError:
            raise
        except Exception as error:
            shapes = ", ".join(str(np.shape(a)) for a in args if isinstance(a, (np.ndarray, float)))
            raise GuestError(
                f"the rule {name_of(rule)} that is written for {self.plain.label} failed on arrays of shapes "
                f"{shapes or '(none)'}: {type(error).__name__}: {error}"
            ) from error

    def _by_units(
        self,
        chain: Chain,
        places: tuple[int, ...],
        free: int,
        fills: Sequence[Leaves | None],
        leaf: int,
    ) -> Array:
        """A leaf of a form whose chain leaves another place free, from a unit vector for each of its numbers.

        A complex number has two, and F(1) - i F(i) is what pairs with a tangent t as Re(… t).
        """
        place, other = places[free], places[chain.free]
        weights = {
            i: w for i, w in enumerate(fills[chain.free] or ()) if w is not None and self.moves(other, i)
        }
        gradient = self.zeros(place, leaf)
        filled = list(fills)
        filled[chain.free] = None
        for index in np.ndindex(gradient.shape) if self.moves(place, leaf) else ():
            for size in (1.0, 1.0j) if gradient.dtype.kind == "c" else (1.0,):
                unit = np.zeros_like(gradient)
                unit[index] = size
                filled[free] = [unit if i == leaf else None for i in range(len(self.row(place)))]
                parts = self._follow(chain, places, filled, list(weights))
                along = math.fsum(float(np.sum(np.real(p * w))) for p, w in zip(parts, weights.values()))
                gradient[index] += along / size
        return gradient

    def _like(self, value: Any, place: int, fill: Leaves | None) -> Any:
        """Leaves of a place as the user's value there is: a tree, an array or a flat vector; new arrays.

        A place that is left free in the end is filled with ones: what comes out does not depend on it.
        """
        leaves = [
            self.zeros(place, i) + 1
            if fill is None
            else self.zeros(place, i)
            if fill[i] is None
            else np.array(fill[i])
            for i in range(len(self.row(place)))
        ]
        return self.tree_of(place, leaves, value)

    def _checked(
        self, value: Any, place: int, leaf: int, words: tuple[str, str], fills: Sequence[Leaves | None]
    ) -> Array:
        """One leaf of what a rule returned."""
        like = self.row(place)[leaf]
        if value is None or not self.moves(place, leaf):
            return self.zeros(place, leaf)
        array = value
        if type(value) is not np.ndarray:
            try:
                array = as_array(value, f"what the {words[0]} of {self.plain.label} for {words[1]} returned")
            except InputError:  # arrays of several shapes, say
                several = self.plain.rules.one_each(value) if place != OUTPUTS else ""
                if not several:
                    raise
                raise GradientShapeError(
                    f"the {words[0]} of {self.plain.label} for {words[1]} returned a {type(value).__name__} of "
                    f"{len(value)}; {several}"
                ) from None
        expected, is_complex = np.shape(like), kind_of(like) == "c"
        if array.shape == expected and array.dtype.kind in ("fiubc" if is_complex else "fiub"):
            # Whoever takes it to the host copies it.
            return np.asarray(array, np.result_type(array, np.complex64 if is_complex else np.float32))
        if place == OUTPUTS:
            hint = "return the Jacobian times the tangent t, which is like the argument"
            of = f"the output's shape {expected}"
        else:
            v = next((np.shape(w) for w in fills[0] or () if w is not None), ())
            hint = (
                f"for a cotangent v of shape {v} return vᵀ times the Jacobian, summed over the output's axes"
            )
            several = self.plain.rules.one_each(value)
            if several:
                hint = several
            elif len(fills) > 2:
                hint = "it is like the argument, or for a JVP like the gradient that it is the tangent of"
            of = f"that argument's shape {expected}"
        if array.shape == expected and array.dtype.kind == "c":
            hint = "that of a real argument is the real part: np.real(…)"
        numbers = "an array" if is_complex else "a real array"
        kind, whose = words
        raise GradientShapeError(
            f"the {kind} of {self.plain.label} for {whose} must return {numbers} of {of}, got {array.shape} of "
            f"dtype {array.dtype}; {hint}"
        )

    def _words(self, chain: Chain, places: tuple[int, ...]) -> tuple[str, str]:
        """(kind of rule, arguments that it is for), in words."""
        kind = "JVP" if chain.last is not None else "VJP"
        rule = chain.last if chain.last is not None else chain.rules[-1]
        if len(chain.rules) + (chain.last is not None) > 1:
            kind = f"{kind} {name_of(rule)}"
        return kind, " and ".join(f"argument {places[i]}" for i in chain.order[1:])

    def _refuse_none(self, value: Any, kind: str, chain: Chain, places: tuple[int, ...]) -> None:
        if value is None:
            what = "gradient" if kind == "VJP" else "tangent"
            raise GradientShapeError(
                f"the {kind} of {self.plain.label} for {self._words(chain, places)[1]} returned None; return the {what}, or "
                f"declare that the argument has no influence by giving None in place of the rule"
            )

    def _refuse(self, places: tuple[int, ...], tried: str = "") -> NoReturn:
        rules, label = self.plain.rules, self.plain.label
        keywords = [p for p in places[1:] if p < OUTPUTS]
        if keywords:
            raise MissingVJPError(
                f"argument {self.plain.keyword(keywords[0], self.spec)!r} of {label} was passed by keyword, and "
                f"written gradients belong to positional arguments; pass it by position to differentiate with "
                f"respect to it"
            )
        if len(places) == 2:
            known = sorted({*rules.vjps, *rules.jvps})
            state = (
                f"it has rules for argument {', '.join(map(str, known))} only" if known else "it has no rules"
            )
            counted = f" (argument 0 is {rules.names[0]})" if rules.is_method and rules.names else ""
            how = f"write it with {rules.spelled(places[1])}"
            if self.plain.has_params:
                how = "write it as vjp= of gradbridge.bridge, one rule per argument"
            raise MissingVJPError(
                f"the gradient of {label} with respect to argument {rules.name(places[1])}{counted} was asked for, and "
                f"{state}; {how}, or make the function with gradient='numeric'"
            )
        _refuse_order(rules, places, tried)


def system_for(rules: Rules, places: tuple[int, ...], free: int) -> str | None:
    """The system that differentiates the rule which a form of second order follows from, where there is one."""
    rule = rules.vjps.get(places[3 - free]) if len(places) == 3 and free else None
    return system_of(rule) if rule is not None else None


def _refuse_order(rules: Rules, places: tuple[int, ...], tried: str) -> NoReturn:
    """Say which rule a higher derivative needs."""
    asked = " and then ".join(f"argument {rules.name(a)}" for a in places[1:])
    rule = rules.vjps.get(places[1])
    for argument in places[2:-1]:
        rule = rule.vjps.get(argument) if rule is not None else None
    if rule is not None:
        name = name_of(rule)
        name = name if name.isidentifier() and name != "_" else "Q_vjp"
        how = f"write it with @{name}.defvjp or @{name}.defjvp, {name} being what @defvjp gave for the one before"
    else:
        how = "write the VJPs up to it, each with @….defvjp of the one before"
    raise HigherOrderError(
        f"a derivative of the written-down gradient of {rules.label} was asked for, with respect to {asked}, and no "
        f"rule gives it: NumPy code cannot be differentiated; {how}, or write {rules.label} in a framework that has "
        f"higher orders: @gradbridge.primitive(backend='torch'){tried}"
    )
