"""What may become a NumPy array: what is no more than its numbers.

A subclass of NumPy's array may mean more than these. A masked array hides some of them, and a matrix,
or an array with units, multiplies in its own way. Read as a plain array it is another thing, so that
it is refused rather than stripped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradbridge import trees
from gradbridge.errors import InputError

#: Who defines one of these anew computes otherwise than an array of the same numbers.
_OPERATORS = ("__add__", "__mul__", "__truediv__", "__pow__", "__matmul__")


def as_array(value: Any, what: str) -> npt.NDArray[Any]:
    """A number, a list, or an array of any library as NumPy's.

    Args:
        value: what came.
        what: errors call it.

    Raises:
        InputError: NumPy cannot read it, or its numbers are not all that it is.
    """
    if isinstance(value, np.ndarray):
        return plain_array(value, what)
    try:
        return np.asarray(value)
    except Exception as error:
        raise InputError(
            f"{what} is a {type(value).__module__}.{type(value).__name__} that NumPy cannot read "
            f"({type(error).__name__}: {error}); pass a NumPy array"
        ) from error


def plain_array(array: npt.NDArray[Any], what: str) -> npt.NDArray[Any]:
    """An array of NumPy, or of a subclass that is nothing more than its numbers, as NumPy's own.

    Raises:
        InputError: it is more: a masked array of which something is masked, a matrix, a quantity …
    """
    kind = type(array)
    if kind is np.ndarray:
        return array
    if isinstance(array, np.ma.MaskedArray):
        masked = int(np.count_nonzero(np.ascontiguousarray(np.ma.getmaskarray(array)).view(bool)))
        if masked:
            raise InputError(
                f"{what} is a masked array, and {masked} of its {array.size} numbers are masked: a model would "
                f"compute with the masked ones, too; fill them with x.filled(…), or leave their rows out"
            )
    elif any(getattr(kind, name) is not getattr(np.ndarray, name) for name in _OPERATORS):
        raise InputError(
            f"{what} is a {kind.__module__}.{kind.__name__}, whose operations are not those of a NumPy "
            f"array of the same numbers; pass np.asarray(x) if the numbers are meant"
        )
    return np.asarray(array)


def refuse_more_than_numbers(tree: Any, what: str) -> None:
    """Look at the arrays of a tree, as `plain_array` does at one of them.

    Raises:
        InputError: names the leaf.
    """
    leaves, structure = trees.flatten(tree)
    for path, leaf in zip(structure.paths(), leaves):
        if isinstance(leaf, np.ndarray):
            name = "/".join(map(str, path))
            plain_array(leaf, f"parameter {name!r} of {what}" if name else what)
