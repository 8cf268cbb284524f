"""Looking into what JAX traced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax


def jaxprs(closed: Any) -> Iterator[tuple[Any, list[Any]]]:
    """(jaxpr, its constants) of a closed jaxpr and of all that its equations hold."""
    if hasattr(closed, "consts"):
        jaxpr, constants = closed.jaxpr, list(closed.consts)
    else:
        jaxpr, constants = closed, []
    yield jaxpr, constants
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(part, "eqns"):
                    yield from jaxprs(part)


def has_primitive(closed: Any, name: str) -> bool:
    """Whether there is an equation of a primitive anywhere in it."""
    return any(eqn.primitive.name.startswith(name) for jaxpr, _ in jaxprs(closed) for eqn in jaxpr.eqns)


def constant_arrays(closed: Any) -> Iterator[Any]:
    """The arrays that it was traced with and that are none of its arguments."""
    for jaxpr, constants in jaxprs(closed):
        yield from constants
        for equation in jaxpr.eqns:
            for atom in equation.invars:
                if isinstance(getattr(atom, "val", None), jax.Array):
                    yield atom.val
