"""Compilers that read the program around a call instead of running it: who takes the call there.

Such a compiler would trace into our Python, which it cannot compile. A host that has one names a function that it
takes as it stands, an operation of its program; a call goes there with the bridge's key in place of the bridge.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple


class Compiler(NamedTuple):
    """One that may be reading.

    Attributes:
        is_reading: asked, and answered by the compiler itself.
        call: (key of the bridge, its weights or (), inputs, keyword arguments) ↦ what the call returns.
    """

    is_reading: Callable[[], bool]
    call: Callable[[str, tuple[Any, ...], tuple[Any, ...], dict[str, Any]], Any]


#: Of the hosts that were loaded.
compilers: list[Compiler] = []

#: {key: bridge}
bridges: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()

_numbers = itertools.count()


def key_for(bridge: Any) -> str:
    """A key by which a bridge is found, as long as it lives."""
    key = f"bridge {next(_numbers)}"
    bridges[key] = bridge
    return key
