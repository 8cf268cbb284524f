"""Cotangents and tangents on their way in: checked against what they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.admission import plain_array
from gradbridge.errors import CotangentMismatchError, NotDifferentiableError
from gradbridge.layout import Array
from gradbridge.placed import dtype_of


def cotangents_to_guest(cotangents: Sequence[Any], outputs: Sequence[Array], label: str) -> Sequence[Array]:
    """Check cotangents against their outputs and make them floating arrays, complex for complex outputs.

    Args:
        cotangents: one per output.
        outputs: in the host's dtype.

    Raises:
        CotangentMismatchError: a wrong number of them, or a wrong shape.
        NotDifferentiableError: one that is not zero for an integer or boolean output.
    """
    if len(cotangents) == len(outputs) == 1:
        one, output = cotangents[0], outputs[0]
        if (
            type(one) is np.ndarray
            and one.dtype.kind == output.dtype.kind == "f"
            and one.shape == output.shape
        ):
            return cotangents  # by far the most calls
    if len(cotangents) != len(outputs):
        raise CotangentMismatchError(
            f"{label} has {len(outputs)} outputs, got {len(cotangents)} cotangents; give one for each, "
            f"zeros for those that do not matter"
        )
    arrays = []
    for index, (cotangent, output) in enumerate(zip(cotangents, outputs)):
        shape, dtype = output.shape, output.dtype
        array = _numbers(cotangent, f"the cotangent of output {index} of {label}")
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


def _numbers(value: Any, what: str) -> Array | None:
    """A value as an array of numbers; None if it is none."""
    if isinstance(value, np.ndarray):
        array = plain_array(value, what)
    else:
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
        array = _numbers(tangent, f"the tangent of argument {position} of {label}")
        shape, dtype = np.shape(arguments[position]), dtype_of(arguments[position])
        if array is None:
            is_flat = len(shape) == 1 and not position
            flat = "; for a tree of params, f.layout.ravel(tree)" if is_flat else ""
            raise CotangentMismatchError(
                f"the tangent of argument {position} of {label} must be an array of numbers like it, "
                f"{shape}, got a {type(tangent).__name__}{flat}"
            )
        is_complex = dtype.kind == "c"
        if array.shape != shape or array.dtype.kind not in ("fiubc" if is_complex else "fiub"):
            numbers = "" if is_complex else "be real and "
            raise CotangentMismatchError(
                f"the tangent of argument {position} of {label} must {numbers}have its shape {shape}, "
                f"got {array.shape} of dtype {array.dtype}"
            )
        if is_complex:
            arrays.append(array if array.dtype.kind == "c" else array.astype(dtype))
        else:
            arrays.append(array if array.dtype.kind == "f" else array.astype(np.float64))
    return arrays
