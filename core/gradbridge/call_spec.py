"""How one call's arguments fit together, and what a callable calls them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import optree

from gradbridge import trees


@dataclass(frozen=True)
class CallSpec:
    """What is static about one call: its structure, and where its noise comes from.

    Attributes:
        structure: the pytree of ``(args, kwargs)`` that the input leaves came from.
        noise: seed of the guest's random numbers in this call. Always the same for the same
            seed; a replay of the call uses the same one, so it draws the same masks.
        replay: True where the call repeats one that was already made (a derivative of a
            derivative). State that moves once per forward (BatchNorm statistics) stays put.
        packed: True where the weights come as one leaf, the flat vector of all of them, to be cut
            within the computation. Only adapters that ask for it (`Traits.packs`) meet that.
        lent: True where the arrays of the call stay as they are for as long as what it records lives, so that a guest
            need not copy them.
    """

    structure: optree.PyTreeSpec
    noise: int = 0
    replay: bool = False
    packed: bool = False
    lent: bool = False

    @classmethod
    def of_arrays(cls, count: int, noise: int = 0) -> CallSpec:
        """The spec of a call with `count` positional arrays."""
        return cls(_structure_of_arrays(count), noise)

    @property
    def count(self) -> int:
        """Number of input leaves."""
        return self.structure.num_leaves

    def bind(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Leaves → ``(args, kwargs)`` as the user passed them."""
        bound: Any = optree.tree_unflatten(self.structure, leaves)
        args, kwargs = bound
        return args, kwargs

    def __reduce__(self) -> Any:
        # As a tree: another process may not have met the classes in it, which optree has to be told of.
        return _unpickled, (trees.numbered(self.structure), self.noise, self.replay, self.packed, self.lent)

    def replayed(self) -> CallSpec:
        """The same call again, leaving moving state alone."""
        return self if self.replay else replace(self, replay=True)


def _unpickled(tree: Any, *rest: Any) -> CallSpec:
    return CallSpec(trees.flatten(tree)[1], *rest)


@lru_cache(maxsize=256)
def _structure_of_arrays(count: int) -> optree.PyTreeSpec:
    call: Any = ((0,) * count, {})
    return optree.tree_structure(call, namespace="gradbridge")


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
