"""Which values that are not arrays can be told apart by looking at them: those that never change.

A model may be handed any object beside its arrays. What is made once for such an object and found
again (a compiled program, an evaluation that is remembered) is only right while the object stays as
it was, and no look at a mutable one tells that.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Hashable
from typing import Any

import numpy as np

_SCALARS = (str, bytes, bool, int, float, complex)  # exactly: a subclass may have attributes that change
_CONSTANT = (np.generic, type, enum.Enum, np.dtype)


def constant_key(value: Any) -> Hashable | None:
    """What tells one constant from another, its type included: 1 is not True, nor 1.0.

    Returns:
        A key; None where nothing can tell, because the value may change without being another one:
        an object with attributes, a set, a function over variables that may be bound anew.
    """
    if type(value) in _SCALARS or isinstance(value, _CONSTANT):
        return type(value), value
    if isinstance(value, types.FunctionType) and value.__closure__ is None:
        return types.FunctionType, value
    if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, types.ModuleType):
        return types.BuiltinFunctionType, value  # and no method of an object
    if value is None or value is Ellipsis:
        return type(value), None
    if isinstance(value, frozenset):
        keys = [constant_key(item) for item in value]
        return (frozenset, frozenset(keys)) if None not in keys else None
    return None


class Same:
    """An object by identity; held, so that its identity is not used again."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value
