"""The parameter layout: which slice of the flat vector is which array of the model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import optree

from gradbridge import trees
from gradbridge.admission import as_array
from gradbridge.errors import InputError, LayoutError, ParamsDtypeError

Array = npt.NDArray[Any]
Float64Vector = npt.NDArray[np.float64]

#: (class of an array) ↦ the host half whose it is, or None: what the registry knows, which knows layouts.
systems: list[Callable[[type], Any]] = []


#: What to do where params are handed to a function that was bridged without.
BRIDGE_WITH_PARAMS = "if its first argument is the params, bridge it with params="

_A_TREE = "f.layout.unravel(f.params) gives the model's own params as such a tree"


@dataclass(frozen=True)
class ParameterLayout:
    """Names, shapes and dtypes of a model's parameters, in the order of the flat vector.

    Attributes:
        names: one unique name per parameter array, as the guest's framework calls it.
        shapes: the shape of each, same order.
        dtypes: the dtype of each in the guest, as a NumPy-style name (``"float32"``,
            ``"bfloat16"`` …). The flat vector itself is always float64.
        structure: the pytree that the arrays came from, or None for a flat namespace.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    structure: optree.PyTreeSpec | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.shapes) == len(self.dtypes):
            raise LayoutError(
                f"a layout needs one shape and one dtype per name, got {len(self.names)} names, "
                f"{len(self.shapes)} shapes and {len(self.dtypes)} dtypes"
            )
        if len(set(self.names)) != len(self.names):
            twice = sorted({n for n in self.names if self.names.count(n) > 1})
            raise LayoutError(f"parameter names must be unique, got {', '.join(twice)} more than once")
        sizes = tuple(math.prod(shape) for shape in self.shapes)
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + size)
        # Computed once: the slices are asked for on every call of the bridge.
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "size", starts[-1])
        object.__setattr__(self, "slices", tuple(slice(a, b) for a, b in itertools.pairwise(starts)))

    sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)
    size: int = field(init=False, compare=False)
    slices: tuple[slice, ...] = field(init=False, repr=False, compare=False)

    @classmethod
    def empty(cls) -> ParameterLayout:
        """The layout of a function without parameters: size 0."""
        return cls((), (), ())

    @classmethod
    def of_tree(cls, tree: Any) -> ParameterLayout:
        """The layout of a pytree of arrays; names are the paths, as in ``layers/0/w``."""
        leaves, structure = trees.flatten(tree)
        shapes = [tuple(int(n) for n in np.shape(leaf)) for leaf in leaves]
        dtypes = [dtype_name(leaf) for leaf in leaves]
        return cls(leaf_names(structure), tuple(shapes), tuple(dtypes), structure)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        return iter(zip(self.names, self.shapes, self.dtypes))

    def __reduce__(self) -> Any:
        # As a tree: another process may not have met the classes in it, which optree has to be told of.
        tree = None if self.structure is None else (trees.numbered(self.structure),)
        return _unpickled, (self.names, self.shapes, self.dtypes, tree)

    def ravel(self, tree: Any) -> Float64Vector:
        """Put arrays into one flat vector.

        Args:
            tree: a mapping from every name of the layout to an array of its shape, or the
                pytree that the layout was made from, or the arrays in order.

        Returns:
            (size,) float64, a new array.

        Raises:
            LayoutError: a name is missing or unknown, or a shape is not the layout's.
            ParamsDtypeError: an array is not of real numbers.
            InputError: NumPy cannot read an array of it, or it is more than its numbers, as a masked one, or a system is
                differentiating it.
        """
        own = self.arrays(tree)
        for name, array in zip(self.names, own):
            _refuse_followed(name, array)
        arrays = [_as_array(name, array) for name, array in zip(self.names, own)]
        self.check(arrays)
        return self.join(arrays)

    def is_tree(self, params: Any) -> bool:
        """Whether params are given as the tree of arrays, rather than as the flat vector.

        Args:
            params: concrete, or a tree of traced arrays.
        """
        if trees.is_container(params):
            is_ours = self.structure is not None and trees.flatten(params)[1] == self.structure
            return is_ours or not _only_scalars(params)
        is_bare = self.structure is not None and self.structure.is_leaf()
        return is_bare and np.shape(params) == self.shapes[0] != (self.size,)

    def check(self, arrays: Sequence[Any], of: str = "") -> None:
        """Refuse arrays that are not the parameters of this layout; reads only their shapes and dtypes.

        Args:
            arrays: one for each parameter, in order.
            of: whose they are, as in ``" of Net"``.

        Raises:
            LayoutError: a shape is not the layout's.
            ParamsDtypeError: an array is not of real numbers.
        """
        for name, shape, array in zip(self.names, self.shapes, arrays):
            if array.shape != shape and not _may_be(array.shape, shape):
                raise LayoutError(f"expected shape {shape} for parameter {name!r}, got {array.shape}")
            if array.dtype.kind not in "fiu":
                raise ParamsDtypeError(
                    f"expected real params{of}, got dtype {array.dtype} for parameter {name!r}"
                )

    def unravel(self, params: Any) -> dict[str, Any]:
        """Cut a flat vector into the named arrays.

        Only slicing and reshaping is done, so a traced vector of any host may be given and the
        result is differentiable there.

        Args:
            params: (size,) array of any kind that slices and reshapes.

        Returns:
            {name: array of the parameter's shape}, in the layout's order.

        Raises:
            LayoutError: the vector is not of shape (size,).
        """
        cut = None
        if not hasattr(params, "reshape"):
            cut = _cut_by_its_system(params)
            if cut is None:
                params = as_array(params, "params")
        shape = tuple(params.shape)
        if shape != (self.size,):
            raise LayoutError(f"expected params of shape {(self.size,)}, got {shape}")
        if cut is not None:
            return dict(zip(self.names, cut(params, self)))
        return {
            name: params[where].reshape(shape)
            for name, shape, where in zip(self.names, self.shapes, self.slices)
        }

    def cut(self, flat: Any) -> list[Any]:
        """A flat vector → the weights, in order: views, where slices of it are.

        Args:
            flat: (*lead, size), an array of any kind that slices and reshapes; leading axes stay in front.
        """
        lead = tuple(flat.shape[:-1])
        if not lead:
            return [flat[where].reshape(shape) for where, shape in zip(self.slices, self.shapes)]
        return [flat[..., where].reshape((*lead, *shape)) for where, shape in zip(self.slices, self.shapes)]

    def join(self, weights: Sequence[Any], lead: tuple[int, ...] = ()) -> Float64Vector:
        """Weights, or gradients of them → one flat vector: the inverse of `cut`.

        The cast to float64 is the copy, and the only one.

        Args:
            weights: one array per parameter, of shape (*lead, *its shape).
            lead: leading axes.

        Returns:
            (*lead, size) float64, a new array.
        """
        flat = np.empty((*lead, self.size))
        for where, weight in zip(self.slices, weights):
            flat[..., where] = weight.reshape((*lead, -1)) if 0 not in lead else 0.0
        return flat

    def locate(self, position: int) -> str:
        """What stands at one position of the flat vector, as ``0.weight[3, 1]``."""
        for name, shape, where in zip(self.names, self.shapes, self.slices):
            if where.start <= position < where.stop:
                index = np.unravel_index(position - where.start, shape) if shape else ()
                return f"{name}[{', '.join(str(int(i)) for i in index)}]" if shape else name
        raise IndexError(f"position {position} is outside a layout of size {self.size}")

    def arrays(self, tree: Any) -> Sequence[Any]:
        """The arrays of a tree in the layout's order, as they are: traced ones stay so.

        Args:
            tree: as for `ravel`.

        Raises:
            LayoutError: a name is missing or unknown, or the tree has another structure.
        """
        if isinstance(tree, Mapping) and set(tree) == set(self.names):
            return [tree[name] for name in self.names]
        if self.structure is not None:
            leaves, structure = trees.flatten(tree)
            if structure == self.structure:
                return leaves
            raise LayoutError(f"expected a tree {self.structure}, got {structure}; {_A_TREE}")
        if not self.names:
            raise LayoutError(
                f"the model has no parameters, got a {type(tree).__name__}; {BRIDGE_WITH_PARAMS}"
            )
        if isinstance(tree, Mapping):
            missing = [name for name in self.names if name not in tree]
            unknown = [str(name) for name in tree if name not in self.names]
            raise LayoutError(
                f"expected the names {', '.join(self.names)}; "
                f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
            )
        if isinstance(tree, (list, tuple)) and len(tree) == len(self.names):
            return tree
        raise LayoutError(
            f"expected a mapping of the names {', '.join(self.names) or '(none)'} to arrays, "
            f"got {type(tree).__name__}; {_A_TREE}"
        )

    def __str__(self) -> str:
        rows = [(n, str(s), d) for n, s, d in self] or [("(no parameters)", "", "")]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, f"{self.size} numbers"])


