"""What objects hold, and where: every place in which something stands, with a way to put something else there."""

from __future__ import annotations

import functools
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

LRU = type(functools.lru_cache(lambda: None))
BUILTIN_METHODS = (types.BuiltinMethodType, types.MethodWrapperType)
PROXIES = (weakref.ProxyType, weakref.CallableProxyType)

#: Nothing to follow or to enter.
ATOMS = frozenset(
    (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, types.CodeType)
)

#: More objects than these are not looked at: a module may lead to the whole program.
MANY = 50_000

#: Not entered: what has no places of its own, or belongs to the whole process.
CLOSED = (torch.Tensor, type, types.ModuleType, torch.jit.ScriptModule, torch.Generator)


def contents(value: Any, holder: Any = None, key: Any = None) -> Iterator[tuple[Any, Any, Any]]:
    """(holder, key, item) for what an object holds; ``holder[key] = other`` changes the object.

    Numbers, words and empty containers are left out: most of what a module holds is empty.

    Args:
        value: the object.
        holder, key: where it stands itself; one that cannot be changed is replaced there.
    """
    if isinstance(value, (dict, nn.Module)):
        if isinstance(value, nn.Module):
            value = vars(value)
        for name, item in list(value.items()):
            if not (type(item) in ATOMS or (type(item) in _CONTAINERS and not item)):
                yield value, name, item
    elif isinstance(value, (list, deque)):
        yield from ((value, place, item) for place, item in enumerate(value) if type(item) not in ATOMS)
    elif isinstance(value, tuple):
        whole = _Whole(holder, key, list(value), value)
        yield from ((whole, place, item) for place, item in enumerate(value) if type(item) not in ATOMS)
    elif isinstance(value, (set, frozenset)):
        members = list(value)
        some = _Members(value, members) if isinstance(value, set) else _Whole(holder, key, members, value)
        yield from ((some, place, item) for place, item in enumerate(members) if type(item) not in ATOMS)
    elif isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
            if is_assigned(cell):
                yield _Cell(cell), name, cell.cell_contents
        named = _Attributes(value)
        yield from (
            (named, n, getattr(value, n)) for n in ("__defaults__", "__kwdefaults__") if getattr(value, n)
        )
        yield from ((vars(value), n, item) for n, item in list(vars(value).items()))
    elif isinstance(value, (types.MethodType, *BUILTIN_METHODS)):
        bound = _Bound(holder, key, value)
        if isinstance(value, types.MethodType):
            yield bound, "__func__", value.__func__
        yield bound, "__self__", value.__self__
    elif isinstance(value, functools.partial):
        arguments = _Arguments(value)
        yield arguments, "func", value.func
        yield from ((arguments, place, item) for place, item in enumerate(value.args))
        yield from ((value.keywords, name, item) for name, item in list(value.keywords.items()))
    elif isinstance(value, LRU):
        yield vars(value), "__wrapped__", value.__wrapped__
    else:
        yield from _attributes(value)
        return
    if isinstance(value, (dict, list, deque, tuple, set, frozenset)) and type(value) not in _CONTAINERS:
        yield from _attributes(value)  # of a class of the user's


def _attributes(value: Any) -> Iterator[tuple[Any, Any, Any]]:
    own = getattr(value, "__dict__", value)
    if own is not value:  # nor a dictionary that is its own attributes
        yield from ((own, name, item) for name, item in list(own.items()))
    for cls in type(value).__mro__:
        names = vars(cls).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if isinstance(vars(cls).get(name), types.MemberDescriptorType) and hasattr(value, name):
                yield _Attributes(value), name, getattr(value, name)


#: Where it pays to see that they are empty.
_CONTAINERS = frozenset((dict, OrderedDict, list, set, tuple))


def is_assigned(cell: types.CellType) -> bool:
    return cell != types.CellType()  # the one comparison that does not fail on an empty one


def count(root: nn.Module) -> int:
    """How many things a module holds, tensors and other objects, directly or not."""
    stack, seen = [root], set()
    while stack:
        value = stack.pop()
        if id(value) not in seen:
            seen.add(id(value))
            if not isinstance(value, CLOSED) and type(value) not in PROXIES:
                stack += [item for _, _, item in contents(value)]
    return len(seen)


class _Cell:
    """A closure's variable."""

    def __init__(self, cell: types.CellType) -> None:
        self._cell = cell

    def __setitem__(self, key: Any, item: Any) -> None:
        self._cell.cell_contents = item


class _Attributes:
    """Attributes that stand in no dictionary."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def __setitem__(self, key: str, item: Any) -> None:
        object.__setattr__(self._owner, key, item)  # of a frozen dataclass, too


class _Whole:
    """Items of a tuple or a frozen set, which is replaced as a whole; its attributes go on to the next."""

    def __init__(self, holder: Any, key: Any, items: list[Any], value: Any) -> None:
        self._holder, self._key, self._items = holder, key, items
        self._make = getattr(type(value), "_make", type(value))
        self._attributes = getattr(value, "__dict__", None)

    def __setitem__(self, place: int, item: Any) -> None:
        self._items[place] = item
        twin = self._make(self._items)
        if self._attributes is not None:
            twin.__dict__ = self._attributes
        self._holder[self._key] = twin


class _Members:
    """Members of a set."""

    def __init__(self, members: set[Any], listed: list[Any]) -> None:
        self._members, self._listed = members, list(listed)

    def __setitem__(self, place: int, item: Any) -> None:
        self._members.discard(self._listed[place])
        self._members.add(item)
        self._listed[place] = item


class _Bound:
    """The two halves of a bound method, which is replaced as a whole."""

    def __init__(self, holder: Any, key: Any, method: Any) -> None:
        self._holder, self._key, self._name = holder, key, method.__name__
        self._halves = {"__func__": getattr(method, "__func__", None), "__self__": method.__self__}

    def __setitem__(self, half: str, item: Any) -> None:
        self._halves[half] = item
        function, owner = self._halves.values()
        self._holder[self._key] = (
            getattr(owner, self._name) if function is None else types.MethodType(function, owner)
        )


class _Arguments:
    """What `functools.partial` was given by position."""

    def __init__(self, partial: Any) -> None:
        self._partial, self._args = partial, list(partial.args)

    def __setitem__(self, key: Any, item: Any) -> None:
        partial = self._partial
        if key == "func":
            partial.__setstate__((item, partial.args, partial.keywords, vars(partial)))
        else:
            self._args[key] = item
            partial.__setstate__((partial.func, tuple(self._args), partial.keywords, vars(partial)))
