"""One look at all that a function names outside of its arguments: what is there, by places with names."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import operator
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

from gradbridge.constants import Same, constant_key

#: Places that are looked at, at most: a function that names more is not worth the time of each call.
_PLACES = 1000

#: Attributes of an object, and items of each, that are looked at for what is the user's own.
_WITHIN = 100

#: Bytes up to which an array is compared as a whole, and numbers that are looked at in a larger one.
_WHOLE, _SAMPLE = 1 << 16, 1024

_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_ITEMS = (list, tuple, set, frozenset, deque)
_MISSING = object()

# What code that changes something outside of itself has in it.
_WRITES = {"STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR", "STORE_SUBSCR", "DELETE_SUBSCR"}
_WRITERS = {
    *("append", "appendleft", "extend", "insert", "add", "update", "setdefault", "__setitem__"),
    *("pop", "popleft", "popitem", "remove", "discard", "clear", "sort", "reverse"),
    *("fill", "put", "copyto", "at"),
}


class _Read(NamedTuple):
    """What the code of a function names: globals, modules that it imports, attributes (or anything); whether it writes."""

    variables: frozenset[str]
    modules: frozenset[str]
    names: frozenset[str]
    writes: bool


class Look:
    """One look at all places: what is there, and how to find out quickly that it is still so.

    Args:
        names: of attributes that matter; those that the code of functions adds are added.
        ignored: places that are not watched, nor anything in them.

    Attributes:
        marks: {place: what is there}, hashable.
        writes: whether the code may change something outside of itself.
    """

    def __init__(self, names: set[str], ignored: set[str]) -> None:
        self.marks: dict[str, Hashable] = {}
        self.writes = False
        self._names, self._ignored = names, ignored
        self._seen: dict[int, str] = {}
        self._seen_names: set[tuple[int, str]] = set()
        self._held: list[Any] = []  # so that no identity is used twice
        # Each of these is as it was: (lookup, name, value), (container, items), (array, its bytes).
        self._bindings: list[tuple[Callable[[Any], Any], Any, Any]] = []
        self._items: list[tuple[Any, list[Any]]] = []
        self._arrays: list[tuple[Any, bytes]] = []

    @property
    def key(self) -> Hashable:
        """Of all that is there."""
        return tuple(self.marks.items())

    @property
    def may_change(self) -> bool:
        """Whether any of it can be another one at the next look."""
        return bool(self._bindings or self._items or self._arrays)

    def holds(self) -> bool:
        """Whether nothing changed since."""
        try:
            for lookup, name, value in self._bindings:
                if lookup(name) is not value:
                    return False
            for container, items in self._items:
                if len(container) != len(items) or not all(map(operator.is_, _all_of(container), items)):
                    return False
            return all(_content(array) == content for array, content in self._arrays)
        except (AttributeError, ValueError, RuntimeError):  # deleted, emptied, changed by another thread
            return False

    def see(self, place: str, value: Any) -> None:
        """Look at a value, and at what it holds.

        Args:
            place: its name; empty for the function itself.
            value: anything.
        """
        if id(value) in self._seen:
            self.marks[place] = self._seen[id(value)]
        elif isinstance(value, (types.FunctionType, types.MethodType, type)) or not place:
            self._see_callable(place, value)
        elif (key := constant_key(value)) is not None:
            self.marks[place] = key
        elif isinstance(value, np.ndarray):
            content = _content(value)
            self._arrays.append((value, content))
            self.marks[place] = (value.shape, value.dtype.str, hashlib.blake2b(content).digest())
        elif isinstance(value, (*_ITEMS, dict)):
            self._remember(place, value)
            self._see_items(place, value)
        else:
            self.marks[place] = Same(value)
            if not (
                hasattr(value, "dtype") and hasattr(value, "shape")
            ):  # another library's array, or a variable
                self._see_callable(place, value)

    def _see_items(self, place: str, value: Any) -> None:
        self.marks[place] = (type(value), len(value))
        if not isinstance(value, (tuple, frozenset)):
            self._items.append((value, list(_all_of(value))))
        if isinstance(value, dict):
            for name, item in list(value.items()):
                self._at(f"{place}[{name!r}]", item)
        elif isinstance(value, (set, frozenset)):
            keys = [constant_key(item) for item in value]
            self.marks[place] = frozenset(Same(x) if key is None else key for key, x in zip(keys, value))
        else:
            for index, item in enumerate(list(value)):
                self._at(f"{place}[{index}]", item)

    def _see_callable(self, place: str, value: Any) -> None:
        """A function or an object: what its code names, and its attributes of these names."""
        self._remember(place, value)
        if isinstance(value, functools.partial):
            for name in ("func", "args", "keywords"):
                if getattr(value, name):
                    self._at(_named(place, name), getattr(value, name))
        elif isinstance(value, types.MethodType):
            self._see_callable(place, value.__func__)
            self._at(_named(place, "self"), value.__self__)
        elif isinstance(value, types.FunctionType):
            is_ours = not is_installed(value.__code__.co_filename)
            if place:
                self.marks[place] = value.__code__ if is_ours else Same(value)
            if is_ours:
                self._see_code(value)
            elif isinstance(inner := vars(value).get("__wrapped__"), types.FunctionType):
                self._at(_named(place, "__wrapped__"), inner)  # decorated by a package
        elif isinstance(value, types.ModuleType):
            if not is_installed(getattr(value, "__file__", None)):
                self._see_attributes(place, vars(value))
        else:
            inner = inspect.getattr_static(value, "__wrapped__", None)  # of a jitted function, say
            if isinstance(inner, (types.FunctionType, types.MethodType)):
                self._at(_named(place, "__wrapped__"), inner)
            else:
                self._see_object(place or "self", value)

    def _see_object(self, place: str, value: Any) -> None:
        is_class = isinstance(value, type)
        classes = [c for c in (value if is_class else type(value)).__mro__ if not _is_installed_class(c)]
        if is_class:
            self.marks[place] = Same(value)
        else:
            self._see_attributes(place, getattr(value, "__dict__", {}))
            if not classes:
                self._see_within(place, value)
        for cls in classes:
            for name, item in list(vars(cls).items()):
                if name != "__call__" and name not in self._names:
                    continue
                if isinstance(item, types.MemberDescriptorType):
                    if not is_class:
                        self._bound(f"{place}.{name}", value, functools.partial(getattr, value), name)
                    continue
                if isinstance(item, property):
                    item = item.fget
                elif isinstance(item, (staticmethod, classmethod)):
                    item = item.__func__
                if isinstance(item, types.FunctionType):
                    self._at(f"{place}.{name}", item)
                else:
                    self._bound(f"{place}.{name}", cls, vars(cls).get, name)

    def _see_within(self, place: str, value: Any) -> None:
        """An installed package's object may hold the user's own, as a container of layers does."""
        for name, item in list(getattr(value, "__dict__", {}).items())[:_WITHIN]:
            items = item if isinstance(item, (list, tuple)) else (item,)
            for index, one in enumerate(items[:_WITHIN]):
                if id(one) in self._seen:
                    continue
                is_function = isinstance(one, types.FunctionType) and not is_installed(
                    one.__code__.co_filename
                )
                if is_function or any(not _is_installed_class(c) for c in type(one).__mro__):
                    self._at(f"{place}.{name}[{index}]", one)

    def _see_attributes(self, place: str, attributes: Any) -> None:
        for name in sorted(self._names.intersection(attributes)):
            self._bound(f"{place}.{name}", attributes, attributes.get, name)

    def _see_code(self, function: types.FunctionType) -> None:
        read = _read(function.__code__)
        self._names |= read.names
        self.writes = self.writes or read.writes
        variables = function.__globals__
        for name in sorted(read.variables.intersection(variables)):
            self._bound(name, variables, variables.get, name)
        for name in sorted(read.modules.intersection(sys.modules)):
            self._module(name, sys.modules[name])
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            self._bound(name, cell, functools.partial(getattr, cell), "cell_contents")
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        for index, default in enumerate(defaults):
            self._at(f"default {index} of {function.__name__}", default)

    def _module(self, place: str, module: types.ModuleType) -> None:
        if id(module) not in self._seen:
            self._see_callable(place, module)

    def _bound(self, place: str, owner: Any, lookup: Callable[[Any], Any], name: str) -> None:
        """A name that may be bound anew, in a dict, a cell, an object."""
        if (id(owner), name) in self._seen_names:
            return
        self._seen_names.add((id(owner), name))
        self._held.append(owner)
        try:
            value = lookup(name)
        except (AttributeError, ValueError):  # an empty cell or slot
            return
        if isinstance(value, types.ModuleType):
            self._module(place, value)
        elif self._at(place, value):
            self._bindings.append((lookup, name, value))

    def _at(self, place: str, value: Any) -> bool:
        while place in self.marks:  # the same name elsewhere
            place += "'"
        if place in self._ignored or len(self.marks) >= _PLACES:
            return False
        self.see(place, value)
        return True

    def _remember(self, place: str, value: Any) -> None:
        self._seen[id(value)] = place
        self._held.append(value)


@functools.lru_cache(maxsize=1024)
def _read(code: types.CodeType) -> _Read:
    """What a code names, with the functions that are written within it."""
    instructions = list(dis.get_instructions(code))

    def operands(*kinds: str) -> frozenset[str]:
        return frozenset(i.argval for i in instructions if i.opname in kinds)

    names = frozenset(code.co_names)
    writes = any(i.opname in _WRITES for i in instructions) or not names.isdisjoint(_WRITERS)
    variables, modules = (
        operands("LOAD_GLOBAL", "LOAD_NAME") - operands("STORE_GLOBAL"),
        operands("IMPORT_NAME"),
    )
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _read(constant)
            variables, modules, names = (
                variables | inner.variables,
                modules | inner.modules,
                names | inner.names,
            )
            writes = writes or inner.writes
    return _Read(variables, modules, names, writes)


def names_in(code: types.CodeType) -> frozenset[str]:
    """All names of attributes and variables in code, and in the functions that are written within it."""
    return _read(code).names


def _all_of(container: Any) -> Any:
    """The items of a list or the like; of a dict its values, whose number and order tell enough of the keys."""
    return container.values() if isinstance(container, dict) else container


def _content(array: np.ndarray[Any, Any]) -> bytes:
    if array.nbytes <= _WHOLE:
        return array.tobytes()
    return array.flat[:: -(-array.size // _SAMPLE)].tobytes()


def differing(before: dict[str, Hashable], after: dict[str, Hashable]) -> set[str]:
    """Places whose marks are not the same."""
    places = before.keys() | after.keys()
    return {p for p in places if before.get(p, _MISSING) != after.get(p, _MISSING)}


def _named(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


@functools.lru_cache(maxsize=4096)
def is_installed(file: str | None) -> bool:
    """Whether code is of an installed package, or builtin: it is taken as it is."""
    return file is None or file.startswith(_INSTALLED) or "<frozen" in file or "-packages/" in file


def _is_installed_class(cls: type) -> bool:
    module = sys.modules.get(cls.__module__)
    if cls.__module__ == "__main__":
        return False
    return cls.__module__.split(".")[0] == "gradbridge" or is_installed(getattr(module, "__file__", None))