def _may_be(shape: Sequence[int | None], expected: tuple[int, ...]) -> bool:
    """Whether a shape is as expected, but for sizes that its host does not know yet (None)."""
    return len(shape) == len(expected) and all(n is None or n == m for n, m in zip(shape, expected))


def _unpickled(names: Any, shapes: Any, dtypes: Any, tree: Any) -> ParameterLayout:
    return ParameterLayout(names, shapes, dtypes, None if tree is None else trees.flatten(tree[0])[1])


def _only_scalars(value: Any) -> bool:
    """Whether a list, nested or not, is one of numbers (or of text, say): an array, as everywhere in NumPy."""
    if isinstance(value, (list, tuple)):
        return all(map(_only_scalars, value))
    return not hasattr(value, "shape") and not trees.is_container(value)


def _as_array(name: str, value: Any) -> Array:
    array = as_array(value, f"parameter {name!r}")
    if array.dtype.kind == "V" and array.dtype.name.startswith(("bfloat", "float")):
        return array.astype(np.float64)  # real numbers all the same, which NumPy itself does not know
    return array


def leaf_names(structure: optree.PyTreeSpec) -> tuple[str, ...]:
    """What the leaves of a tree of parameters are called: their paths, as in ``layers/0/w``."""
    return tuple("/".join(map(str, path)) or "params" for path in structure.paths())


