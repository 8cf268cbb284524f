"""What the messages of several errors say in the same words."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gradbridge.errors import PluginError
from gradbridge.layout import BRIDGE_WITH_PARAMS, ParameterLayout, dtype_name


def first_line(error: BaseException) -> str:
    """Of its message, headings that end with a colon left out; empty where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.endswith(":") and line[:1] != "<"), "".join(lines[:1]))


def in_short(error: BaseException) -> str:
    """``TypeError: the first line of its message``; the class alone where it has none."""
    return f"{type(error).__name__}: {first_line(error)}".removesuffix(": ")


def without_params(error: BaseException, layout: ParameterLayout) -> str:
    """The end of a message on a call with an argument too few: one reason may be that a function was bridged without params.

    Args:
        error: what the call raised.
        layout: of the function.

    Returns:
        "" where it is another error, or the function has params.
    """
    is_one_too_few = isinstance(error, TypeError) and "required positional argument" in str(error)
    return f"; {BRIDGE_WITH_PARAMS}" if is_one_too_few and not layout.size else ""


def given(inputs: Sequence[Any], name: Callable[[Any], str] = dtype_name) -> str:
    """``input 0 of shape (4, 3) float64, input 2 of …``; ``no arrays`` where there are none.

    Args:
        inputs: leaves; those that are not arrays are left out.
        name: of an array's dtype.
    """
    arrays = (
        f"input {i} of shape {tuple(x.shape)} {name(x)}"
        for i, x in enumerate(inputs)
        if hasattr(x, "shape") and hasattr(x, "dtype")
    )
    return ", ".join(arrays) or "no arrays"


def described(value: Any) -> str:
    """What a value is, in words: ``None``, ``the class Linear``, ``an int``, ``a list``."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def unrecognised(model: Any, has_params: bool, guests: str) -> str:
    """What the error says of a model that no backend recognises.

    Args:
        model: a function, as a rule: nothing in it says which framework it is written in.
        has_params: whether params= was given with it.
        guests: names of the backends, to choose one from.
    """
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    if not callable(model):
        return f"no backend recognises {described(model)} ({kind}); name one with backend=…, one of {guests}"
    what = f"the function {model.__name__}" if hasattr(model, "__name__") else f"{described(model)} ({kind})"
    if isinstance(model, type):
        what = described(model)
    said = f"no backend recognises {what}, which does not say what framework it is written in"
    if has_params:
        return f"{said}; name that framework with backend=…, one of {guests}"
    return (
        f"{said}; for a function of arrays alone use gradbridge.primitive(backend=…), for a function of (parameters, "
        f"*arrays) gradbridge.bridge(fn, params=…, backend=…), with backend one of {guests}"
    )


def unwritten(error: BaseException, owner: object) -> PluginError | None:
    """The error for a method of a backend's class that its author has still to write; None where it is another.

    Args:
        error: as it was raised.
        owner: of that class; the innermost frame is of its module.
    """
    if type(error) is not NotImplementedError:
        return None
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    module = type(owner).__module__
    if frame.f_globals.get("__name__") != module:
        return None
    return PluginError(f"{frame.f_code.co_qualname} of {module} is still to be written: {error}")


def suggestion(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``did you mean 'torch'? `` for ``'troch'`` or ``'TROCH'``, with a space to go on; empty where nothing is near."""
    # Of those that differ by case alone, the one in the case that was written counts: it is sorted last.
    word = str(name)
    alike = sorted(known, key=lambda one: difflib.SequenceMatcher(None, word, one).ratio())
    folded = {one.casefold(): one for one in alike}
    near = difflib.get_close_matches(word.casefold(), list(folded), n=1, cutoff=cutoff)
    return f"did you mean {folded[near[0]]!r}? " if near else ""
