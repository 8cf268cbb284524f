"""A plain function, and what one call of it saw and returned."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree

from gradbridge import trees
from gradbridge.admission import as_array
from gradbridge.borders import INEXACT
from gradbridge.call_spec import CallSpec
from gradbridge.errors import GradbridgeError, GradientShapeError, GuestError
from gradbridge.layout import Array, ParameterLayout
from gradbridge.wording import without_params
from gradbridge_numpy.forms import OUTPUTS, Jet
from gradbridge_numpy.rules import Rules

NUMBERS = (float, int, complex, np.ndarray, np.generic)


@dataclass(frozen=True)
class PlainFunction:
    """A user's function as its derivatives see it: of all leaves of a call, the weights first.

    Attributes:
        function: the user's.
        label: what errors call it.
        layout: of its parameters; without a structure for a function of arrays alone.
        rules: that are written for it.
        renews: whether it is called again before its rules, which read what its latest call has kept.
    """

    function: Callable[..., Any]
    label: str
    layout: ParameterLayout
    rules: Rules
    renews: bool = False

    @property
    def has_params(self) -> bool:
        """Whether its first argument is a tree of parameters."""
        return self.layout.structure is not None

    def __call__(self, leaves: Sequence[Any], spec: CallSpec) -> Any:
        """What it returns, copied: it may return an array that it keeps, or one of its arguments.

        Raises:
            GuestError: it raised.
        """
        args, kwargs = self.bind(leaves, spec)
        try:
            output = self.function(*args, **kwargs)
        except GradbridgeError:
            raise
        except Exception as error:
            shapes = ", ".join(str(getattr(a, "shape", type(a).__name__)) for a in args[self.has_params :])
            raise GuestError(
                f"{self.label} failed on inputs {shapes or '(none)'}: {type(error).__name__}: {error}"
                f"{without_params(error, self.layout)}"
            ) from error
        return copied_tree(output, f"an output of {self.label}")

    def bind(self, leaves: Sequence[Any], spec: CallSpec) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Leaves → all arguments as the function takes them."""
        count = len(self.layout)
        args, kwargs = spec.bind(leaves[count:])
        if self.layout.structure is not None:
            args = (trees.unflatten(self.layout.structure, leaves[:count]), *args)
        return args, kwargs

    def arguments(self, spec: CallSpec) -> dict[int, tuple[int, optree.PyTreeSpec]]:
        """{argument: (position of its first leaf, its tree)}; those passed by keyword are -2, -3 …"""
        return _arguments(spec.structure, self.layout.structure)

    def keyword(self, argument: int, spec: CallSpec) -> str:
        """The name of an argument that was passed by keyword."""
        return str(spec.structure.child(1).entry(-2 - argument))

    @functools.cached_property
    def signature(self) -> inspect.Signature | None:
        """Of the function, where it tells."""
        try:
            return inspect.signature(self.function)
        except (TypeError, ValueError):
            return None


@functools.lru_cache(maxsize=1024)
def _arguments(
    call: optree.PyTreeSpec, params: optree.PyTreeSpec | None
) -> dict[int, tuple[int, optree.PyTreeSpec]]:
    """Asked on every call, so it is remembered."""
    args, kwargs = call.children()
    by_position = [*([] if params is None else [params]), *args.children()]
    by_keyword = ((-2 - i, tree) for i, tree in enumerate(kwargs.children()))
    start, arguments = 0, {}
    for argument, tree in (*enumerate(by_position), *by_keyword):
        arguments[argument] = (start, tree)
        start += tree.num_leaves
    return arguments


