"""Whether a model's Python code looks at a size that its trace leaves open.

A trace for any number of rows has None for that number. Code that asks for it in Python may decide
otherwise than for a number, without a word: ``if x.shape[0] == 1`` is never so. TensorFlow's and Keras'
own code, and this bridge's, are written for open sizes; of all other code it is found out as it runs.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import tensor

_here = threading.local()
_KNOW_OPEN_SIZES = tuple(
    folder
    for package in ("tensorflow", "keras", "gradbridge", "gradbridge_keras", "gradbridge_tensorflow")
    if (spec := find_spec(package)) is not None
    for folder in spec.submodule_search_locations or ()
)


class Looks:
    """What was found out.

    Attributes:
        seen: whether an open size was looked at.
    """

    seen = False


@contextmanager
def looks_at_open_sizes() -> Iterator[Looks]:
    """Find out, while a model is traced in this thread, whether its code looks at a size that is open."""
    before, _here.looks = getattr(_here, "looks", None), Looks()
    originals = {name: vars(tensor.Tensor)[name] for name in ("shape", "get_shape", "__len__", "__iter__")}
    theirs = originals["shape"].fget

    def size(self: Any) -> int | None:
        return theirs(self)[0] if getattr(_here, "looks", None) is not None and theirs(self).rank else None

    def length(self: Any) -> int:
        count = size(self)
        return originals["__len__"](self) if count is None else count

    def rows(self: Any) -> Iterator[Any]:
        count = size(self) if getattr(_here, "unrolls", False) else None
        return originals["__iter__"](self) if count is None else iter(tf.unstack(self, count))

    def shape(self: Any) -> Any:
        known = theirs(self)
        if getattr(_here, "looks", None) is None or known.is_fully_defined() or not _is_asked_by_a_model(1):
            return known
        return _Watched(known)

    for name, ours in zip(originals, (property(shape), shape, length, rows)):
        setattr(tensor.Tensor, name, ours)
    try:
        yield _here.looks
    finally:
        _here.looks = before
        for name, value in originals.items():
            setattr(tensor.Tensor, name, value)


@contextmanager
def unrolled_loops() -> Iterator[None]:
    """Let Python loops run over the rows of a traced tensor, as they run over those of an eager one."""
    before, _here.unrolls = getattr(_here, "unrolls", False), True
    try:
        yield
    finally:
        _here.unrolls = before


def _is_asked_by_a_model(depth: int) -> bool:
    """Whether the code at some depth of the stack is such as may take None for a number."""
    return not sys._getframe(depth + 1).f_code.co_filename.startswith(_KNOW_OPEN_SIZES)


class _Watched(tf.TensorShape):
    """A shape that tells when one of its open sizes is read."""

    __slots__ = ()
    __hash__ = tf.TensorShape.__hash__

    def _noted(self) -> None:
        looks = getattr(_here, "looks", None)
        if looks is not None and _is_asked_by_a_model(2):
            looks.seen = True

    @property
    def dims(self) -> Any:
        self._noted()
        return tf.TensorShape.dims.fget(self)

    def __getitem__(self, key: Any) -> Any:
        size = super().__getitem__(key)
        if isinstance(size, tf.TensorShape):
            return _Watched(size)
        if size is None or getattr(size, "value", 0) is None:
            self._noted()
        return size


def _telling(name: str) -> Callable[..., Any]:
    theirs = getattr(tf.TensorShape, name)

    def read(self: _Watched, *args: Any) -> Any:
        self._noted()
        return theirs(self, *args)

    return read


def _passing_on(name: str) -> Callable[..., Any]:
    theirs = getattr(tf.TensorShape, name)

    def derived(self: _Watched, *args: Any) -> Any:
        return _Watched(theirs(self, *args))

    return derived


for _name in ("__iter__", "__eq__", "as_list", "num_elements", "is_fully_defined", "is_compatible_with"):
    setattr(_Watched, _name, _telling(_name))
for _name in (
    *("__add__", "__radd__", "concatenate", "merge_with", "most_specific_compatible_shape"),
    *("with_rank", "with_rank_at_least", "with_rank_at_most"),
):
    setattr(_Watched, _name, _passing_on(_name))
