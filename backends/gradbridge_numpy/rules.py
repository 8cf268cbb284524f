"""Written gradients: the rules of `defvjp`, checked when they are written and when they are used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from gradbridge.errors import GradientShapeError, MissingVJPError, VJPSignatureError

Maker = Callable[..., Callable[[Any], Any]]


class VJPRules:
    """The VJP makers of one function, by the position of its argument."""

    def __init__(self, function: Callable[..., Any], label: str) -> None:
        self._label = label
        self._names = _positional_names(function)
        self._required = _arity(function)[0]
        self._makers: dict[int, Maker | None] = {}

    def define(self, makers: Sequence[Maker | None], argnums: Sequence[int] | None) -> None:
        """Take rules in; see `CallableAdapter.defvjp`.

        Raises:
            VJPSignatureError: a maker has the wrong arity, or there are more than arguments.
        """
        numbers = list(range(len(makers))) if argnums is None else list(argnums)
        if len(numbers) != len(makers):
            raise VJPSignatureError(
                f"defvjp of {self._label} got {len(makers)} rules and {len(numbers)} argnums; give one each"
            )
        for number, maker in zip(numbers, makers):
            if self._names is not None and not 0 <= number < len(self._names):
                raise VJPSignatureError(
                    f"defvjp of {self._label} got a rule for argument {number}, but {self._label} takes "
                    f"{len(self._names)}: {', '.join(self._names) or 'none'}"
                )
            if maker is not None:
                self._check(maker)
        self._makers.update(zip(numbers, makers))

    def pull(
        self, argument: int, answer: Any, arguments: Sequence[Any], kwargs: dict[str, Any], cotangent: Any
    ) -> Any:
        """The gradient that the rule of one argument gives; None where it has no influence.

        Raises:
            MissingVJPError: the argument has no rule.
            VJPSignatureError: the maker did not return a function.
        """
        if argument not in self._makers:
            name = self._names[argument] if self._names and argument < len(self._names) else str(argument)
            if self._makers:
                state = f"it has rules for argument {', '.join(map(str, sorted(self._makers)))} only"
            else:
                state = "it has none"
            raise MissingVJPError(
                f"the gradient of {self._label} with respect to argument {argument} ({name}) was asked for, and "
                f"{state}; write it with @{self._label}.defvjp, or make the function with "
                f"gradient='numeric'"
            )
        maker = self._makers[argument]
        if maker is None:
            return None
        pullback = maker(answer, *arguments, **kwargs)
        if not callable(pullback):
            raise VJPSignatureError(
                f"the VJP maker {_name(maker)} of {self._label} must return a function of the cotangent, got "
                f"{type(pullback).__name__}; return `lambda v: …`"
            )
        gradient = pullback(cotangent)
        if gradient is None:
            raise GradientShapeError(
                f"the VJP of {self._label} for argument {argument} returned None; return the gradient, or declare "
                f"that the argument has no influence by giving None in place of the rule"
            )
        return gradient

    def _check(self, maker: Maker) -> None:
        if not callable(maker):
            raise VJPSignatureError(
                f"defvjp of {self._label} takes functions or None, got {type(maker).__name__}"
            )
        names = _positional_names(maker)
        if names is None or self._names is None:
            return
        expected = ("ans", *self._names)
        if names[:2] == ("self", "ans"):
            raise VJPSignatureError(
                f"the VJP maker {_name(maker)} of {self._label} must take the answer first, got "
                f"({', '.join(names)}); write ({', '.join(expected)})"
            )
        required, most = _arity(maker)
        # The function may be called with fewer arguments than it has, if some have defaults.
        if required > len(expected) or most < 1 + self._required:
            raise VJPSignatureError(
                f"the VJP maker {_name(maker)} of {self._label} must take {len(expected)} arguments, "
                f"({', '.join(expected)}), got ({', '.join(names)})"
            )


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin or a ctypes function tells nothing about itself
        return None


def _positional_names(function: Callable[..., Any]) -> tuple[str, ...] | None:
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
