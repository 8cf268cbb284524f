"""Arrays that live elsewhere as values of autograd's graph: what an input of ours is, whose gradient is a plain array."""

from __future__ import annotations

from typing import Any

from autograd.extend import VSpace
from autograd.numpy.numpy_boxes import ArrayBox
from autograd.numpy.numpy_vspaces import ArrayVSpace, ComplexArrayVSpace

from gradbridge.placed import PlacedArray


class PlacedBox(ArrayBox):
    """A placed array under a trace: autograd.numpy's functions bring it here, a bridge takes it as it is."""

    __slots__ = ()

    dtype = property(lambda self: self._value.dtype)


def _space(array: PlacedArray) -> ArrayVSpace:
    """That of an array of its shape, made without one."""
    kind: Any = ComplexArrayVSpace if array.dtype.kind == "c" else ArrayVSpace
    space: ArrayVSpace = kind.__new__(kind)
    space.shape, space.dtype = array.shape, array.dtype
    return space


PlacedBox.register(PlacedArray)
VSpace.mappings[PlacedArray] = _space
