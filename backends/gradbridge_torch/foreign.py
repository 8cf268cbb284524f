"""Leaves of a graph that its computation was not given: what somebody else could train."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch


def foreign_leaves(outputs: Iterable[torch.Tensor | None], given: Iterable[Any]) -> list[torch.Tensor]:
    """Leaves with a gradient that outputs come from, and that the computation was neither given nor made itself.

    A leaf that it made, to differentiate by it, hangs in the graph alone; others have an owner.
    """
    seen: set[Any] = {None}
    stack, leaves = [], []
    for output in outputs:
        if output is not None and output.grad_fn is not None:
            stack.append(output.grad_fn)
        elif output is not None and output.requires_grad:
            leaves.append(output)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is None:
            for parent, _ in node.next_functions:
                if parent not in seen:
                    stack.append(parent)
        else:
            leaves.append(variable)
    own = set(map(id, given))
    strange = {id(leaf): leaf for leaf in leaves if id(leaf) not in own}
    leaves.clear()
    output = variable = None
    return [strange[key] for key in strange if _references(strange, key) > _references(_UNOWNED, 0)]


def _references(tensors: dict[int, Any], key: int) -> int:
    return sys.getrefcount(tensors[key])


#: A graph, and its leaf that nobody else holds.
_GRAPH = 2 * torch.zeros(1).requires_grad_()
_UNOWNED = {0: _GRAPH.grad_fn.next_functions[0][0].variable}  # type: ignore[union-attr]
