"""Modules that fix a dtype (``dtype=jnp.float32``, ``param_dtype``, a config with ``"bfloat16"``) computing in another."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbridge_jax.arrays import is_array

_FLOATING = ("float64", "float32", "float16", "bfloat16")
_COMPLEX = {"float64": "complex128"}  # of the others complex64


class InDtype:
    """What is not an array of a module, with a floating dtype wherever it names one, at any depth.

    Containers, partial functions, closures over a dtype and objects with attributes are copied where
    something in them changes; whatever stays as it is, is the same object.

    Args:
        dtype: the floating dtype; None changes nothing.
        own: value ↦ what it becomes, where the framework of the module knows better; else NotImplemented.
    """

    def __init__(
        self, dtype: np.dtype[Any] | None, own: Callable[[Any], Any] = lambda value: NotImplemented
    ) -> None:
        self._name, self._own = None if dtype is None else dtype.name, own
        self._known: dict[int, tuple[Any, Any]] = {}  # with the value, so that its identity is not used again

    def __call__(self, value: Any) -> Any:
        """A value as it is in this dtype."""
        if self._name is None or value is None or is_array(value) or isinstance(value, (int, float, complex)):
            return value
        own = self._own(value)
        if own is not NotImplemented:
            return own
        if id(value) not in self._known:
            self._known[id(value)] = value, value  # for what refers to itself
            self._known[id(value)] = value, self._changed(value)
        return self._known[id(value)][1]

    def attributes(self, value: Any) -> dict[str, Any]:
        """{name: what it becomes} of the attributes that become something else."""
        new = {name: self(old) for name, old in getattr(value, "__dict__", {}).items()}
        return {name: item for name, item in new.items() if item is not vars(value)[name]}

    def _changed(self, value: Any) -> Any:
        name = _dtype_name(value)
        if name is not None:
            assert self._name is not None
            new = self._name if name in _FLOATING else _COMPLEX.get(self._name, "complex64")
            return value if new == name else _like(value, new)
        if isinstance(value, (type, types.ModuleType)):
            return value
        if type(value) in (list, tuple, set, frozenset):
            items = [self(item) for item in value]
            return value if all(a is b for a, b in zip(items, value)) else type(value)(items)
        if type(value) is dict:
            new = {key: self(item) for key, item in value.items()}
            return value if all(new[key] is value[key] for key in value) else new
        if isinstance(value, functools.partial):
            parts = self(value.func), self(value.args), self(value.keywords)
            if all(a is b for a, b in zip(parts, (value.func, value.args, value.keywords))):
                return value
            return functools.partial(parts[0], *parts[1], **parts[2])
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, (types.MethodType, types.BuiltinFunctionType, jax.Device)):
            return value
        changes = self.attributes(value)
        if not changes:
            return value
        twin = copy.copy(value)
        for name, item in changes.items():
            object.__setattr__(twin, name, item)
        return twin

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        cells = [(cell, _content(cell)) for cell in function.__closure__ or ()]
        closure = tuple(
            cell if _dtype_name(old) is None else types.CellType(self(old)) for cell, old in cells
        )
        defaults, keywords = self(function.__defaults__), self(function.__kwdefaults__)
        same = all(new is old for new, (old, _) in zip(closure, cells))
        if same and defaults is function.__defaults__ and keywords is function.__kwdefaults__:
            return function
        twin = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, defaults, closure
        )
        twin.__kwdefaults__ = keywords
        return functools.update_wrapper(twin, function)


def _dtype_name(value: Any) -> str | None:
    """The name of a floating or complex dtype, of whatever kind it is: ``jnp.float32``, ``np.dtype``, ``"float32"``."""
    if isinstance(value, str):
        name = value
    elif isinstance(value, np.dtype):
        name = value.name
    elif isinstance(value, type) and issubclass(value, np.generic):
        name = np.dtype(value).name
    elif isinstance(value, type) and isinstance(getattr(value, "dtype", None), np.dtype):
        name = value.dtype.name  # jnp.float32 and the like
    else:
        return None
    return name if name in _FLOATING or name in ("complex64", "complex128") else None


def _like(value: Any, name: str) -> Any:
    """Another dtype as one of these names it."""
    if isinstance(value, str):
        return name
    if isinstance(value, np.dtype):
        return np.dtype(jnp.dtype(name))
    if value.__module__.startswith("jax"):
        return getattr(jnp, name)  # makes arrays of JAX's where it is called
    return np.dtype(jnp.dtype(name)).type


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None
