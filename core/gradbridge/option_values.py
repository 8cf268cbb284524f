"""What the options of `bridge` and `primitive` accept: one table, checked before a value is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gradbridge.errors import OptionError

MODES = ("eval", "train")
NOISES = ("frozen", "per_params", "per_call")
#: What `audit=` may be.
AUDITS = ("first", "off")
#: Ways to a Jacobian.
STRATEGIES = ("auto", "rows", "vjp", "jvp", "loop")


class Takes(NamedTuple):
    """What an option takes.

    Attributes:
        words: for the error: ``mode must be …``.
        fits: whether a value is such. It is asked of anything: of lists, arrays, objects.
    """

    words: str
    fits: Callable[[Any], bool]

    def check(self, option: str, value: Any) -> None:
        """Refuse another value.

        Raises:
            OptionError: names the option, what it takes, and what came.
        """
        if not self.fits(value):
            raise OptionError(f"{option} must be {self.words}, got {_shown(value)}")


def one_of(*values: Any) -> Takes:
    """One of some constants, of the same type: 1 is not True."""
    known = {(type(v), v) for v in values}
    return Takes(
        f"one of {', '.join(map(repr, values))}",
        lambda value: isinstance(value, (str, bool, type(None))) and (_plain_type(value), value) in known,
    )


def whole(words: str, least: int | None = None) -> Takes:
    """A whole number, of Python's or NumPy's."""

    def fits(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            return False
        return least is None or int(value) >= least

    return Takes(words, fits)


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return is_number and 0 < value < float("inf")


def _plain_type(value: Any) -> type:
    return str if isinstance(value, str) else type(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_device(value: Any) -> bool:
    """What a framework may take for a device: its own objects, names, and numbers of a GPU."""
    return not isinstance(value, (bool, float, complex, bytes, list, tuple, dict, set, frozenset, np.ndarray))


#: What is or is not.
FLAG = Takes("True or False", _is_flag)
#: A name, or any other text.
TEXT = Takes("a name", _is_text)
POSITIVE = Takes("a positive number", _is_positive)
#: Whatever the backend makes of it, and refuses itself.
ANYTHING = Takes("anything", lambda value: True)

_DTYPE = "a floating dtype or the name of one, such as 'float64'"

OPTIONS: dict[str, Takes] = {
    "backend": Takes("the name of a backend, or None", lambda value: value is None or _is_text(value)),
    "host": Takes("the name of a backend, or 'auto'", _is_text),
    "name": TEXT,
    "registry": Takes(
        "a gradbridge.registry.Registry, or None", lambda value: value is None or hasattr(value, "observing")
    ),
    "mode": one_of(*MODES),
    "noise": one_of(*NOISES),
    "audit": one_of(*AUDITS),
    "strategy": one_of(*STRATEGIES),
    "seed": whole("an integer"),
    "reuse": whole("a number of evaluations to remember, 0 or more", 0),
    "rows_per_chunk": whole("a number of rows, 1 or more", 1),
    "max_chunk": whole("a number of bytes, 1 or more", 1),
    "check_finite": FLAG,
    "names": FLAG,
    "device": Takes("a device of the backend's framework, or the name of one", _is_device),
    "dtype": Takes(_DTYPE, lambda value: value is None or bool(name_of_dtype(value))),
}


def check_options(**values: Any) -> None:
    """Refuse values that options do not take.

    Args:
        **values: by the names in `OPTIONS`.

    Raises:
        OptionError: names the option, what it takes, and what came.
    """
    for option, value in values.items():
        OPTIONS[option].check(option, value)


def name_of_dtype(dtype: Any) -> str:
    """The name of a dtype of any framework; "" for what is none."""
    if isinstance(dtype, str):
        return dtype
    if isinstance(dtype, type):
        if issubclass(dtype, (np.generic, int, float, complex)) or dtype is object:
            return np.dtype(dtype).name
        dtype = getattr(dtype, "dtype", dtype)  # JAX's scalar types
    elif hasattr(dtype, "__array__") or isinstance(dtype, bool):
        return ""
    name = getattr(dtype, "name", None)
    name = name if isinstance(name, str) else str(dtype).rsplit(".", 1)[-1]
    return name if name.isidentifier() else ""


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}…"
