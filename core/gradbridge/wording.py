"""What the messages of several errors say in the same words."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gradbridge.layout import dtype_name


def first_line(error: BaseException) -> str:
    """Of its message, headings that end with a colon left out; empty where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.endswith(":") and line[:1] != "<"), "".join(lines[:1]))


def in_short(error: BaseException) -> str:
    """``TypeError: the first line of its message``; the class alone where it has none."""
    return f"{type(error).__name__}: {first_line(error)}".removesuffix(": ")


def given(inputs: Sequence[Any], name: Callable[[Any], str] = dtype_name) -> str:
    """``input 0 of shape (4, 3) float64, input 2 of …``.

    Args:
        inputs: leaves; those that are no arrays are left out.
        name: of an array's dtype.
    """
    arrays = (
        f"input {i} of shape {tuple(x.shape)} {name(x)}"
        for i, x in enumerate(inputs)
        if hasattr(x, "shape") and hasattr(x, "dtype")
    )
    return ", ".join(arrays) or "no array"


def suggestion(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``did you mean 'torch'? `` for ``'troch'`` or ``'TROCH'``, with a space to go on; empty where nothing is near."""
    # Of those that differ by case alone, the one in the case that was written counts: it is sorted last.
    word = str(name)
    alike = sorted(known, key=lambda one: difflib.SequenceMatcher(None, word, one).ratio())
    folded = {one.casefold(): one for one in alike}
    near = difflib.get_close_matches(word.casefold(), list(folded), n=1, cutoff=cutoff)
    return f"did you mean {folded[near[0]]!r}? " if near else ""
