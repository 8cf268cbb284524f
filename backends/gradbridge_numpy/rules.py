"""Written derivatives: what `defvjp` and `defjvp` take in, checked when it is written.

The rules of a function make a tree: a VJP rule is a function itself, ``(*arguments, v) ↦ gradient``,
and has rules of its own. `gradbridge_numpy.forms` finds in it the rule for a derivative.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from gradbridge.errors import VJPSignatureError

Maker = Callable[..., Any]

# What the cotangents of each order are called in messages.
_COTANGENTS = ("v", "u", "w")


class Rules:
    """The rules of one function, by the number of the argument that they are for.

    Args:
        label: what errors call the function.
        names: of its arguments; None where they are not known or not limited.
        required: how many of them have no default.
        answer: what the first argument of a maker is called.

    Attributes:
        vjps: {argument: rule}; None where the argument is declared to have no influence.
        jvps: {argument: maker}, likewise.
    """

    def __init__(
        self, label: str, names: tuple[str, ...] | None, required: int, answer: str = "ans"
    ) -> None:
        self.label, self.names = label, names
        self._required, self._answer = required, answer
        self.vjps: dict[int, VJPRule | None] = {}
        self.jvps: dict[int, Maker | None] = {}

    @classmethod
    def of(cls, function: Callable[..., Any], label: str) -> Rules:
        """No rules yet, for a function as its signature tells."""
        return cls(label, positional_names(function), _arity(function)[0])

    def define_vjps(self, makers: Sequence[Maker | None], argnums: Sequence[int] | None) -> Any:
        """Take VJP makers in; see `CallableAdapter.defvjp`.

        Returns:
            The rule, or a tuple of them where there are several.

        Raises:
            VJPSignatureError: a maker has the wrong arity, or there are more than arguments.
        """
        numbers = self._numbers("defvjp", makers, argnums)
        for maker in makers:
            self._check("VJP", maker, (self._answer,))
        order = 1 if self._answer == "ans" else len(self.names or ()) - self._order_base() + 1
        rules = [self._rule(maker, order) for maker in makers]
        self.vjps.update(zip(numbers, rules))
        return rules[0] if len(rules) == 1 else tuple(rules)

    def define_jvps(self, makers: Sequence[Maker | None], argnums: Sequence[int] | None) -> Any:
        """Take JVP makers in; see `CallableAdapter.defjvp`.

        Returns:
            The maker, or a tuple of them where there are several.

        Raises:
            VJPSignatureError: as for `define_vjps`.
        """
        numbers = self._numbers("defjvp", makers, argnums)
        for maker in makers:
            self._check("JVP", maker, ("t", self._answer))
        self.jvps.update(zip(numbers, makers))
        return makers[0] if len(makers) == 1 else tuple(makers)
