"""Written derivatives: what `defvjp` and `defjvp` take in, checked when they are written.

The rules of a function make a tree: a VJP rule is itself a function, ``(*arguments, v) ↦ gradient``,
and takes rules of its own. `gradbridge_numpy.chains` finds the one that gives a derivative.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from gradbridge.errors import VJPSignatureError
from gradbridge.wording import described

Maker = Callable[..., Any]

#: What the object is called whose method a function is.
_RECEIVERS = (("self",), ("cls",))

#: What the cotangent of each order is called in messages.
COTANGENTS = ("v", "u", "w")


class Rules:
    """The rules of one function, by the number of the argument that they are for.

    Args:
        label: what errors call the function.
        names: of its arguments; None where they are not known or not limited.
        required: how many of them have no default.
        order: 0 for a function of the user's, 1 for its VJP, and so on.
        count: for a VJP, how many arguments stand before its cotangents; None if that is not known.

    Attributes:
        vjps: {argument: rule}; None where the argument is declared to have no influence.
        jvps: {argument: maker}, likewise.
    """

    def __init__(
        self,
        label: str,
        names: tuple[str, ...] | None,
        required: int,
        order: int = 0,
        count: int | None = None,
    ) -> None:
        self.label, self.names, self.required = label, names, required
        self.order, self.count = order, count
        self.vjps: dict[int, VJPRule | None] = {}
        self.jvps: dict[int, Maker | None] = {}

    @classmethod
    def of(cls, function: Callable[..., Any], label: str) -> Rules:
        """No rules yet, for a function as its signature tells."""
        return Rules(label, positional_names(function), _arity(function)[0])

    @property
    def is_method(self) -> bool:
        """Whether the first argument is the object, or the class, whose method the function is."""
        return (self.names or ())[:1] in _RECEIVERS

    def spelled(self, argument: int) -> str:
        """How a VJP for an argument is written down: ``@Q.defvjp``, or ``@Q.defvjp(argnums=(1,))``."""
        name = self.label if self.label.isidentifier() else "f"  # a lambda has no name to write
        return f"@{name}.defvjp" + ("" if argument == int(self.is_method) else f"(argnums=({argument},))")

    def one_each(self, value: Any) -> str:
        """What to do instead of a rule that returns something for each argument; "" where `value` is not that."""
        names = (self.names or ())[int(self.is_method) :]
        if not isinstance(value, (tuple, list)) or not len(value) == len(names) > 1:
            return ""
        return f"write one rule per argument: defvjp({', '.join(f'rule_{name}' for name in names)})"

    def name(self, argument: int) -> str:
        """An argument in words: ``1 (x)``."""
        if self.names and argument < len(self.names):
            return f"{argument} ({self.names[argument]})"
        return str(argument)

    def defvjp(self, *makers: Maker | None, argnums: Sequence[int] | None = None) -> Any:
        """Write down the VJP, one maker per argument.

        The maker of a function is called as ``maker(ans, *arguments)`` and returns
        ``v ↦ vᵀ ∂ans/∂argument``. That of a VJP, which makes a second derivative, is called as
        ``maker(gradient, *arguments, v)``, where gradient is what the VJP gives for v, and returns
        ``u ↦ uᵀ ∂gradient/∂argument``; u is like the gradient. None declares that an argument has no
        influence. The maker for v, the last argument, can be left out: that derivative is the JVP.

        Args:
            *makers: in the order of the arguments; without any, a decorator is given back.
            argnums: which arguments they are for; by default 0, 1, 2 …, those of a method after ``self``.

        Returns:
            The rule, which takes rules of its own for the next order; a tuple where there are several.

        Raises:
            VJPSignatureError: a maker has the wrong arity, or there are more than arguments.
        """
        if not makers:
            return lambda maker: self.defvjp(maker, argnums=argnums)
        numbers = self._numbers("defvjp", makers, argnums)
        for number, maker in zip(numbers, makers):
            self._check("VJP", maker, (self._answer,))
            if maker is None and self.names is not None and number >= len(self.names) - self.order:
                raise VJPSignatureError(
                    f"defvjp of {self.label} got None for {self.names[number]}, which says that the gradient does not "
                    f"depend on its cotangent; leave that rule out, it follows from the others"
                )
        rules = [m if m is None or isinstance(m, VJPRule) else VJPRule(m, self) for m in makers]
        self.vjps.update(zip(numbers, rules))
        return rules[0] if len(rules) == 1 else tuple(rules)

    def defjvp(self, *makers: Maker | None, argnums: Sequence[int] | None = None) -> Any:
        """Write down the JVP, one maker per argument.

        The maker of a function is called as ``maker(t, ans, *arguments)`` and returns the tangent of
        the result; that of a VJP as ``maker(t, gradient, *arguments, v)``, and returns the tangent of
        the gradient. It is enough for second order, for second derivatives are symmetric: what
        `gradbridge_numpy.chains` makes of it.

        Args:
            *makers, argnums: as for `defvjp`.

        Returns:
            The maker; a tuple where there are several.

        Raises:
            VJPSignatureError: as for `defvjp`.
        """
        if not makers:
            return lambda maker: self.defjvp(maker, argnums=argnums)
        numbers = self._numbers("defjvp", makers, argnums)
        for maker in makers:
            self._check("JVP", maker, ("t", self._answer))
        self.jvps.update(zip(numbers, makers))
        return makers[0] if len(makers) == 1 else makers

    # -- private ------------------------------------------------------------------------------

    @property
    def _answer(self) -> str:
        return "gradient" if self.order else "ans"

    def _numbers(self, what: str, makers: Sequence[Any], argnums: Sequence[int] | None) -> list[int]:
        first = self._first(what, makers) if argnums is None else 0
        numbers = list(range(first, first + len(makers))) if argnums is None else list(argnums)
        if len(numbers) != len(makers):
            raise VJPSignatureError(
                f"{what} of {self.label} got {len(makers)} rules and {len(numbers)} argnums; give one rule per argument"
            )
        for number in numbers:
            if number < 0 or (self.names is not None and number >= len(self.names)):
                raise VJPSignatureError(
                    f"{what} of {self.label} got a rule for argument {number}, but {self.label} takes "
                    + (f"{len(self.names)}: {', '.join(self.names) or 'none'}" if self.names is not None
                       else "arguments 0, 1, 2 …")
                )  # fmt: skip
        return numbers

    def _first(self, what: str, makers: Sequence[Any]) -> int:
        """The argument that the first maker is for: of a method the one after ``self``, which nobody differentiates."""
        names = self.names or ()
        if not self.is_method or len(makers) >= len(names):
            return 0
        if makers[0] is None and len(makers) > 1:
            raise VJPSignatureError(
                f"{what} of {self.label} got None as the first of {len(makers)} rules, which may be meant for "
                f"{names[0]} or for {names[1]}; leave {names[0]} out and say argnums="
                f"{tuple(range(1, len(makers)))} for the rest, or argnums={tuple(range(1, len(makers) + 1))} for all"
            )
        return 1

    def _check(self, kind: str, maker: Any, first: tuple[str, ...]) -> None:
        if maker is None:
            return
        if not callable(maker):
            several = (
                "; give one rule per argument, not a list of them" if isinstance(maker, (tuple, list)) else ""
            )
            raise VJPSignatureError(
                f"def{kind.lower()} of {self.label} takes functions or None, got {described(maker)}{several}"
            )
        names = positional_names(maker)
        if names is None or self.names is None:
            return
        expected = (*first, *self.names)
        asked = f"the {kind} maker {name_of(maker)} of {self.label}"
        if names[: 1 + len(first)] == ("self", *first):
            raise VJPSignatureError(
                f"{asked} must take the answer first, got ({', '.join(names)}); write ({', '.join(expected)})"
            )
        required, most = _arity(maker)
        # The function may be called with fewer arguments than it has, if some have defaults.
        if required > len(expected) or most < len(first) + self.required:
            raise VJPSignatureError(
                f"{asked} must take {len(expected)} arguments, ({', '.join(expected)}), got ({', '.join(names)})"
            )


class VJPRule(Rules):
    """A written VJP: its maker, and as a function ``(*arguments, v) ↦ gradient`` with rules of its own.

    It is called as the maker that it was made from. `defvjp` gives one back for each maker; make
    one by hand where a maker goes into ``gradbridge.bridge(…, vjp=…)`` and has rules of its own.

    Args:
        maker: ``maker(ans, *arguments)``, returns ``v ↦ gradient``.
        of: the rules that it is one of; None for a maker of a function's VJP that stands alone.
    """

    def __init__(self, maker: Maker, of: Rules | None = None) -> None:
        self.maker = maker
        order = of.order if of is not None else 0
        names, count = (of.names, of.count) if of is not None else (None, None)
        own = positional_names(maker)
        if order == 0 and own is not None:
            # It may take fewer arguments than the function, if some have defaults.
            count = len(own) - 1
            names = (names or own[1:])[:count]
        cotangent = COTANGENTS[order] if order < len(COTANGENTS) else f"u{order}"
        known = None if names is None else (*names, cotangent)
        super().__init__(name_of(maker), known, len(known or ()), order + 1, count)
        functools.update_wrapper(self, maker, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the maker."""
        return self.maker(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<VJPRule {self.label}>"


def name_of(function: Any) -> str:
    """What errors call a rule."""
    return getattr(function, "__name__", type(function).__name__)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin or a ctypes function tells nothing about itself
        return None


def positional_names(function: Callable[..., Any]) -> tuple[str, ...] | None:
    """Names of the positional parameters; None if they are not known or not limited."""
    parameters = _parameters(function)
    if parameters is None or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _arity(function: Callable[..., Any]) -> tuple[int, int]:
    parameters = [
        p for p in _parameters(function) or [] if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return sum(p.default is p.empty for p in parameters), len(parameters)
