"""Deep copies that follow: what a module reaches through functions and weak references is the copy's own, too.

`copy.deepcopy` takes functions and weak references for atoms. A lambda over `self`, a forward that was
wrapped on the object, a child that knows its parent weakly: in the copy each would still lead to the
original. Here functions that nobody can import by name are made anew, with cells of their own, as
`pickle` and `copy` treat everything else that a module holds; weak references follow where what they
refer to was copied.
"""

from __future__ import annotations

import copy
import functools
import itertools
import sys
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from gradbridge.errors import GuestError

_LRU = type(functools.lru_cache(lambda: None))
_BUILTIN_METHODS = (types.BuiltinMethodType, types.MethodWrapperType)
_PROXIES = (weakref.ProxyType, weakref.CallableProxyType)

#: Nothing to follow or to enter.
_ATOMS = frozenset(
    (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, types.CodeType)
)

#: Not entered: what has no places of its own, or belongs to the whole process.
_CLOSED = (torch.Tensor, type, types.ModuleType, torch.jit.ScriptModule, torch.Generator)


class Deep:
    """A deep copy of a module, and the places in which its tensors stand.

    Args:
        module: the original; nothing of it is written to.
        memo: of `copy.deepcopy`: what stands for the copies of some objects, themselves often.
        lend: how a tensor that is no parameter is copied; None is a copy right now.

    Attributes:
        module: the copy.
        tensors: (holder, key, tensor) for every place of it in which a tensor stands: ``holder[key] = other``
            puts another one there, whatever the holder is.

    Raises:
        GuestError: the module cannot be copied.
    """

    def __init__(
        self,
        module: nn.Module,
        memo: dict[int, Any],
        lend: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._memo, self._lend, self._seen_of_memo = memo, lend, 0
        self._copies: dict[int, Any] = {}
        self._entered: set[int] = set()
        self.tensors: list[tuple[Any, Any, torch.Tensor]] = []
        try:
            self.module: nn.Module = self._copied(module)
        except Exception as error:
            raise GuestError(
                f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}), and a bridge works on "
                f"its own copy so that yours stays as it is; keep what cannot be copied (locks, files, loaders) "
                f"outside the module"
            ) from error
        self._repair(self.module)

    def _copied(self, value: Any) -> Any:
        self._prepare(value)
        twin = copy.deepcopy(value, self._memo)
        for copied in itertools.islice(self._memo.values(), self._seen_of_memo, None):
            self._copies[id(copied)] = copied
        self._seen_of_memo = len(self._memo)
        return twin

    def _prepare(self, value: Any) -> None:
        """Note copies of what `copy.deepcopy` cannot copy, or should not: results with a graph, modules, proxies."""
        memo, stack, seen = self._memo, [value], set()
        while stack:
            value = stack.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if type(value) in _PROXIES or isinstance(value, (types.ModuleType, weakref.ref)):
                self._note(value, value)
            elif isinstance(value, torch.Tensor):
                if id(value) not in memo:
                    self._prepare_tensor(value)
            elif not isinstance(value, (types.FunctionType, *_CLOSED)):
                stack += [item for _, _, item in contents(value)]

    def _prepare_tensor(self, tensor: torch.Tensor) -> None:
        if not tensor.is_leaf:
            # With its graph, so that whoever computes with it is seen to compute with what it was made from.
            with torch.enable_grad():
                self._note(tensor, tensor.clone() if self._lend is None else self._lend(tensor))
        elif self._lend is not None and not tensor.requires_grad and type(tensor) is torch.Tensor:
            self._note(tensor, self._lend(tensor))

    def _note(self, original: Any, twin: Any) -> None:
        self._memo[id(original)] = twin
        self._memo.setdefault(id(self._memo), []).append(original)  # alive as long as its id is a key

    # -- repairs ------------------------------------------------------------------------------

    def _repair(self, root: Any) -> None:
        """Let everything below a copy follow, and note its tensors."""
        stack: list[tuple[Any, Any, Any]] = [(None, None, root)]
        while stack:
            owner, place, value = stack.pop()
            for holder, key, item in contents(value, owner, place):
                followed = self._followed(item)
                if followed is not item:
                    holder[key] = item = followed
                if isinstance(item, torch.Tensor):
                    self.tensors.append((holder, key, item))
                elif isinstance(item, (tuple, *_BUILTIN_METHODS, types.MethodType)):
                    stack.append((holder, key, item))  # has no places of its own: each time it is met
                elif id(item) in self._copies and id(item) not in self._entered:
                    self._entered.add(id(item))
                    if type(item) not in _PROXIES and not isinstance(item, _CLOSED):
                        stack.append((holder, key, item))

    def _followed(self, item: Any) -> Any:
        """What stands in the copy for something of the original; itself where it is a part of the copy already."""
        if type(item) in _PROXIES or isinstance(item, weakref.ref):
            return self._weak(item)
        if id(item) in self._copies:
            return item
        if id(item) in self._memo:
            return self._memo[id(item)]
        if isinstance(item, types.FunctionType):
            return item if _is_global(item) else self._function(item)
        if isinstance(item, _LRU) and not _is_global(item):
            inner = self._followed(item.__wrapped__)
            return self._made(item, functools.lru_cache(**item.cache_parameters())(inner))
        return item

    def _weak(self, reference: Any) -> Any:
        """To the copy of what it refers to, if there is one: a weak reference owns nothing, so it makes none."""
        try:
            if isinstance(reference, weakref.WeakMethod):
                method = reference()
                twin = self._memo.get(id(getattr(method, "__self__", None)))
                return (
                    reference if twin is None else weakref.WeakMethod(types.MethodType(method.__func__, twin))
                )
            is_proxy = type(reference) in _PROXIES
            twin = self._memo.get(id(reference.__repr__.__self__ if is_proxy else reference()))
        except ReferenceError:  # a proxy of what is gone
            return reference
        if twin is None:
            return reference
        return weakref.proxy(twin) if is_proxy else weakref.ref(twin)

    def _function(self, function: types.FunctionType) -> Any:
        original = vars(function).get("_torchdynamo_orig_callable")
        if original is not None:  # torch.compile's; a bridge computes with what was compiled
            return self._made(function, self._deep(original))
        if not function.__closure__ and all(
            type(d) in _ATOMS
            for d in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        ):
            return function
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        twin = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
        )
        functools.update_wrapper(twin, function, updated=())
        del twin.__wrapped__
        vars(twin).update(vars(function))
        self._made(function, twin)  # before what it closes over, which may be itself
        for cell, original in zip(cells, function.__closure__ or ()):
            if _is_assigned(original):
                cell.cell_contents = self._deep(original.cell_contents)
        twin.__defaults__ = self._deep(function.__defaults__)
        twin.__kwdefaults__ = self._deep(function.__kwdefaults__)
        return twin

    def _deep(self, value: Any) -> Any:
        """What a function holds on to, copied if it can be."""
        if type(value) in _ATOMS:
            return value
        followed = self._followed(value)
        if followed is not value or id(value) in self._memo or id(value) in self._copies:
            return followed
        known = len(self._memo)
        try:
            return self._copied(value)
        except Exception:
            # Not a part of the module, or it would have been copied with it: a trainer, a loader, a lock. Where it
            # leads back to the user's parameters, a walk through the graph finds that.
            while len(self._memo) > known:
                self._memo.popitem()
            return value

    def _made(self, original: Any, twin: Any) -> Any:
        self._note(original, twin)
        self._copies[id(twin)] = twin
        return twin


