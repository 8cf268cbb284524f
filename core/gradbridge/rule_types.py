"""What type checkers are told of rules that are written down; at run time nothing here is used.

A `Primitive` hands `defvjp` and `defjvp` on to its adapter, which no type checker can follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

Maker = Callable[..., Any] | None


class TakesRules:
    """Whatever takes rules: one maker per argument, or none for a decorator."""

    @overload
    def defvjp(self, maker: Maker, /, *, argnums: Sequence[int] | None = None) -> Rule: ...
    @overload
    def defvjp(self, *, argnums: Sequence[int] | None = None) -> Callable[[Callable[..., Any]], Rule]: ...
    @overload
    def defvjp(
        self, first: Maker, second: Maker, /, *more: Maker, argnums: Sequence[int] | None = None
    ) -> Any: ...
    def defvjp(self, *makers: Maker, argnums: Sequence[int] | None = None) -> Any:
        """Write down the VJP: ``maker(ans, *arguments)`` returns ``v ↦ vᵀ ∂ans/∂argument``."""
        raise NotImplementedError

    @overload
    def defjvp(self, maker: Maker, /, *, argnums: Sequence[int] | None = None) -> Rule: ...
    @overload
    def defjvp(self, *, argnums: Sequence[int] | None = None) -> Callable[[Callable[..., Any]], Rule]: ...
    @overload
    def defjvp(
        self, first: Maker, second: Maker, /, *more: Maker, argnums: Sequence[int] | None = None
    ) -> Any: ...
    def defjvp(self, *makers: Maker, argnums: Sequence[int] | None = None) -> Any:
        """Write down the JVP: ``maker(t, ans, *arguments)`` returns ``∂ans/∂argument · t``."""
        raise NotImplementedError


class Rule(TakesRules):
    """A rule that was written down: called as its maker, and taking rules of its own for the next order."""

    def __call__(self, *arguments: Any) -> Any:
        """What the maker returns for these."""
        raise NotImplementedError
