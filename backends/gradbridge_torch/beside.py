"""What a model returns next to its tensors, and is none: a cache, a config, words, counts.

A caller is given it as it is, without copying it. But tensors in it that hang on a graph would keep
the whole call alive, and show its weights to whoever follows the graph. So what holds such tensors
is a shallow copy of itself, with these detached: they share their memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

#: Looked into by nobody: a module's slots are emptied after the call.
_OPAQUE = (nn.Module, type, ModuleType, FunctionType, MethodType, str, bytes, int, float, complex)


def without_graph(value: Any) -> Any:
    """The value itself, or a copy that shares all but the graph of its tensors.

    Args:
        value: of any kind, with cycles or without.
    """
    parents: dict[int, list[int]] = {}
    met: dict[int, Any] = {}
    attached: list[int] = []
    pending = [value]
    while pending:
        one = pending.pop()
        if id(one) in met:
            continue
        met[id(one)] = one
        if isinstance(one, torch.Tensor):
            if one.requires_grad:
                attached.append(id(one))
            continue
        for _, part in _parts(one):
            parents.setdefault(id(part), []).append(id(one))
            pending.append(part)
    changed: set[int] = set()
    while attached:
        one = attached.pop()
        if one not in changed:
            changed.add(one)
            attached += parents.get(one, ())
    return _copied(value, changed, {}) if changed else value


def _copied(value: Any, changed: set[int], twins: dict[int, Any]) -> Any:
    if id(value) not in changed:
        return value
    if id(value) in twins:
        return twins[id(value)]
    if isinstance(value, torch.Tensor):
        twins[id(value)] = value.detach()
        return twins[id(value)]
    if isinstance(value, tuple):
        items = [_copied(item, changed, twins) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    twins[id(value)] = twin = copy.copy(value)
    for key, part in list(_parts(value)):
        if id(part) not in changed:
            continue
        new = _copied(part, changed, twins)
        if key[0] == "item":
            twin[key[1]] = new
        elif key[0] == "member":
            twin.remove(part)
            twin.add(new)
        else:
            object.__setattr__(twin, key[1], new)
    return twin


def _parts(value: Any) -> Iterator[tuple[tuple[str, Any], Any]]:
    """(where it is, part) of what a value consists of."""
    if value is None or isinstance(value, _OPAQUE):
        return
    if isinstance(value, dict):
        yield from ((("item", key), part) for key, part in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((("item", index), part) for index, part in enumerate(value))
    elif isinstance(value, set):
        yield from ((("member", None), part) for part in value)
    yield from ((("attribute", name), part) for name, part in getattr(value, "__dict__", {}).items())
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            part = getattr(value, name, None)
            if name not in ("__dict__", "__weakref__") and part is not None:
                yield ("attribute", name), part
