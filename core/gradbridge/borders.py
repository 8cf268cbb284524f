"""The borders: the one place that checks and casts what comes in and what goes out (law 6).

Params cross as float64 flat vectors. Floating inputs keep their dtype until the guest's own
border; integers and booleans are never cast. Outputs and gradients come back in the host's
dtype: that of the params, or of the first floating input where there are no params; complex ones
in the complex dtype of that precision.

Complex arrays cross to guests that take them. A cotangent c of a complex array y pairs with a
tangent dy as Re Σ c dy, without a conjugation: the gradient of a real function of z = x + iy is
∂/∂x - i ∂/∂y, as in HIPS autograd and JAX. PyTorch and TensorFlow have its conjugate; their guests
turn it around.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.errors import (
    CotangentMismatchError,
    InputError,
    NonFiniteParamsError,
    NotDifferentiableError,
    OutputError,
    ParamsDtypeError,
    ParamsShapeError,
)
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Array

#: Kinds of dtypes that have derivatives: floating and complex numbers.
INEXACT = ("f", "c")

_DTYPE_ADVICE = {
    "c": "params are a real vector: keep the real and imaginary parts as two real parameters",
    "O": "an object array is usually a ragged list: build the vector with f.layout.ravel(…)",
    "U": "convert the strings to numbers first",
    "S": "convert the bytes to numbers first",
    "b": "booleans have no gradient: cast with params.astype(float)",
}


def check_params(params: Any, layout: ParameterLayout, label: str) -> np.dtype[Any]:
    """Refuse a parameter vector that does not fit; reads only its shape and dtype.

    Returns:
        The host's dtype for this call: that of the params, float64 for integers.

    Raises:
        ParamsDtypeError: not a real number dtype.
        ParamsShapeError: not of shape (layout.size,).
    """
    dtype, shape = params.dtype, params.shape
    if shape == (layout.size,) and type(dtype) is _FLOAT64:
        return dtype  # by far the most calls
    return _check_unusual(np.dtype(dtype), tuple(shape), layout, label)


_FLOAT64 = type(np.dtype(np.float64))


def _check_unusual(
    dtype: np.dtype[Any], shape: tuple[int, ...], layout: ParameterLayout, label: str
) -> np.dtype[Any]:
    if dtype.kind not in "fiu":
        raise ParamsDtypeError(
            f"the bridge over {label} expects real params, float64 for preference, got dtype {dtype}; "
            f"{_DTYPE_ADVICE.get(dtype.kind, 'cast them to float64')}"
        )
    if shape != (layout.size,):
        if len(shape) != 1 and layout.size in (int(np.prod(shape)), 0):
            advice = "flatten them with params.reshape(-1)"
        else:
            advice = "build them with f.layout.ravel(…)"
        raise ParamsShapeError(
            f"the bridge over {label} expects params of shape ({layout.size},), got {shape}; {advice}"
        )
    return dtype if dtype.kind == "f" else np.dtype(np.float64)


def check_finite(params: Array, layout: ParameterLayout, label: str) -> None:
    """Refuse NaN and infinity, saying where the first one stands.

    Raises:
        NonFiniteParamsError: some value is not finite.
    """
    finite = np.isfinite(params)
    if finite.all():
        return
    nans = int(np.isnan(params).sum())
    infinities = int((~finite).sum()) - nans
    first = int(np.argmin(finite))
    raise NonFiniteParamsError(
        f"the bridge over {label} was asked to check its params and got {nans} NaN and {infinities} "
        f"infinite values among {layout.size}; the first is {layout.locate(first)} = {params[first]} "
        f"at position {first}; look at the step that produced them (a learning rate too large?)"
    )


def admit(leaf: Any, position: int, label: str, takes_complex: bool) -> Any:
    """Bring one untraced input leaf into the form that guests take.

    Floating values become NumPy arrays, other arrays stay as they are, and what is no array
    (Python integers, strings, callables …) goes through untouched.

    Raises:
        InputError: a complex value, and the guest takes none.
    """
    if type(leaf) is np.ndarray:
        array = leaf
    elif isinstance(leaf, (bool, int, str, bytes, np.integer, np.bool_)):
        return leaf
    elif isinstance(leaf, (float, complex, np.generic)):
        array = np.asarray(leaf)
    elif hasattr(leaf, "__array__") and not isinstance(leaf, type):
        array = as_array(leaf, f"input {position - 1} of {label}")
    else:
        return leaf
    if array.dtype.kind == "c" and not takes_complex:
        raise InputError(
            f"input {position - 1} of {label} has dtype {array.dtype}, and its backend, or its numeric gradient, "
            f"takes no complex numbers; pass the real and imaginary parts as two inputs"
        )
    return array


def as_array(value: Any, what: str) -> Array:
    """An array of another library, or a list, as NumPy's.

    Raises:
        InputError: NumPy cannot read it.
    """
    try:
        return np.asarray(value)
    except Exception as error:
        raise InputError(
            f"{what} is a {type(value).__module__}.{type(value).__name__} that NumPy cannot read "
            f"({f'{type(error).__name__}: {error}'.splitlines()[0]}); pass a NumPy array"
        ) from error


def admit_differentiated(
    inputs: Sequence[Any], wrt: tuple[int, ...], label: str, takes_complex: bool
) -> Sequence[Any]:
    """Check the inputs that a host differentiates, now that their values are known.

    Hosts may trace a Python float, or one that was traced meets us bare; it becomes an array here.

    Raises:
        NotDifferentiableError: one of them is not a floating or complex array.
        InputError: one is complex, and the guest takes none.
    """
    for kind in map(type, inputs):
        if kind is float or kind is complex:
            inputs = [np.asarray(leaf) if type(leaf) in (float, complex) else leaf for leaf in inputs]
            break
    if not wrt or wrt == (0,):
        return inputs
    inputs = list(inputs)
    for position in wrt:
        if position == 0:
            continue
        leaf = inputs[position - 1] = admit(inputs[position - 1], position, label, takes_complex)
        if not is_inexact(leaf):
            came = f"dtype {leaf.dtype}" if hasattr(leaf, "dtype") else f"type {type(leaf).__name__}"
            raise NotDifferentiableError(
                f"the derivative with respect to input {position - 1} of {label} was asked for, and it has "
                f"{came}; differentiate with respect to floating inputs only (cast it to float64 if it is "
                f"a quantity, leave it out of argnum if it is an index or a mask)"
            )
    return inputs


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is an array of floating or complex numbers: what can have a gradient."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and np.dtype(dtype).kind in INEXACT


def real_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the real part: float64 of complex128, and of float64 itself."""
    return dtype if dtype.kind != "c" else np.dtype(f"f{dtype.itemsize // 2}")