class CalledJet(Jet):
    """Copies of what one call of a plain function saw and returned.

    Args:
        plain: the function.
        leaves: of all arguments; nobody writes to them.
        spec: of the call.
    """

    def __init__(self, plain: PlainFunction, leaves: list[Any], spec: CallSpec) -> None:
        self.plain, self.leaves, self.spec = plain, leaves, spec
        self.tree = plain(copies(leaves), spec)
        self.answer, self.structure = trees.flatten(self.tree)
        self._arguments = plain.arguments(spec)
        self.arguments = tuple((argument, tree.num_leaves) for argument, (_, tree) in self._arguments.items())

    def row(self, place: int) -> list[Any]:
        """The leaves of an argument, or of the outputs."""
        if place == OUTPUTS:
            return self.answer
        start, structure = self._arguments[place]
        return self.leaves[start : start + structure.num_leaves]

    def zeros(self, place: int, leaf: int) -> Array:
        like = self.row(place)[leaf]
        return np.zeros(np.shape(like), np.complex128 if kind_of(like) == "c" else np.float64)

    def moves(self, place: int, leaf: int) -> bool:
        """Whether a leaf has a derivative: an output that is not floating or complex has none."""
        return place != OUTPUTS or kind_of(self.answer[leaf]) in INEXACT

    def tree_of(self, place: int, leaves: Sequence[Any], like: Any) -> Any:
        """Leaves of a place as the user has them there.

        Args:
            place: an argument or the outputs.
            leaves: of it.
            like: a value of the place: for parameters it may be a flat vector, or a mapping of names.
        """
        layout = self.plain.layout
        if place == 0 and self.plain.has_params:
            if _is_flat(like, layout):
                return layout.join(leaves)
            if isinstance(like, Mapping) and set(like) == set(layout.names):
                return dict(zip(layout.names, leaves))
        return trees.unflatten(self._structure(place), leaves)

    def leaves_of(self, place: int, value: Any, kind: str) -> Sequence[Any]:
        """The leaves of what a rule returned for a place; None where it says that there is nothing to return.

        Args:
            place: an argument or the outputs.
            value: what came.
            kind: of rule, in words.

        Raises:
            GradientShapeError: it has another structure.
        """
        layout, label, structure = self.plain.layout, self.plain.label, self._structure(place)
        is_params = place == 0 and self.plain.has_params
        if is_params and _is_flat(value, layout):
            return layout.cut(value if hasattr(value, "reshape") else np.asarray(value))
        if is_params and isinstance(value, Mapping) and set(value) == set(layout.names):
            return [value[name] for name in layout.names]
        if structure.num_nodes == 1:
            return [value]
        leaves = trees.leaves_like(structure, value)
        if leaves is None:
            like = "the outputs" if place == OUTPUTS else "its argument's"
            if is_params:
                kind, like = f"{kind} for the parameters", f"them, or a vector of shape {(layout.size,)}"
            several = self.plain.rules.one_each(value) if place != OUTPUTS else ""
            raise GradientShapeError(
                f"the {kind} of {label} must return a tree like {like}; expected {structure}, with None for what has "
                f"no influence, got {trees.flatten(value)[1]}{several and '; '}{several}"
            )
        return leaves

    def _structure(self, place: int) -> optree.PyTreeSpec:
        return self.structure if place == OUTPUTS else self._arguments[place][1]


def _is_flat(value: Any, layout: ParameterLayout) -> bool:
    return not trees.is_container(value) and np.shape(value) == (layout.size,)


def kind_of(value: Any) -> str:
    """The kind of dtype of an array or a number."""
    return np.asarray(value).dtype.kind


def copies(leaves: Sequence[Any]) -> list[Any]:
    """The arrays among some leaves copied, for who may write to them."""
    return [leaf.copy() if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]


def copied_tree(tree: Any, what: str = "an array") -> Any:
    """Every number or array of a tree as a new array; the rest is left for the border to refuse.

    Args:
        tree: of a function, or of a rule.
        what: errors call an array that is more than its numbers, as a masked one is.
    """
    if type(tree) is np.ndarray:
        return tree.copy()
    leaves, structure = trees.flatten(tree)
    return trees.unflatten(
        structure, [np.array(as_array(x, what)) if isinstance(x, NUMBERS) else x for x in leaves]
    )
