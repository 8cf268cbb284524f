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
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gradbridge.errors import GuestError
from gradbridge_torch.places import ATOMS, BUILTIN_METHODS, CLOSED, LRU, MANY, PROXIES, contents, is_assigned


class Deep:
    """A deep copy of a module, and the places in which its tensors stand.

    Args:
        module: the original; nothing of it is written to.
        memo: of `copy.deepcopy`: what stands for the copies of some objects, themselves often.
        lend: how a tensor that is not a parameter is copied; None is a copy right now.

    Attributes:
        module: the copy.
        tensors: (holder, key, tensor) for every place of it in which a tensor stands: ``holder[key] = other``
            puts another one there, whatever the holder is.
        kept: likewise for results that a dictionary or an attribute holds, neither parameters nor saved buffers:
            tensors, and tuples and lists of them.

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
        self._led: set[int] = set()
        self.tensors: list[tuple[Any, Any, torch.Tensor]] = []
        self.kept: list[tuple[Any, Any, Any]] = []
        try:
            self.module: nn.Module = self._copied(module)
        except Exception as error:
            raise GuestError(
                f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}), and a bridge works on "
                f"its own copy so that yours stays as it is; keep what cannot be copied (locks, files, loaders) "
                f"outside the module"
            ) from error
        self._led = self._leading(self.module)
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
            if type(value) in PROXIES or isinstance(value, (types.ModuleType, weakref.ref)):
                self._note(value, value)
            elif isinstance(value, torch.Tensor):
                if id(value) not in memo:
                    self._prepare_tensor(value)
            elif not isinstance(value, (types.FunctionType, *CLOSED)):
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

    # -- functions that lead to the module ----------------------------------------------------

    def _leading(self, root: Any) -> set[int]:
        """Functions that lead to something that was copied, or to what another such function holds on to.

        All others stay as they are: a hook that appends to a list of the user's goes on doing so.
        """
        pending: dict[int, set[int]] = {}
        copied = set(self._memo) - {id(self._memo)}
        for function in self._reached(root, set())[1]:
            pending[id(function)] = self._reached(function, copied)[0]
        leading: set[int] = set()
        while found := [key for key, reached in pending.items() if not reached.isdisjoint(copied)]:
            leading.update(found)
            for key in found:
                copied |= pending.pop(key)
        return leading

    def _reached(self, root: Any, closed: set[int]) -> tuple[set[int], list[types.FunctionType]]:
        """(identities of all that something leads to, the functions among it that nobody can import).

        Args:
            root: where to begin.
            closed: not entered.
        """
        stack, seen, functions = [root], set(), []
        while stack and len(seen) < MANY:
            value = stack.pop()
            if type(value) in PROXIES or isinstance(value, weakref.ref):
                seen.add(id(_referent(value)))
                continue
            if id(value) in seen or isinstance(value, (type, types.ModuleType)):
                continue
            if isinstance(value, types.FunctionType):
                if _is_global(value):
                    continue
                functions.append(value)
            seen.add(id(value))
            if id(value) not in closed and not isinstance(value, CLOSED):
                stack += [item for _, _, item in contents(value)]
        return seen, functions

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
                if isinstance(holder, dict) and _is_result(item):
                    self.kept.append((holder, key, item))
                if isinstance(item, torch.Tensor):
                    self.tensors.append((holder, key, item))
                elif isinstance(item, (tuple, *BUILTIN_METHODS, types.MethodType)):
                    stack.append((holder, key, item))  # has no places of its own: each time it is met
                elif id(item) in self._copies and id(item) not in self._entered:
                    self._entered.add(id(item))
                    if type(item) not in PROXIES and not isinstance(item, CLOSED):
                        stack.append((holder, key, item))

    def _followed(self, item: Any) -> Any:
        """What stands in the copy for something of the original; itself where it is a part of the copy already."""
        if type(item) in PROXIES or isinstance(item, weakref.ref):
            return self._weak(item)
        if id(item) in self._copies:
            return item
        if id(item) in self._memo:
            return self._memo[id(item)]
        if isinstance(item, types.FunctionType):
            return self._function(item) if id(item) in self._led else item
        if isinstance(item, LRU):
            inner = self._followed(item.__wrapped__)
            if inner is not item.__wrapped__:
                return self._made(item, functools.lru_cache(**item.cache_parameters())(inner))
        return item

    def _weak(self, reference: Any) -> Any:
        """To the copy of what it refers to, if there is one: a weak reference owns nothing, so it makes none."""
        twin = self._memo.get(id(_referent(reference)))
        if twin is None:
            return reference
        if isinstance(reference, weakref.WeakMethod):
            return weakref.WeakMethod(types.MethodType(reference().__func__, twin))
        return weakref.proxy(twin) if type(reference) in PROXIES else weakref.ref(twin)

    def _function(self, function: types.FunctionType) -> Any:
        original = vars(function).get("_torchdynamo_orig_callable")
        if original is not None:  # torch.compile's; a bridge computes with what was compiled
            return self._made(function, self._deep(original))
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        twin = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
        )
        functools.update_wrapper(twin, function, updated=())
        del twin.__wrapped__
        vars(twin).update(vars(function))
        self._made(function, twin)  # before what it closes over, which may be itself
        for cell, original in zip(cells, function.__closure__ or ()):
            if is_assigned(original):
                cell.cell_contents = self._deep(original.cell_contents)
        twin.__defaults__ = self._deep(function.__defaults__)
        twin.__kwdefaults__ = self._deep(function.__kwdefaults__)
        return twin

    def _deep(self, value: Any) -> Any:
        """What a function holds on to, copied if it can be."""
        if type(value) in ATOMS:
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


def _is_result(item: Any) -> bool:
    if type(item) in (tuple, list):
        return all(map(_is_result, item))
    return isinstance(item, torch.Tensor) and not isinstance(item, nn.Parameter)


def _referent(reference: Any) -> Any:
    """What a weak reference refers to, of a bound method its object; None where that is gone."""
    if type(reference) not in PROXIES:
        return (
            getattr(reference(), "__self__", None) if type(reference) is weakref.WeakMethod else reference()
        )
    try:
        return reference.__repr__.__self__
    except ReferenceError:
        return None


def _is_global(function: Any) -> bool:
    """Whether a function can be imported by its name: it belongs to the process, like a class."""
    found: Any = sys.modules.get(getattr(function, "__module__", None) or "")
    for name in getattr(function, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    return found is function
