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

from gradbridge.admission import as_array as as_array
from gradbridge.admission import plain_array
from gradbridge.errors import (
    InputError,
    NonFiniteParamsError,
    NotDifferentiableError,
    OutputError,
    ParamsDtypeError,
    ParamsShapeError,
)
from gradbridge.layout import BRIDGE_WITH_PARAMS, Array, Float64Vector, ParameterLayout
from gradbridge.placed import PlacedArray
from gradbridge.traits import ArraySpec

#: Kinds of dtypes that have derivatives: floating and complex numbers.
INEXACT = ("f", "c")


class Border:
    """How a guest's arrays become a NumPy host's, and a flat vector its weights, and back.

    Args:
        layout: of the weights.
    """

    def __init__(self, layout: ParameterLayout) -> None:
        self.layout = layout

    def view(self, native: Any) -> Array:
        """A guest's array as NumPy's, which may share its memory."""
        if type(native) is np.ndarray:
            return native
        if isinstance(native, np.ndarray):
            return plain_array(native, "an array of the model")
        if hasattr(native, "__array__") or not hasattr(native, "__dlpack__"):
            return np.asarray(native)
        return np.from_dlpack(native)

    def cut(self, vector: Any) -> Sequence[Any]:
        """(P,) → one array per weight."""
        return self.layout.cut(vector)

    def copy(self, native: Any, dtype: np.dtype[Any] | None = None) -> Array:
        """A new array of NumPy's, which its owner may write to; floating numbers in `dtype` if it is given."""
        array = self.view(native)
        return np.array(
            array, dtype if dtype is None or array.dtype.kind == "f" else host_dtype(array.dtype, dtype)
        )

    def cast(self, native: Any, dtype: np.dtype[Any]) -> Array:
        """`view`, floating numbers in a dtype: a new array only where that is another one."""
        array = self.view(native)
        dtype = dtype if array.dtype.kind == "f" else host_dtype(array.dtype, dtype)
        return array if array.dtype == dtype else array.astype(dtype)

    def join(self, gradients: Sequence[Any], lead: tuple[int, ...] = ()) -> Array:
        """One native per weight → (*lead, P) float64; a single one of that size, as packed weights have it.

        The cast is the copy.
        """
        if len(gradients) == 1:
            return np.array(self.view(gradients[0]), np.float64).reshape(*lead, self.layout.size)
        return self.layout.join([self.view(g) for g in gradients], lead)


_DTYPE_ADVICE = {
    "c": "params are a real vector: keep the real and imaginary parts as two real parameters",
    "O": "an object array is usually a ragged list, or has missing values: build the vector with f.layout.ravel(…)",
    "M": "subtract a reference date and divide by a unit, np.timedelta64(1, 'D') say",
    "m": "divide them by a unit, np.timedelta64(1, 'D') say",
    "V": "take its fields one by one: f.layout.ravel({name: params[field], …})",
    "U": "convert the strings to numbers first",
    "S": "convert the bytes to numbers first",
    "b": "booleans have no gradient: cast with params.astype(float)",
}

_FIRST_ARGUMENT = (
    "the first argument of a bridge is the params, and the inputs follow: f.params are the model's own, and "
    "f.layout.ravel(…) makes a vector of a tree"
)


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


def params_vector(params: Any, layout: ParameterLayout, label: str) -> tuple[Float64Vector, np.dtype[Any]]:
    """Params as a vector or as a tree, checked alike.

    Args:
        params: (P,) real, or what `ParameterLayout.ravel` takes.
        layout: that they are to fit.
        label: of the model.

    Returns:
        (a new vector, the host's dtype).

    Raises:
        ParamsDtypeError, ParamsShapeError, LayoutError, InputError
    """
    if layout.is_tree(params):
        floating = [
            d
            for d in (getattr(x, "dtype", None) for x in layout.arrays(params))
            if getattr(d, "kind", "") == "f"
        ]
        return layout.ravel(params), np.result_type(*floating) if floating else np.dtype(np.float64)
    vector = as_array(params, f"params of {label}")
    dtype = check_params(vector, layout, label)
    return np.array(vector, np.float64), dtype


_FLOAT64 = type(np.dtype(np.float64))


def _check_unusual(
    dtype: np.dtype[Any], shape: tuple[Any, ...], layout: ParameterLayout, label: str
) -> np.dtype[Any]:
    if dtype.kind not in "fiu":
        advice = _DTYPE_ADVICE.get(dtype.kind, "cast them to float64")
        if dtype.kind == "O" and shape == ():  # a model, say
            advice = f"it is not an array; {_FIRST_ARGUMENT}"
        raise ParamsDtypeError(
            f"the bridge over {label} expects real params, float64 for preference, got dtype {dtype}; {advice}"
        )
    if shape != (layout.size,) and shape != (None,):  # a size that the host does not know yet
        if not layout.size:
            advice = (
                f"the model has no parameters: {BRIDGE_WITH_PARAMS}; if it is a function of arrays alone, use "
                f"gradbridge.primitive, or call f(f.params, …)"
            )
        elif (
            len(shape) != 1 and all(isinstance(n, int) for n in shape) and layout.size == int(np.prod(shape))
        ):
            advice = "flatten them with params.reshape(-1)"
        else:
            advice = _FIRST_ARGUMENT
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


