"""Warnings, at the line of the user's that they are about."""

from __future__ import annotations

import sys
import warnings

from gradbridge.errors import GradbridgeWarning
from gradbridge.outside import is_installed


def tried(label: str) -> str:
    """What is said of a model that is evaluated to find the shapes of its outputs."""
    return (
        f"the shapes of what {label} returns were asked for before it ran, so it is evaluated once, at arrays of ones, for "
        f"each shape of its inputs; say what it returns with outputs=, a tree of (shape, dtype) or a function of its "
        f"inputs' shapes and dtypes"
    )


def notice(text: str) -> None:
    """Warn at the innermost line that is neither ours nor of an installed package through which we are called.

    How many frames lie between depends on the way: a bridge that is made, a call, a gradient.

    Args:
        text: of the warning.
    """
    frame, level = sys._getframe(), 1
    while frame.f_back is not None:
        root = (frame.f_globals.get("__name__") or "").partition(".")[0]
        if (
            root != "gradbridge"
            and not root.startswith("gradbridge_")
            and not is_installed(frame.f_code.co_filename)
        ):
            break
        frame, level = frame.f_back, level + 1
    warnings.warn(text, GradbridgeWarning, stacklevel=level)
