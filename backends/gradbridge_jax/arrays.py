"""The border between other libraries' arrays and JAX's: the one place of this backend that casts and copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbridge.arrays import aligned_copy
from gradbridge.errors import InputError, OptionError
from gradbridge.layout import dtype_name
from gradbridge.options import floating_name
from gradbridge.wording import first_line

_64_BITS = ("float64", "complex128", "longdouble", "float128", "complex256", "clongdouble")

_CPU = 1  # of DLPack's device types


class OnDevice:
    """What knows the device to compute on; a pickle names it, and each process looks it up.

    Attributes:
        device: None is where JAX likes.
    """

    device: jax.Device | None = None

    def __getstate__(self) -> dict[str, Any]:
        device = self.device
        return {**self.__dict__, "device": None if device is None else f"{device.platform}:{device.id}"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, device=compute_device(state["device"]))


def floating_dtype(name: str | None) -> np.dtype[Any] | None:
    """The dtype of a name such as ``"float64"``; NumPy's, with bfloat16 by ml_dtypes.

    Raises:
        OptionError: not a floating dtype.
    """
    full = floating_name(name)
    return None if full is None else np.dtype(jnp.dtype(full))


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
            f"device {device!r} cannot be used here: {first_line(error)}; leave it out or use one of {has}"
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


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed key of ``jax.random``, or an array of them: what holds no numbers."""
    return isinstance(leaf, jax.Array) and bool(jnp.issubdtype(leaf.dtype, jax.dtypes.extended))


def cast_floating(leaf: Any, dtype: np.dtype[Any] | None) -> Any:
    """A constant of the model in the dtype of the computation; what is not floating stays."""
    if not is_array(leaf):
        return leaf
    if dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.asarray(leaf, dtype)
    # A copy of NumPy arrays, which their owner may change in place.
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(np.array(leaf))


def has_64_bits(inputs: Sequence[Any]) -> bool:
    """Whether inputs ask for 64-bit numbers: one of them is one, or none of them is floating."""
    names = [dtype_name(x) for x in inputs if hasattr(x, "dtype")]
    floating = [name for name in names if "float" in name or "complex" in name or "longdouble" in name]
    return not floating or any(name in _64_BITS for name in floating)


def to_native(array: Any, dtype: np.dtype[Any] | None, x64: bool, place: str) -> Any:
    """What JAX computes with: a jax.Array as it is, a copy of everything that could be changed in place.

    The copy is NumPy's, aligned so that XLA takes it as it stands (JAX reads NumPy arrays where they are, later
    perhaps), and never made twice.

    Args:
        array: NumPy's, or any DLPack producer's.
        dtype: what floating arrays are cast to; None keeps theirs.
        x64: whether 64-bit numbers exist in this computation.
        place: which input it is, for the error.

    Raises:
        InputError: JAX has no such dtype, or an integer that does not fit.
    """
    if type(array) is np.ndarray:
        return aligned_copy(array, native_dtype(array, dtype, x64, place))
    if isinstance(array, jax.Array):
        to = native_dtype(array, dtype, x64, place)
        return array if array.dtype == to else array.astype(to)
    if not hasattr(array, "__dlpack__"):
        return to_native(np.asarray(array), dtype, x64, place)
    if array.__dlpack_device__()[0] == _CPU and not _is_immutable(array):
        try:
            view = np.from_dlpack(array)
        except (BufferError, RuntimeError, TypeError):
            pass  # bfloat16, which NumPy does not have
        else:
            return to_native(view, dtype, x64, place)
    taken = jax.dlpack.from_dlpack(array)
    if not _is_immutable(array):
        taken = taken.copy().block_until_ready()
    return to_native(taken, dtype, x64, place)


def native_dtype(array: Any, dtype: np.dtype[Any] | None, x64: bool, place: str) -> np.dtype[Any]:
    """The dtype in which the computation sees an array: a complex one in the precision asked for.

    Args:
        array: NumPy's or JAX's.
        dtype, x64, place: as for `to_native`.

    Raises:
        InputError: JAX has no such dtype, or an integer that does not fit.
    """
    if is_key(array):
        return array.dtype  # type: ignore[no-any-return]
    kind = array.dtype.kind
    if kind == "f":
        own = dtype if dtype is not None else array.dtype.newbyteorder("=")
        return np.dtype(np.float64) if own.itemsize > 8 else own
    if kind == "c":
        real = dtype if dtype is not None else np.dtype(f"f{array.dtype.itemsize // 2}")
        return np.dtype(np.complex128 if x64 and real.itemsize > 4 else np.complex64)
    if kind not in "iub":
        if isinstance(array, jax.Array):  # bfloat16 and smaller ones
            return dtype if dtype is not None and jnp.issubdtype(array.dtype, jnp.floating) else array.dtype
        raise InputError(
            f"JAX has no arrays of dtype {array.dtype}; convert {place} of shape {array.shape} to numbers"
        )
    if array.dtype.itemsize < 8 or x64:
        return array.dtype.newbyteorder("=")
    narrow = np.dtype(np.int32 if kind == "i" else np.uint32)
    limits, values = np.iinfo(narrow), np.asarray(array)
    if values.size and not (limits.min <= values.min() and values.max() <= limits.max):
        raise InputError(
            f"{place} has {array.dtype} values beyond {narrow}, and JAX has no 64-bit integers while it "
            f"computes in float32; bridge with dtype='float64'"
        )
    return narrow


def _is_immutable(array: Any) -> bool:
    """Whether nobody can change it in place: so of TensorFlow's tensors, which are not variables."""
    return type(array).__name__ == "EagerTensor"
