"""The derivative of a written rule, where it is written in the functions of a system that differentiates.

A rule in ``autograd.numpy``, as autograd's own `defvjp` takes them, is a function of arrays like any
other: (answer, arguments, cotangent) ↦ gradient. The guest half of that system differentiates it, and the
answer's part in it is pulled back by the rules of the first order.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.call_spec import CallSpec
from gradbridge.errors import GradbridgeError
from gradbridge.layout import Array
from gradbridge.options import GuestOptions
from gradbridge.outside import names_in
from gradbridge.registry import default_registry


def system_of(rule: Callable[..., Any]) -> str | None:
    """The backend whose functions a rule is written in: of those that are hosts, too, and so take NumPy's arrays.

    Args:
        rule: what its code names is looked at, and the code of the functions that it names.
    """
    registry = default_registry()
    systems = {}
    for name in registry.names():
        backend = registry.backend(name)
        if backend.host is not None and backend.guest is not None and backend.framework is not None:
            systems[backend.framework[0]] = name
    return next((systems[top] for top in _packages(rule) if top in systems), None)


def _packages(function: Any) -> Iterator[str]:
    """The top-level packages that the code of a function names."""
    seen: set[int] = set()
    stack = [getattr(function, "maker", function)]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        module = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        if isinstance(module, str):
            yield module.split(".")[0]
        if isinstance(value, types.FunctionType):
            stack += _named(value)


def _named(function: types.FunctionType) -> Iterator[Any]:
    """Functions and modules that its code names, in the functions within it, too."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue  # not bound yet
    variables = function.__globals__
    yield from (variables[name] for name in names_in(function.__code__) if name in variables)


def pulled(
    system: str,
    rule: Callable[..., Any],
    answer: Sequence[Any],
    arguments: Sequence[Any],
    cotangents: Sequence[Array],
    wanted: Sequence[int],
    along: Sequence[Array],
) -> tuple[list[Array], list[Array]]:
    """Pull the gradient that a rule gives back to leaves of the arguments, and of the answer.

    Args:
        system: the backend.
        rule: (answer leaves, argument leaves, cotangent leaves) ↦ gradient leaves.
        answer, arguments, cotangents: leaves.
        wanted: which leaves of the arguments.
        along: a cotangent for each leaf of the gradient.

    Returns:
        (a gradient for each of `wanted`, one for each leaf of the answer, zeros for one of integers).

    Raises:
        GradbridgeError: the system cannot differentiate the rule.
    """
    first, second = len(answer), len(answer) + len(arguments)

    def function(*leaves: Any) -> Any:
        return tuple(rule(leaves[:first], leaves[first:second], leaves[second:]))

    adapter = default_registry().guest(system)(function, GuestOptions())
    leaves = [np.asarray(x) if isinstance(x, float) else x for x in (*answer, *arguments, *cotangents)]
    moving = [i for i, y in enumerate(answer) if np.asarray(y).dtype.kind == "f"]
    wrt = (*moving, *(first + i for i in wanted))
    outputs, residuals = adapter.forward(adapter.update([]), leaves, CallSpec.of_arrays(len(leaves)), wrt)
    if len(trees.flatten(outputs)[0]) != len(along):
        raise GradbridgeError("the rule returned another number of arrays")
    gradients = [adapter.border.view(g) for g in adapter.backward(residuals, list(along), wrt)]
    by_answer = dict(zip(moving, gradients))
    zeros = [np.zeros(np.shape(y)) for y in answer]
    return gradients[len(moving) :], [by_answer.get(i, zero) for i, zero in enumerate(zeros)]
