"""A plain function, and what one call of it saw and returned."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree

from gradbridge import trees
from gradbridge.borders import INEXACT
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Array, Signature
from gradbridge_numpy.forms import OUTPUTS
from gradbridge_numpy.pullbacks import Point
from gradbridge_numpy.rules import Rules

NUMBERS = (float, int, complex, np.ndarray, np.generic)


@dataclass(frozen=True)
class Plain:
    """A plain function as its rules see it.

    Attributes:
        function: the user's.
        label: what errors call it.
        layout: of its parameters; None for a function of arrays alone.
        dtype: that parameters are handed over in, or None.
        rules: that are written for it.
    """

    function: Callable[..., Any]
    label: str
    layout: ParameterLayout | None
    dtype: np.dtype[Any] | None
    rules: Rules

    def tree(self, params: Array) -> Any:
        """A flat vector → the tree of parameters, new arrays."""
        assert self.layout is not None
        assert self.layout.structure is not None
        vector = params.copy() if self.dtype is None else params.astype(self.dtype)
        return trees.unflatten(self.layout.structure, list(self.layout.unravel(vector).values()))

    def arguments(self, params: Array, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """All positional arguments of the function."""
        return args if self.layout is None else (self.tree(params), *args)

    def places(self, signature: Signature) -> dict[int, tuple[int, ...]]:
        """{argument: positions of its leaves}; those that are passed by keyword are -2, -3 …"""
        found = {argument: positions for argument, (positions, _) in _places(signature.structure).items()}
        if self.layout is None:
            return found
        return {0: (0,), **{(a + 1 if a >= 0 else a): positions for a, positions in found.items()}}

    def structure(self, argument: int, signature: Signature) -> optree.PyTreeSpec:
        """The tree of an argument other than the parameters."""
        shift = int(self.layout is not None and argument >= 0)
        return _places(signature.structure)[argument - shift][1]

    def keyword(self, argument: int, signature: Signature) -> str:
        """The name of an argument that was passed by keyword."""
        _, kwargs = signature.bind(range(signature.count))
        return list(kwargs)[-2 - argument]

    @functools.cached_property
    def signature(self) -> inspect.Signature | None:
        """Of the function, where it tells."""
        try:
            return inspect.signature(self.function)
        except (TypeError, ValueError):
            return None


@functools.lru_cache(maxsize=1024)
def _places(call: optree.PyTreeSpec) -> dict[int, tuple[tuple[int, ...], optree.PyTreeSpec]]:
    """{argument: (positions of its leaves, its structure)}; asked on every call, so it is remembered."""
    args, kwargs = trees.unflatten(call, range(1, call.num_leaves + 1))
    found = {}
    for argument, tree in [*enumerate(args), *((-2 - i, tree) for i, tree in enumerate(kwargs.values()))]:
        positions, structure = trees.flatten(tree)
        found[argument] = (tuple(positions), structure)
    return found


class CalledPoint(Point):
    """Copies of what one call of a plain function saw and returned.

    Args:
        plain: the function.
        params: the vector.
        leaves: of the inputs.
        signature: of the call.
        answer: what it returned.
    """

    def __init__(
        self, plain: Plain, params: Array, leaves: list[Any], signature: Signature, answer: Any
    ) -> None:
        self.plain, self.params, self.leaves, self.signature = plain, params, leaves, signature
        self.tree = answer
        self.answer, self.structure = trees.flatten(answer)
        self.places = plain.places(signature)

    def shape(self, place: int, leaf: int) -> tuple[int, ...]:
        """Of one leaf of an argument or of the outputs; the parameters are one vector."""
        if place == OUTPUTS:
            return np.shape(self.answer[leaf])
        position = self.places[place][leaf]
        return np.shape(self.leaves[position - 1]) if position else self.params.shape

    def zeros(self, place: int, leaf: int) -> Array:
        """Zeros like one leaf of an argument or of the outputs, complex where that is."""
        return np.zeros(
            self.shape(place, leaf), np.complex128 if self.is_complex(place, leaf) else np.float64
        )

    def is_complex(self, place: int, leaf: int) -> bool:
        """Whether a leaf of an argument or of the outputs is complex."""
        return self._kind(place, leaf) == "c"

    def moves(self, place: int, leaf: int) -> bool:
        """Whether a leaf has a derivative: an output that is not floating or complex has none."""
        return place != OUTPUTS or self._kind(place, leaf) in INEXACT

    def _kind(self, place: int, leaf: int) -> str:
        if place == OUTPUTS:
            return np.asarray(self.answer[leaf]).dtype.kind
        position = self.places[place][leaf]
        return np.asarray(self.leaves[position - 1]).dtype.kind if position else "f"


def trees_map(convert: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a conversion to every number or array of a tree; leave the rest for the border to refuse."""
    if type(tree) is np.ndarray:
        return convert(tree)
    leaves, structure = trees.flatten(tree)
    return trees.unflatten(structure, [convert(x) if isinstance(x, NUMBERS) else x for x in leaves])
