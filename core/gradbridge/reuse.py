"""Reuse of evaluations: programs that ask for the same (params, inputs) again and again.

A constrained optimizer evaluates its objective and each constraint at one point, first for their
values and then for their gradients, and each asks the model anew. A bridge with ``reuse=N``
remembers its last N evaluations with their residuals. A repetition is recognised by comparing
the content, byte for byte: never by identity, because callers change their arrays in place, and
never by a hash alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gradbridge.constants import constant_key
from gradbridge.protocol import Array, Signature

_SMALL = 1 << 15


class Evaluation(NamedTuple):
    """One forward that was made, with what it was made of."""

    params: Array
    inputs: tuple[Any, ...]
    signature: Signature
    wrt: tuple[int, ...]
    outputs: Any
    residuals: Any


class Memory:
    """The last few evaluations of one bridge. Safe to ask from any thread.

    Attributes:
        hits: evaluations that were answered from memory.
        misses: evaluations that the guest had to make.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[int, Evaluation] = OrderedDict()
        self._at: dict[bytes, list[int]] = {}  # keys by a mark of the params: most need no full look
        self._lock = threading.Lock()
        self._next = 0
        self.hits = 0
        self.misses = 0

    def find(
        self, params: Array, inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> Evaluation | None:
        """The evaluation of exactly these arguments, if it is remembered and can be pulled back to `wrt`."""
        mark = _mark(params)
        with self._lock:
            kept = [(key, self._kept[key]) for key in reversed(self._at.get(mark, ()))]
        for key, one in kept:
            if (
                same_content(one.params, params)
                and set(wrt) <= set(one.wrt)
                and one.signature == signature
                and all(map(same_content, one.inputs, inputs))
            ):
                with self._lock:
                    self.hits += 1
                    if key in self._kept:
                        self._kept.move_to_end(key)
                return one
        with self._lock:
            self.misses += 1
        return None

    def keep(self, evaluation: Evaluation) -> None:
        """Remember an evaluation, forgetting the one that was not asked for longest.

        Args:
            evaluation: its params and inputs are its own: the caller's may change in place.
        """
        mark = _mark(evaluation.params)
        with self._lock:
            self._next += 1
            self._kept[self._next] = evaluation
            self._at.setdefault(mark, []).append(self._next)
            while len(self._kept) > self._size:
                key, oldest = self._kept.popitem(last=False)
                mark = _mark(oldest.params)
                self._at[mark].remove(key)
                if not self._at[mark]:
                    del self._at[mark]

    def forget(self) -> None:
        """Drop everything that is remembered, and the residuals with it."""
        with self._lock:
            self._kept.clear()
            self._at.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {"_size": self._size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_size"])  # type: ignore[misc]


def _mark(params: Array) -> bytes:
    """The first and the last few numbers, as bytes: other marks are other params, equal ones need a full look."""
    return params[:4].tobytes() + params[-4:].tobytes()


def same_content(ours: Any, theirs: Any) -> bool:
    """Whether two leaves are the same bytes in the same shape and dtype (NaN equals itself, 0.0 not -0.0).

    What is no array must be a constant, equal and of the same type.
    """
    if isinstance(ours, np.ndarray):
        if not isinstance(theirs, np.ndarray) or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return False
        if ours.dtype.hasobject:
            return False
        return not _differ_at_once(ours, theirs) and _same_bytes(ours, theirs)
    # An object that may change in place is never known to be what it was, not even if it is the same one.
    key = constant_key(ours)
    return key is not None and key == constant_key(theirs)


def _differ_at_once(a: Array, b: Array) -> bool:
    """Whether the first values differ: true of most pairs that do, and a tenth of the cost of a full look."""
    if not a.size:
        return False
    x, y = a.item(0), b.item(0)
    return bool(x != y and (x == x or y == y))


def _same_bytes(a: Array, b: Array) -> bool:
    if a.nbytes < _SMALL:  # two copies are quicker than NumPy's comparison, up to about here
        return a.tobytes() == b.tobytes()
    words = np.dtype(f"u{a.dtype.itemsize}") if a.dtype.itemsize in (1, 2, 4, 8) else None
    if words is None:
        return a.tobytes() == b.tobytes()
    return bool(np.array_equal(np.ascontiguousarray(a).view(words), np.ascontiguousarray(b).view(words)))