def admit(leaf: Any, index: int, label: str, takes_complex: bool, takes_placed: bool = False) -> Any:
    """Bring one untraced input leaf, or what is known of a traced one, into the form that guests take.

    Floating values become NumPy arrays, other arrays stay as they are, and what is not an array
    (Python integers, strings, callables …) goes through untouched. An array that lives elsewhere is
    brought here unless the guest takes it as it is.

    Raises:
        InputError: a complex value, and the guest takes none.
    """
    array: Any
    if type(leaf) in (np.ndarray, ArraySpec) or (isinstance(leaf, PlacedArray) and takes_placed):
        array = leaf
    elif isinstance(leaf, (bool, int, str, bytes, np.integer, np.bool_)):
        return leaf
    elif isinstance(leaf, (float, complex, np.generic)):
        array = np.asarray(leaf)
    elif hasattr(leaf, "__array__") and not isinstance(leaf, type):
        try:
            array = as_array(leaf, f"input {index} of {label}")
        except InputError:
            if _has_numbers(leaf):
                raise
            return leaf
    else:
        return leaf
    if not takes_complex:
        refuse_complex(array.dtype, index, label)
    return array


def refuse_complex(dtype: np.dtype[Any], index: int, label: str) -> None:
    """Refuse an input of complex numbers to a guest that takes none.

    Raises:
        InputError
    """
    if dtype.kind == "c":
        raise InputError(
            f"input {index} of {label} has dtype {dtype}, and its backend, or its numeric gradient, "
            f"takes no complex numbers; pass the real and imaginary parts as two inputs"
        )


def _has_numbers(leaf: Any) -> bool:
    """Whether an array has numbers that others read: not so of a typed key of JAX, which means something to JAX alone."""
    try:
        np.dtype(getattr(leaf, "dtype", None))
    except TypeError:
        return hasattr(leaf, "__dlpack__")
    return True


#: What computations with arrays without axes give in NumPy, and Python's own.
_NUMBERS = frozenset([float, complex, np.float64, np.float32, np.float16, np.complex128, np.complex64])


def admit_differentiated(values: Sequence[Any], wrt: tuple[int, ...], call: Any) -> Sequence[Any]:
    """Check the arguments that a host differentiates, now that their values are known.

    Hosts may trace a Python float, or a number that was traced meets us bare; it becomes an array here.

    Args:
        values: the host's arguments.
        wrt: those that it differentiates.
        call: that they are for.

    Raises:
        NotDifferentiableError: one of them is not a floating or complex array.
        InputError: one is complex, and the guest takes none.
    """
    for kind in map(type, values):
        if kind in _NUMBERS:
            values = [np.asarray(leaf) if type(leaf) in _NUMBERS else leaf for leaf in values]
            break
    if not wrt or (wrt == (0,) and call.arguments.vectors[0]):
        return values
    values, label, traits = list(values), call.adapter.label, call.adapter.traits
    first = call.first_input
    for argument in wrt:
        if argument < first:
            continue
        leaf = values[argument] = admit(
            values[argument], argument - first, label, traits.takes_complex, traits.takes_placed
        )
        if not is_inexact(leaf):
            came = f"dtype {leaf.dtype}" if hasattr(leaf, "dtype") else f"type {type(leaf).__name__}"
            raise NotDifferentiableError(
                f"the derivative with respect to input {argument - first} of {label} was asked for, and it has "
                f"{came}; differentiate with respect to floating inputs only (cast it to float64 if it is "
                f"a quantity, leave it out of argnum if it is an index or a mask)"
            )
    return values


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is an array of floating or complex numbers: what can have a gradient."""
    return getattr(getattr(leaf, "dtype", None), "kind", "") in INEXACT


def real_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the real part: float64 of complex128, and of float64 itself."""
    return dtype if dtype.kind != "c" else np.dtype(f"f{dtype.itemsize // 2}")


def host_dtype(came: np.dtype[Any], dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What an array is cast to where the host has a floating dtype: that one, or its complex one."""
    if came.kind == "f":
        return dtype
    return np.result_type(dtype, np.complex64) if came.kind == "c" else came


def outputs_to_host(
    leaves: Sequence[Any], dtype: np.dtype[Any], label: str, takes_complex: bool, border: Border
) -> tuple[list[Array], tuple[np.dtype[Any], ...]]:
    """The guest's output leaves as new arrays of NumPy, floating and complex ones in the host's dtype.

    Returns:
        (arrays, the dtypes that they had in the guest).

    Raises:
        OutputError: there is no output, or one of them is not an array of numbers.
    """
    if not leaves:
        raise OutputError(f"{label} returned no array; a bridged model returns an array or a tree of arrays")
    arrays, dtypes = [], []
    for index, leaf in enumerate(leaves):
        array = border.view(leaf) if hasattr(leaf, "dtype") else leaf
        kind = array.dtype.kind if isinstance(array, np.ndarray) else ""
        if kind == "f":
            arrays.append(np.array(array, dtype))
        elif kind == "c" and takes_complex:
            arrays.append(np.array(array, host_dtype(array.dtype, dtype)))
        elif kind in ("i", "u", "b"):
            arrays.append(np.array(array))
        else:
            came = (
                f"an array of dtype {array.dtype}" if isinstance(array, np.ndarray) else type(leaf).__name__
            )
            numbers = "an" if takes_complex else "a real"
            raise OutputError(
                f"output {index} of {label} is {came}; expected {numbers} array, or a tuple, list, dict or "
                f"dataclass of them: return arrays from the model, and nothing else"
            )
        dtypes.append(array.dtype)
    return arrays, tuple(dtypes)
