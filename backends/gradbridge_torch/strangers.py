"""Whose a tensor is that a module computed with though nobody handed it in, in words that its owner finds it by."""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from gradbridge.inspection import Stranger
from gradbridge_torch.places import MANY, PROXIES, contents
from gradbridge_torch.replicas import EMPTIED, Replica

#: Dictionaries of a module whose keys are read like attributes.
_REGISTERED = ("_parameters", "_buffers", "_modules")


class _Step(NamedTuple):
    """From one object to another that it holds."""

    owner: Any
    key: Any


Path = tuple[_Step, ...]


def stranger(
    native: torch.Tensor, module: nn.Module, named: Mapping[str, torch.Tensor], replicas: Iterable[Replica]
) -> Stranger:
    """What a leaf of a graph is to a module.

    Args:
        native: the leaf.
        module: the user's own.
        named: its trainable parameters: of the layout.
        replicas: what may have computed with it.
    """
    own = {id(p): name for name, p in named.items()}
    for replica in replicas:
        path = _path_to(native, replica.module)
        is_kept = path is None
        path = path or _path_to_result(native, replica.module)
        if path is None:
            continue
        keys = [step.key for step in path]
        # A parameter of the user's, or a copy of one that bridging should have replaced.
        twins = (id(t) for p, t in _tensors(module) if [step.key for step in p] == keys)
        name = own.get(id(native)) or next((own[twin] for twin in twins if twin in own), None)
        return Stranger(_words(name, path, is_kept), name is not None)
    if id(native) in own:
        path = _path_to_result(native, module)  # that was replaced in the replica since
        if path is not None:
            return Stranger(_words(own[id(native)], path, True), True)
        return Stranger(f"parameter {own[id(native)]!r} of your own module, reached from outside of it", True)
    if getattr(native, "_is_param", False) and type(native) is torch.Tensor:
        return Stranger(
            f"a weight of shape {tuple(native.shape)} of another call, kept outside of the module", True
        )
    path = _path_to(native, module)
    if path is not None:
        return Stranger(_words(None, path, False), False)
    return Stranger(f"a tensor of shape {tuple(native.shape)} from outside of the module", False)


def _path_to(tensor: torch.Tensor, root: nn.Module) -> Path | None:
    """How a module leads to a tensor."""
    return next((path for path, one in _tensors(root) if one is tensor), None)


def _path_to_result(tensor: torch.Tensor, root: nn.Module) -> Path | None:
    """How a module leads to something that was computed from a tensor and kept."""
    return next(
        (path for path, one in _tensors(root) if one is not EMPTIED and _comes_from(one, tensor)), None
    )


def _comes_from(found: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether one was computed from another."""
    stack, seen = [found.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", None) is tensor:
            return True
        stack += [parent for parent, _ in node.next_functions]
    return False


def _tensors(root: nn.Module) -> Iterator[tuple[Path, torch.Tensor]]:
    """All tensors that a module leads to, by any way, the nearest first."""
    queue: deque[tuple[Path, Any]] = deque([((), root)])
    seen: set[int] = set()
    while queue and len(seen) < MANY:
        path, owner = queue.popleft()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        for key, item in _held(owner):
            there = (*path, _Step(owner, key))
            if isinstance(item, torch.Tensor):
                yield there, item
            elif not isinstance(item, (type, types.ModuleType, str, bytes, int, float, torch.Generator)):
                queue.append((there, item))


def _held(owner: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(owner, torch.jit.ScriptModule):
        yield from owner.named_parameters()
        yield from owner.named_buffers()
        return
    if type(owner) in PROXIES:
        return
    if isinstance(owner, weakref.ref):
        yield "", owner()
        return
    for _, key, item in contents(owner, {}):
        yield key, item
    if isinstance(owner, types.FunctionType):
        yield from _globals_of(owner)
    elif isinstance(owner, nn.Module):
        for cls in type(owner).__mro__:
            if not cls.__module__.startswith("torch."):
                for key, item in list(vars(cls).items()):
                    if isinstance(item, (types.FunctionType, torch.Tensor, list, dict, tuple, nn.Module)):
                        yield key, item


def _globals_of(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    stack = [function.__code__]
    while stack:
        code = stack.pop()
        stack += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        for name in code.co_names:
            item = function.__globals__.get(name)
            if isinstance(item, (torch.Tensor, nn.Module, list, dict, tuple, functools.partial)):
                yield name, item


def _words(name: str | None, path: Path, is_kept: bool) -> str:
    """``parameter 'scale', reached through the lambda in attribute 'act'``."""
    written, asides, holder, is_registered = "", [], "", False
    for owner, key in path:
        if isinstance(owner, types.FunctionType):
            if key in owner.__code__.co_freevars or key not in owner.__globals__:
                what = "lambda" if owner.__name__ == "<lambda>" else "function"
                asides.append(f"the {what} in attribute {written!r}")
                written = "" if key == "self" else str(key)
            else:
                asides.append(f"a global that {owner.__qualname__} reads")
                written = str(key)
        elif isinstance(owner, torch.jit.ScriptModule):
            asides.append(f"the TorchScript part {written!r}")
            written += f".{key}"
        elif isinstance(owner, weakref.ref):
            asides.append(f"the weak reference in attribute {written!r}")
            written = ""
        elif isinstance(owner, (list, tuple, set, frozenset, deque)):
            written += f"[{key!r}]"
            holder = type(owner).__name__
        elif isinstance(owner, dict) and not is_registered:
            written += f"[{key!r}]"
            holder = "dict"
        elif key in _REGISTERED and isinstance(owner, nn.Module):
            is_registered = True
            continue
        elif not str(key).startswith("__"):
            written += f".{key}" if written else str(key)
        is_registered = False
    what = written if name is None else f"parameter {name!r}"
    if is_kept:
        what = f"{'a tensor' if name is None else what}, from which {written!r} was computed before and kept"
        holder = ""
    if asides:
        return f"{what}, reached through {' and '.join(dict.fromkeys(asides))}"
    return f"{what}, kept in a plain {holder} ({written})" if holder else what
