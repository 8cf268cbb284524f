"""What a callable calls its arguments, so that users may name them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ArgumentNames:
    """Names of the inputs of a model.

    Attributes:
        positional: of the positional ones, in order.
        keywords: of those that come by keyword only.
        closed: whether there can be no others, by ``*args`` or ``**kwargs``.
    """

    positional: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    closed: bool = False


def argument_names(function: Callable[..., Any], skip: int = 0) -> ArgumentNames:
    """Names of the arguments of a callable.

    Args:
        function: anything that can be called; a bound method has no ``self``.
        skip: how many positional ones to leave out: 1 for the parameter tree of a function.

    Returns:
        The names; none where they are not known, as of a builtin or a ctypes function.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ArgumentNames()
    by_position = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return ArgumentNames(
        tuple(by_position[skip:]),
        tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY),
        not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters),
    )
