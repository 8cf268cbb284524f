"""The border between NumPy arrays and JAX's: the one place of this backend that casts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbridge.errors import InputError, OptionError
from gradbridge.protocol import Array

FLOATING = ("float64", "float32", "float16", "bfloat16")
_ALIASES = {"double": "float64", "float": "float32", "half": "float16"}


def floating_dtype(name: str | None) -> np.dtype[Any] | None:
    """The dtype of a name such as ``"float64"``; NumPy's, with bfloat16 by ml_dtypes.

    Raises:
        OptionError: not a floating dtype.
    """
    if name is None:
        return None
    found = _ALIASES.get(name, name)
    if found not in FLOATING:
        raise OptionError(f"dtype must be one of {', '.join(FLOATING)}, got {name!r}")
    return np.dtype(jnp.dtype(found))


def compute_device(device: Any) -> jax.Device | None:
    """The device of an option: a ``jax.Device``, or a name such as ``"cpu"`` or ``"gpu:1"``.

    Raises:
        OptionError: there is no such device here.
    """
    if device is None or isinstance(device, jax.Device):
        return device
    platform, _, index = str(device).partition(":")
    try:
        return jax.devices(platform)[int(index or 0)]
    except (RuntimeError, ValueError, IndexError) as error:
        has = ", ".join(sorted({f"{d.platform}:{d.id}" for d in jax.devices()}))
        raise OptionError(
            f"device {device!r} cannot be used here: {str(error).splitlines()[0]}; leave it out or use one "
            f"of {has}"
        ) from error


def own_device(arrays: Any) -> jax.Device | None:
    """Where the model's own arrays were put on purpose; None if they lie where JAX likes."""
    for array in arrays:
        if isinstance(array, jax.Array) and array.committed and len(array.devices()) == 1:
            return next(iter(array.devices()))
    return None


def is_array(leaf: Any) -> bool:
    """Whether a leaf of a tree is an array, of NumPy or JAX, concrete or traced."""
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is an array of floating (or complex) numbers: what is trained."""
    return is_array(leaf) and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def cast_floating(leaf: Any, dtype: np.dtype[Any] | None) -> Any:
    """A constant of the model in the dtype of the computation; what is not floating stays."""
    if not is_array(leaf):
        return leaf
    if dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.asarray(leaf, dtype)
    # A copy of NumPy arrays, which their owner may change in place.
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(np.array(leaf))


def to_guest(array: Array, dtype: np.dtype[Any] | None, wide: bool, index: int) -> Array:
    """A copy of an input in the dtype that the computation sees: a complex one in that precision.

    Always a copy: JAX reads NumPy arrays where they stand, later perhaps, and the caller may change
    its own.

    Args:
        array: of any dtype that NumPy has.
        dtype: what floating arrays are cast to; None keeps theirs.
        wide: whether 64-bit numbers exist in this computation.
        index: which input it is, for the error.

    Raises:
        InputError: JAX has no such dtype, or an integer that does not fit.
    """
    kind = array.dtype.kind
    if kind == "f":
        through = dtype if dtype is not None else array.dtype.newbyteorder("=")
        return np.array(array, dtype=np.float64 if through.itemsize > 8 else through, order="C")
    if kind == "c":
        real = dtype if dtype is not None else np.dtype(f"f{array.dtype.itemsize // 2}")
        return np.array(array, np.complex128 if wide and real.itemsize > 4 else np.complex64, order="C")
    if kind not in "iub":
        raise InputError(
            f"JAX has no arrays of dtype {array.dtype}; convert input {index} of shape {array.shape} to numbers"
        )
    if array.dtype.itemsize < 8 or wide:
        return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    narrow = np.dtype(np.int32 if kind == "i" else np.uint32)
    limits = np.iinfo(narrow)
    if array.size and not (limits.min <= array.min() and array.max() <= limits.max):
        raise InputError(
            f"input {index} has {array.dtype} values beyond {narrow}, and JAX has no 64-bit integers while it "
            f"computes in float32; bridge with dtype='float64'"
        )
    return np.array(array, dtype=narrow, order="C")


def to_array(value: Any) -> Array:
    """A new NumPy array with the content; what NumPy does not have (bfloat16) widens to float32."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiubc":
        return array.astype(np.float32)
    return np.array(array)
