"""What comes out of a call whose arrays have sizes that are not known before it runs: a batch of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optree

from gradbridge.errors import GradbridgeError, GuestError, InputError
from gradbridge.protocol import ArraySpec

#: Sizes in place of those that are not known, two at a time: what is the same for both is taken for known.
_MADE_UP = ((48, 96), (2, 3))


class OpenSpec(NamedTuple):
    """Of an array.

    Attributes:
        shape: its sizes, None for those that are not known; None where even their number is not.
        dtype: NumPy's.
    """

    shape: tuple[int | None, ...] | None
    dtype: np.dtype[Any]


#: Specs of what a call is given ↦ those of its outputs, and their tree.
OutputSpecs = Callable[[Sequence[ArraySpec]], tuple[Sequence[ArraySpec], optree.PyTreeSpec | None]]


def open_outputs(
    specs_of: OutputSpecs, given: Sequence[OpenSpec]
) -> tuple[list[OpenSpec], optree.PyTreeSpec | None]:
    """What comes out of a call, found out at made-up sizes where there are unknown ones.

    Who goes on by it compares it with what came: a size may depend on the input's in any way.

    Args:
        specs_of: what a guest tells of given sizes.
        given: what it will be called with.

    Raises:
        Unsupported: it is not known before it runs.
        GuestError, InputError: it refuses such arrays, or all of the sizes that were tried.
    """
    if not any(None in (spec.shape or ()) for spec in given):
        specs, structure = specs_of([_filled(spec, 0) for spec in given])
        return [OpenSpec(s.shape, s.dtype) for s in specs], structure
    failure: GradbridgeError | None = None
    for one, other in _MADE_UP:
        try:
            specs, structure = specs_of([_filled(s, one) for s in given])
            others, _ = specs_of([_filled(s, other) for s in given])
        except (GuestError, InputError) as error:
            failure = failure or error
            continue
        return [_common(a, b) for a, b in zip(specs, others)], structure
    shapes = ", ".join(str(spec.shape) for spec in given)
    raise InputError(
        f"what comes out was asked for of arrays of shapes {shapes}, and each size that was tried for the unknown ones was "
        f"refused: {failure}; say the sizes that are always the same (an input_signature, keras.Input), or say outputs= "
        f"as a function of the inputs where you bridge it"
    ) from failure


def _filled(spec: OpenSpec, size: int) -> ArraySpec:
    return ArraySpec(tuple([size if n is None else n for n in spec.shape or ()]), spec.dtype)


def _common(one: ArraySpec, other: ArraySpec) -> OpenSpec:
    if len(one.shape) != len(other.shape):
        return OpenSpec(None, one.dtype)
    return OpenSpec(tuple([n if n == m else None for n, m in zip(one.shape, other.shape)]), one.dtype)
