"""A tree of parameters: which of its leaves are trained, and what the others are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optree

from gradbridge import trees
from gradbridge.errors import NotDifferentiableError, OptionError
from gradbridge.layout import ParameterLayout, dtype_name
from gradbridge_jax.arrays import cast_floating, is_array, is_inexact
from gradbridge_jax.isolation import isolated


class ParameterTree:
    """A pytree split into trained arrays, other arrays, and what is not an array.

    Anything that JAX knows as a pytree goes, Equinox modules and NNX states among it, and the
    containers that optree knows besides (dataclasses, mappings).

    Args:
        tree: as the user gave it; its arrays are copied where they could be changed in place.
        dtype: to compute in; None keeps that of each array.
        owner: what errors call it.

    Raises:
        OptionError: no leaf is a floating array, or a plain container holds integers.
        NotDifferentiableError: a leaf is complex.
    """

    def __init__(self, tree: Any, dtype: np.dtype[Any] | None, owner: str) -> None:
        paths, leaves, self._rebuild, structure, settings = _opened(tree)
        # A Python float has no dtype of its own: it takes that of the arrays, as JAX itself does.
        arrays = [leaf.dtype for leaf in leaves if is_inexact(leaf)]
        weak = np.dtype(jnp.result_type(*arrays)) if arrays else np.dtype(np.float64)
        leaves = [
            np.asarray(leaf, weak) if type(leaf) is float and i not in settings else leaf
            for i, leaf in enumerate(leaves)
        ]
        for path, leaf in zip(paths, leaves):
            if is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
                raise NotDifferentiableError(
                    f"parameter {path!r} of {owner} is complex, and params are a real vector; keep the real "
                    f"and imaginary parts as two real parameters, and join them with jax.lax.complex"
                )
            if structure is not None and not is_inexact(leaf):
                came = f"dtype {leaf.dtype}" if is_array(leaf) else f"type {type(leaf).__name__}"
                raise OptionError(
                    f"parameter {path!r} of {owner} has {came}; parameters are real floating arrays: keep "
                    f"constants in the function itself"
                )
        self._trained = [i for i, leaf in enumerate(leaves) if is_inexact(leaf)]
        self._fixed = [i for i, leaf in enumerate(leaves) if is_array(leaf) and not is_inexact(leaf)]
        if leaves and not self._trained and structure is not None:
            raise OptionError(f"{owner} has no floating array among its {len(leaves)} leaves to train")
        own = [leaves[i] for i in self._trained]
        kept = {*self._trained, *self._fixed}
        self._rest = {i: leaf for i, leaf in enumerate(leaves) if i not in kept}
        self._count = len(leaves)
        #: The arrays that are not trained, copied.
        self.fixed: tuple[Any, ...] = tuple(cast_floating(leaves[i], None) for i in self._fixed)
        self.dtypes = [dtype or np.dtype(leaf.dtype) for leaf in own]
        self.layout = ParameterLayout(
            tuple(paths[i] for i in self._trained),
            tuple(tuple(leaf.shape) for leaf in own),
            tuple(dtype_name(leaf) for leaf in own),
            structure,
        )
        #: The trained ones, copied where they could be changed in place.
        self.arrays = [leaf if isinstance(leaf, jax.Array) else np.array(leaf) for leaf in own]

    def common_dtype(self) -> np.dtype[Any] | None:
        """The dtype that inputs take: the widest of the parameters'."""
        return common_dtype(self.dtypes)

    def fill(self, weights: Sequence[Any], fixed: Sequence[Any]) -> Any:
        """The tree with these arrays in it."""
        leaves: list[Any] = [None] * self._count
        for index, leaf in self._rest.items():
            leaves[index] = leaf
        for index, leaf in zip(self._trained, weights):
            leaves[index] = leaf
        for index, leaf in zip(self._fixed, fixed):
            leaves[index] = leaf
        return self._rebuild(leaves)


def common_dtype(dtypes: Sequence[Any]) -> np.dtype[Any] | None:
    """The widest of some floating dtypes, by JAX's rules."""
    with isolated(True):
        return np.dtype(jnp.result_type(*dtypes)) if dtypes else None


class _Rebuild:
    """Leaves → tree, for either kind of structure; a class so that it can be pickled."""

    def __init__(self, structure: Any) -> None:
        self._structure = structure

    def __call__(self, leaves: list[Any]) -> Any:
        if isinstance(self._structure, optree.PyTreeSpec):
            return trees.unflatten(self._structure, leaves)
        return jax.tree.unflatten(self._structure, leaves)


def _opened(
    tree: Any,
) -> tuple[list[str], list[Any], _Rebuild, optree.PyTreeSpec | None, set[int]]:
    """(names, leaves, how to rebuild, optree's structure if the containers are plain ones, settings).

    Settings are the leaves that are attributes of a module, by index: a number there, the rate of a
    dropout, is how the module was made and no parameter, as in Equinox, which trains arrays.
    """
    entries, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [leaf for _, leaf in entries]
    if any(_is_foreign_container(leaf) for leaf in leaves):
        leaves, structure = trees.flatten(tree)
        names = ["/".join(map(str, path)) or "params" for path in structure.paths()]
        return names, leaves, _Rebuild(structure), structure, set()
    names = [jax.tree_util.keystr(path, simple=True, separator="/") or "params" for path, _ in entries]
    plain, spec = optree.tree_flatten(tree)
    same = len(plain) == len(leaves) and all(a is b for a, b in zip(plain, leaves))
    settings = {
        i for i, (path, _) in enumerate(entries) if path and isinstance(path[-1], jax.tree_util.GetAttrKey)
    }
    return names, leaves, _Rebuild(treedef), spec if same else None, settings


def _is_foreign_container(leaf: Any) -> bool:
    return (dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)) or isinstance(leaf, Mapping)
