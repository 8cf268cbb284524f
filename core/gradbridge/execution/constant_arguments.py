"""Arguments that are declared non-differentiable, by position or by name: they are constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import optree

from gradbridge import trees
from gradbridge.call_spec import ArgumentNames
from gradbridge.errors import OptionError
from gradbridge.wording import suggestion


class ConstantArguments:
    """What `nondiff=` declares.

    Args:
        declared: a position or a name, or several.
        names: of the inputs, as far as they are known.
        first: the position of the first input: 1 for a bridge, whose params are 0.
        label: what errors call the model.

    Raises:
        OptionError: no position or name, or one that there is not.
    """

    def __init__(self, declared: Any, names: ArgumentNames, first: int, label: str) -> None:
        if isinstance(declared, np.ndarray):  # of positions, or of names
            declared = declared.ravel().tolist()
        several = declared if isinstance(declared, (tuple, list, set, frozenset, range)) else (declared,)
        self._names, self._first, self._label = names, first, label
        self._indices: set[int] = set()
        self._keywords: set[str] = set()
        self._of_structure: dict[optree.PyTreeSpec, frozenset[int]] = {}
        for one in several:
            if isinstance(one, str):
                self._check_name(one)
                self._keywords.add(one)
                if one in names.positional:
                    self._indices.add(names.positional.index(one))
            elif isinstance(one, (int, np.integer)) and not isinstance(one, bool):
                index = self._index(int(one))
                self._indices.add(index)
                self._keywords.update(names.positional[index : index + 1])
            else:
                raise OptionError(
                    f"nondiff takes positions and names of arguments of {label}, got {one!r}; for example nondiff=2 "
                    f'or nondiff=("mask", 2)'
                )

    def indices(self, structure: optree.PyTreeSpec) -> frozenset[int]:
        """Which input leaves are constants in calls of this structure, the first being 0; kept for each."""
        known = self._of_structure.get(structure)
        if known is None:
            args, kwargs = trees.unflatten(structure, range(structure.num_leaves))
            constant = [tree for i, tree in enumerate(args) if i in self._indices]
            constant += [tree for name, tree in kwargs.items() if name in self._keywords]
            known = frozenset(leaf for tree in constant for leaf in trees.flatten(tree)[0])
            self._of_structure[structure] = known
        return known

    def __str__(self) -> str:
        unnamed = sorted(i for i in self._indices if i >= len(self._names.positional))
        return ", ".join([*sorted(self._keywords), *(f"argument {i + self._first}" for i in unnamed)])

    def _check_name(self, name: str) -> None:
        known = (*self._names.positional, *self._names.keywords)
        if self._names.closed and name not in known:
            raise OptionError(
                f"nondiff names {name!r}; {suggestion(name, known)}{self._label} takes "
                f"{', '.join(known) or 'no argument'}"
            )

    def _index(self, position: int) -> int:
        index, names = position - self._first, self._names.positional
        if index < 0:
            what = "0 is the params, and the inputs begin at 1" if self._first else "they begin at 0"
            raise OptionError(f"nondiff={position} is not an input of {self._label}: {what}")
        if self._names.closed and index >= len(names):
            raise OptionError(
                f"nondiff={position} is not an input of {self._label}, which takes {', '.join(names) or 'none'}"
            )
        return index
