"""Warnings, at the line of the user's that they are about."""

from __future__ import annotations

import sys
import warnings

from gradbridge.errors import GradbridgeWarning

#: Between the user's line and what we notice; our packages begin with the first.
_PASSED = ("gradbridge", "autograd", "torch")


def notice(text: str) -> None:
    """Warn at the innermost line that is neither ours nor of a library that we are called through.

    How many frames lie between depends on the way: a bridge that is made, a call, a gradient.

    Args:
        text: of the warning.
    """
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and _is_passed(frame.f_globals.get("__name__") or ""):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, GradbridgeWarning, stacklevel=level)


def _is_passed(module: str) -> bool:
    root = module.partition(".")[0]
    return root in _PASSED or root.startswith("gradbridge_")