def _cut_by_its_system(vector: Any) -> Callable[[Any, ParameterLayout], Sequence[Any]] | None:
    """How the system whose array it is cuts a vector that cannot be reshaped as NumPy's can; None where it is nobody's."""
    return getattr(_system_of(vector), "cut", None)


def _refuse_followed(name: str, array: Any) -> None:
    """Refuse an array whose gradient would end here, without a word from its own system."""
    system = None if type(array) is np.ndarray else _system_of(array)
    if system is not None and system.follows(array):
        raise InputError(
            f"{system.name} is differentiating the array for parameter {name!r}, and a flat vector of NumPy's would lose "
            f"its gradient; call the bridge with the tree of arrays itself, or join them by {system.name}'s own functions, "
            f"in the order of f.layout.names"
        )


def _system_of(array: Any) -> Any:
    """The host half whose array it is; None where it is nobody's."""
    return next((half for find in systems if (half := find(type(array))) is not None), None)


@lru_cache(maxsize=64)
def name_of(dtype: np.dtype[Any]) -> str:
    """The name of a dtype; NumPy puts it together anew each time it is asked, in 3 µs."""
    return dtype.name


def dtype_name(array: Any) -> str:
    """The dtype of an array of any framework as a NumPy-style name, e.g. ``float32``."""
    dtype = getattr(array, "dtype", None)
    if dtype is None:
        return np.asarray(array).dtype.name
    return getattr(dtype, "name", None) or str(dtype).rsplit(".", 1)[-1]
