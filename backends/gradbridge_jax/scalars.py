"""Python integers among the arguments: traced where that gives the same number, compiled in where it may not.

A traced integer has 32 bits (64 with ``jax_enable_x64``), Python's has as many as it needs: ``x * 2**n`` and
``x * (n * 1000000)`` would be wrong in silence once it overflows. So a program serves for all values only if
it does with its integers what cannot overflow: make floats of them, compare them, index with them, count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Literal

_NAMES = """
    convert_element_type broadcast_in_dim reshape squeeze expand_dims transpose slice concatenate copy stop_gradient
    eq ne lt le gt ge select_n min max clamp rem sign abs neg and or xor not add sub add_any
    gather scatter dynamic_slice dynamic_update_slice
"""

#: Operations on integers whose results are no larger than what went in, by more than a few.
_SAFE = frozenset(_NAMES.split())

#: Sums of several of these still fit into 32 bits.
_LARGEST = 1 << 28


def fits_int32(leaves: Sequence[Any]) -> bool:
    """Whether the integers among leaves are far from the end of what JAX's hold."""
    return all(-_LARGEST < leaf < _LARGEST for leaf in leaves if type(leaf) is int)


def keeps_integers(jaxpr: Any, integers: Sequence[bool]) -> bool:
    """Whether a program's results are those that Python's integers would give.

    Args:
        jaxpr: of the program.
        integers: for each argument, whether it is a Python integer.
    """
    return _follow(jaxpr, integers) is not None


def _follow(jaxpr: Any, integers: Sequence[bool]) -> list[bool] | None:
    """For each result, whether it is an integer that came of theirs; None where something may overflow."""
    known = {var for var, yes in zip(jaxpr.invars, integers) if yes}
    for equation in jaxpr.eqns:
        uses = [not isinstance(v, Literal) and v in known for v in equation.invars]
        if not any(uses):
            continue
        name = equation.primitive.name
        if name in ("jit", "pjit", "custom_jvp_call", "closed_call", "core_call", "remat", "checkpoint"):
            inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            results = _follow(getattr(inner, "jaxpr", inner), uses)
            if results is None:
                return None
        else:
            whole = [jnp.issubdtype(v.aval.dtype, jnp.integer) for v in equation.outvars]
            if name not in _SAFE and any(whole):
                return None
            results = whole
        known.update(var for var, yes in zip(equation.outvars, results) if yes)
    return [not isinstance(v, Literal) and v in known for v in jaxpr.outvars]
