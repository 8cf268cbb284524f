"""Pytrees of arrays: what a model takes and what it returns, as flat leaves and a structure.

optree does the work. What it does not know of itself, dataclasses and mappings that are not
plain dicts (the output classes of many model libraries), is registered the first time one is
met, in a namespace of our own, so that nobody else's trees change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optree

from gradbridge.forks import fork_safe_lock

NAMESPACE = "gradbridge"

#: Where `Beside` comes back as what it holds.
_HOST = "gradbridge host"

_registered: set[type] = set()
_registering = fork_safe_lock()


class Beside:
    """What a model returned next to its arrays and is none: part of a structure, and no leaf.

    Any of them equal each other, so that structures do not differ by what they hold.

    Args:
        value: what it is.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Beside)

    def __hash__(self) -> int:
        return hash(Beside)


def flatten(tree: Any, opens: bool = False) -> tuple[list[Any], optree.PyTreeSpec]:
    """Tree → (leaves, structure).

    Args:
        tree: of anything.
        opens: whether `unflatten` is to put in place of each `Beside` what it holds.
    """
    leaves, structure = optree.tree_flatten(tree, namespace=_HOST if opens else NAMESPACE)
    news = [type(leaf) for leaf in leaves if _is_container(leaf) and type(leaf) not in _registered]
    if not news:
        return leaves, structure
    for cls in news:
        _register(cls)
    return flatten(tree, opens)


def set_beside(structure: optree.PyTreeSpec, values: dict[int, Any]) -> optree.PyTreeSpec:
    """The structure in which some leaves, by their index, are `Beside`."""
    indices = iter(range(structure.num_leaves))

    def leaf(own: optree.PyTreeSpec) -> optree.PyTreeSpec:
        index = next(indices)
        if index not in values:
            return own
        return optree.tree_structure(Beside(values[index]), namespace=NAMESPACE)  # type: ignore[arg-type]

    return optree.treespec_transform(structure, None, leaf)


def without_beside(structure: optree.PyTreeSpec) -> optree.PyTreeSpec:
    """The structure with None in place of each `Beside`."""
    nothing = optree.treespec_none(namespace=NAMESPACE)
    return optree.treespec_transform(structure, lambda node: nothing if node.type is Beside else node)


def beside(tree: Any) -> list[tuple[str, Any]]:
    """(where, what) of each `Beside` in a tree."""
    paths, leaves, _ = optree.tree_flatten_with_path(
        tree, lambda node: isinstance(node, Beside), namespace=NAMESPACE
    )
    return [
        ("".join(f"[{key!r}]" for key in path), leaf.value)
        for path, leaf in zip(paths, leaves)
        if isinstance(leaf, Beside)
    ]


def unflatten(structure: optree.PyTreeSpec, leaves: Any) -> Any:
    """(structure, leaves) → tree."""
    return optree.tree_unflatten(structure, leaves)


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """A tree with a function of each leaf in its place."""
    if not is_container(tree):
        return function(tree)
    leaves, structure = flatten(tree)
    return unflatten(structure, list(map(function, leaves)))


def numbered(structure: optree.PyTreeSpec) -> Any:
    """The tree with 0, 1, 2 … for leaves, from which `flatten` makes the structure again, in another process, too."""
    return unflatten(structure, range(structure.num_leaves))


def leaves_like(structure: optree.PyTreeSpec, tree: Any) -> list[Any] | None:
    """The leaves of a tree that is like another one, but for a None in place of some leaves or branches.

    Args:
        structure: of the other one.
        tree: any.

    Returns:
        One for each leaf of `structure`, None where a None stands; None if the tree is another one.
    """
    leaves, came = flatten(tree)
    if came == structure:
        return leaves
    paths, values, _ = optree.tree_flatten_with_path(tree, none_is_leaf=True, namespace=NAMESPACE)
    given, filled, used = dict(zip(paths, values)), [], set()
    for path in structure.paths():
        found = next((path[:n] for n in range(len(path) + 1) if path[:n] in given), None)
        if found is None or (found != path and given[found] is not None):
            return None
        filled.append(given[found])
        used.add(found)
    return filled if all(v is None or path in used for path, v in given.items()) else None


def is_container(tree: Any) -> bool:
    """Whether a value is a tree of others rather than a leaf."""
    return type(tree) in (tuple, list, dict) or _is_container(tree) or not optree.tree_is_leaf(tree)


def _is_container(leaf: Any) -> bool:
    return (dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)) or isinstance(leaf, Mapping)


def _register(cls: type) -> None:
    with _registering:
        if cls in _registered:
            return
        names = (
            tuple(f.name for f in dataclasses.fields(cls) if f.init)
            if dataclasses.is_dataclass(cls)
            else None
        )

        def parts(container: Any) -> tuple[tuple[Any, ...], Any, Any]:
            if names is not None:
                return tuple(getattr(container, name) for name in names), names, names
            # It comes back as a plain dict, so its leaves must come in the order of one: that of its keys.
            # A guest flattens the mapping, core flattens the dict, and both count the same leaves.
            plain: Any = dict.fromkeys(container, 0)
            keys = [path[0] for path in optree.tree_paths(plain)]
            return tuple(container[key] for key in keys), (tuple(keys), tuple(container)), tuple(keys)

        def whole(keys: Any, children: Any) -> Any:
            if names is not None:
                return cls(**dict(zip(keys, children)))
            # A mapping class may refuse to be built from pairs; a plain dict never does.
            sorted_keys, own = keys
            values = dict(zip(sorted_keys, children))
            return {key: values[key] for key in own}

        for namespace in (NAMESPACE, _HOST):
            _register_node(cls, parts, whole, namespace=namespace)
        _registered.add(cls)


_register_node: Any = optree.register_pytree_node  # its annotations know collections only
_register_node(Beside, lambda one: ((), one), lambda one, _: one, namespace=NAMESPACE)
_register_node(Beside, lambda one: ((), one), lambda one, _: one.value, namespace=_HOST)
