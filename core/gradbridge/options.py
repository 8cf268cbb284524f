"""What a guest half is told besides the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradbridge.admission import as_array, refuse_more_than_numbers
from gradbridge.errors import OptionError
from gradbridge.layout import Array
from gradbridge.option_values import Takes, check_options, name_of_dtype
from gradbridge.wording import suggestion

#: What `gradbridge.bridge` takes itself, whatever the backend: a misspelt option may have meant one of them.
BRIDGE_OPTIONS = (
    *("backend", "host", "params", "dtype", "device", "mode", "seed", "noise", "check_finite", "reuse"),
    *("rows_per_chunk", "nondiff", "audit", "outputs", "registry"),
)

_ALIASES = {"double": "float64", "float": "float32", "half": "float16"}


def refuse_unknown_options(
    backend: str, options: dict[str, Any], known: Sequence[str] | Mapping[str, Takes]
) -> None:
    """Raise for options that a guest half does not know, or with values that they do not take.

    Args:
        backend: its name.
        options: as the user gave them; None is left to the guest half, as if it was not given.
        known: their names; or, by name, what they take.

    Raises:
        OptionError: names the option, and those that exist or what it takes.
    """
    unknown = [name for name in options if name not in known]
    if unknown:
        has = f"it has {', '.join(known)}" if known else "it has none of its own"
        hint = suggestion(unknown[0], [*known, *BRIDGE_OPTIONS])
        raise OptionError(f"backend {backend!r} has no option {', '.join(map(repr, unknown))}; {hint}{has}")
    if isinstance(known, Mapping):
        for name, value in options.items():
            if value is not None:
                known[name].check(name, value)


def floating_name(
    name: str | None, known: Sequence[str] = ("float64", "float32", "float16", "bfloat16")
) -> str | None:
    """The full name of a floating dtype: ``"float64"`` for ``"double"``; None for None.

    Args:
        name: as the user gave it.
        known: the dtypes that a backend computes in.

    Raises:
        OptionError: none of these.
    """
    full = _ALIASES.get(name, name) if name is not None else None
    if full is not None and full not in known:
        raise OptionError(
            f"dtype must be one of {', '.join(known)}, got {name!r}; {suggestion(full, (*known, *_ALIASES))}'model' keeps "
            f"the model's own"
        )
    return full


def refuse_params(options: GuestOptions, model: str) -> None:
    """Raise for `params` where the model has its own.

    Raises:
        OptionError
    """
    if options.params is not None:
        raise OptionError(f"params= belongs to functions; {model} brings its own parameters")


def parameter_array(leaf: Any, name: str, kinds: str = "fiubcV") -> Array:
    """A leaf of `params` that is not a native array as NumPy's.

    Args:
        leaf: a number, a list, or an array of any library.
        name: of it in the layout.
        kinds: of dtypes that may become parameters; V is bfloat16, say, and no structured dtype.

    Raises:
        OptionError: text, dates, objects …
        InputError: see `as_array`.
    """
    array = as_array(leaf, f"parameter {name!r} of params=")
    if array.dtype.kind not in kinds or array.dtype.fields is not None:
        raise not_a_parameter(name, array.dtype)
    return array


def not_a_parameter(name: str, dtype: Any) -> OptionError:
    """The error for a leaf of `params` of a dtype that parameters do not have."""
    text = ", and text is converted by float(…)" if getattr(dtype, "kind", "") in ("U", "S", "O") else ""
    return OptionError(
        f"parameter {name!r} of params= has dtype {dtype}; parameters are real floating arrays: keep constants in "
        f"the function itself{text}"
    )


@dataclass(frozen=True)
class GuestOptions:
    """What a guest half is told besides the model: the keyword arguments of `gradbridge.bridge`.

    Attributes:
        params: the parameter pytree of a function model, else None.
        dtype: the dtype to compute in, e.g. ``"float64"``; None keeps the model's own.
        device: the device to compute on; None keeps the model's own.
        mode: ``"eval"`` or ``"train"``.
        extra: options of this backend alone.
    """

    params: Any = None
    dtype: str | None = None
    device: Any = None
    mode: str = "eval"
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(dtype=self.dtype, device=self.device, mode=self.mode)
        refuse_more_than_numbers(self.params, "params=")
        if self.dtype is not None:
            object.__setattr__(self, "dtype", name_of_dtype(self.dtype))