def host_dtype(came: np.dtype[Any], dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What an array is cast to where the host has a floating dtype: that one, or its complex one."""
    if came.kind == "f":
        return dtype
    return np.result_type(dtype, np.complex64) if came.kind == "c" else came


def outputs_to_host(
    leaves: Sequence[Any], dtype: np.dtype[Any], label: str, takes_complex: bool
) -> list[Array]:
    """Cast floating and complex outputs to the host's dtype; integer and boolean ones stay.

    Raises:
        OutputError: there is no output, or one of them is not an array of numbers.
    """
    if not leaves:
        raise OutputError(f"{label} returned no array; a bridged model returns an array or a tree of arrays")
    arrays = []
    for index, leaf in enumerate(leaves):
        kind = leaf.dtype.kind if type(leaf) is np.ndarray else ""
        if kind == "f":
            arrays.append(leaf.astype(dtype, copy=False))
        elif kind == "c" and takes_complex:
            arrays.append(leaf.astype(host_dtype(leaf.dtype, dtype), copy=False))
        elif kind in ("i", "u", "b"):
            arrays.append(leaf)
        else:
            came = f"an array of dtype {leaf.dtype}" if isinstance(leaf, np.ndarray) else type(leaf).__name__
            numbers = "" if takes_complex else "real "
            raise OutputError(
                f"output {index} of {label} is {came}; expected a {numbers}array, or a tuple, list, dict or "
                f"dataclass of them: return arrays from the model, and nothing else"
            )
    return arrays


def cotangents_to_guest(
    cotangents: Sequence[Any], outputs: Sequence[tuple[tuple[int, ...], np.dtype[Any]]], label: str
) -> list[Array]:
    """Check cotangents against their outputs and make them floating arrays, complex for complex outputs.

    Args:
        cotangents: one per output.
        outputs: (shape, dtype) of each output.

    Raises:
        CotangentMismatchError: a wrong number of them, or a wrong shape.
        NotDifferentiableError: one that is not zero for an integer or boolean output.
    """
    if len(cotangents) != len(outputs):
        raise CotangentMismatchError(
            f"{label} has {len(outputs)} outputs, got {len(cotangents)} cotangents; give one for each, "
            f"zeros for those that do not matter"
        )
    arrays = []
    for index, (cotangent, (shape, dtype)) in enumerate(zip(cotangents, outputs)):
        array = _numbers(cotangent)
        if array is None:
            raise CotangentMismatchError(
                f"the cotangent of output {index} of {label} must be an array of numbers like it, {shape}, got a "
                f"{type(cotangent).__name__}"
            )
        if array.shape != shape:
            raise CotangentMismatchError(
                f"the cotangent of output {index} of {label} must have the output's shape {shape}, "
                f"got {array.shape}; reshape it, or sum over the axes that were broadcast"
            )
        if dtype.kind == "c":
            arrays.append(array if array.dtype.kind == "c" else array.astype(dtype))
            continue
        if array.dtype.kind == "c":
            raise CotangentMismatchError(
                f"the cotangent of output {index} of {label}, which is real, must be real, got dtype "
                f"{array.dtype}; take its real part before it reaches the bridge"
            )
        if dtype.kind != "f" and np.any(array):
            raise NotDifferentiableError(
                f"output {index} of {label} has dtype {dtype} and no derivative; differentiate only its "
                f"floating outputs"
            )
        arrays.append(array if array.dtype.kind == "f" else array.astype(np.float64))
    return arrays


def _numbers(value: Any) -> Array | None:
    """A value as an array of numbers; None if it is none."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return None  # a ragged list, say
    return array if array.dtype.kind in "fiubc" else None


def tangents_to_guest(
    tangents: Sequence[Any], arguments: Sequence[Any], wrt: tuple[int, ...], label: str
) -> list[Array]:
    """Check tangents against the arguments that they move and make them floating arrays.

    Args:
        tangents: one per position.
        arguments: the params and the inputs.
        wrt: positions.

    Raises:
        CotangentMismatchError: a tangent has not its argument's shape, or is complex where that is real.
    """
    arrays = []
    for position, tangent in zip(wrt, tangents):
        array, argument = _numbers(tangent), np.asarray(arguments[position])
        if array is None:
            flat = "; for a tree of params, f.layout.ravel(tree)" if not position else ""
            raise CotangentMismatchError(
                f"the tangent of argument {position} of {label} must be an array of numbers like it, "
                f"{argument.shape}, got a {type(tangent).__name__}{flat}"
            )
        is_complex = argument.dtype.kind == "c"
        if array.shape != argument.shape or array.dtype.kind not in ("fiubc" if is_complex else "fiub"):
            numbers = "" if is_complex else "be real and "
            raise CotangentMismatchError(
                f"the tangent of argument {position} of {label} must {numbers}have its shape {argument.shape}, "
                f"got {array.shape} of dtype {array.dtype}"
            )
        if is_complex:
            arrays.append(array if array.dtype.kind == "c" else array.astype(argument.dtype))
        else:
            arrays.append(array if array.dtype.kind == "f" else array.astype(np.float64))
    return arrays