def _is_global(function: Any) -> bool:
    """Whether a function can be imported by its name: it belongs to the process, like a class."""
    found: Any = sys.modules.get(getattr(function, "__module__", None) or "")
    for name in getattr(function, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    return found is function


# -- what objects hold ------------------------------------------------------------------------


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
            if not (type(item) in _ATOMS or (type(item) in _CONTAINERS and not item)):
                yield value, name, item
    elif isinstance(value, (list, deque)):
        yield from ((value, place, item) for place, item in enumerate(value) if type(item) not in _ATOMS)
    elif isinstance(value, tuple):
        whole = _Whole(holder, key, list(value), getattr(type(value), "_make", type(value)))
        yield from ((whole, place, item) for place, item in enumerate(value) if type(item) not in _ATOMS)
    elif isinstance(value, (set, frozenset)):
        members = list(value)
        some = (
            _Members(value, members) if isinstance(value, set) else _Whole(holder, key, members, type(value))
        )
        yield from ((some, place, item) for place, item in enumerate(members) if type(item) not in _ATOMS)
    elif isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
            if _is_assigned(cell):
                yield _Cell(cell), name, cell.cell_contents
        named = _Attributes(value)
        yield from (
            (named, n, getattr(value, n)) for n in ("__defaults__", "__kwdefaults__") if getattr(value, n)
        )
        yield from ((vars(value), n, item) for n, item in list(vars(value).items()))
    elif isinstance(value, (types.MethodType, *_BUILTIN_METHODS)):
        bound = _Bound(holder, key, value)
        if isinstance(value, types.MethodType):
            yield bound, "__func__", value.__func__
        yield bound, "__self__", value.__self__
    elif isinstance(value, functools.partial):
        arguments = _Arguments(value)
        yield arguments, "func", value.func
        yield from ((arguments, place, item) for place, item in enumerate(value.args))
        yield from ((value.keywords, name, item) for name, item in list(value.keywords.items()))
    elif isinstance(value, _LRU):
        yield vars(value), "__wrapped__", value.__wrapped__
    else:
        if hasattr(value, "__dict__"):
            own = vars(value)
            yield from ((own, name, item) for name, item in list(own.items()))
        for cls in type(value).__mro__:
            names = vars(cls).get("__slots__", ())
            for name in (names,) if isinstance(names, str) else names:
                if isinstance(vars(cls).get(name), types.MemberDescriptorType) and hasattr(value, name):
                    yield _Attributes(value), name, getattr(value, name)


#: Where it pays to see that they are empty.
_CONTAINERS = frozenset((dict, OrderedDict, list, set, tuple))


def _is_assigned(cell: types.CellType) -> bool:
    return cell != types.CellType()  # the one comparison that does not fail on an empty one


def count(root: nn.Module) -> int:
    """How many things a module holds, tensors and other objects, directly or not."""
    stack, seen = [root], set()
    while stack:
        value = stack.pop()
        if id(value) not in seen:
            seen.add(id(value))
            if not isinstance(value, _CLOSED) and type(value) not in _PROXIES:
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
    """Items of a tuple, which is replaced as a whole."""

    def __init__(self, holder: Any, key: Any, items: list[Any], make: Callable[[list[Any]], Any]) -> None:
        self._holder, self._key, self._items, self._make = holder, key, items, make

    def __setitem__(self, place: int, item: Any) -> None:
        self._items[place] = item
        self._holder[self._key] = self._make(self._items)


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
