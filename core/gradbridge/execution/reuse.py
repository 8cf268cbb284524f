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

from gradbridge.call_spec import CallSpec
from gradbridge.constants import constant_key
from gradbridge.errors import DerivativeError, GuestError, OptionError
from gradbridge.layout import Array
from gradbridge.option_values import check_options
from gradbridge.protocol import Adapter

_SMALL = 1 << 15


class Remembered(NamedTuple):
    """One evaluation, with copies of what it was made of."""

    values: tuple[Any, ...]
    spec: CallSpec
    dtype: np.dtype[Any]
    wrt: tuple[int, ...]
    evaluation: Any


class Memory:
    """The last few evaluations of one bridge. Safe to ask from any thread.

    Attributes:
        hits: evaluations that were answered from memory.
        misses: evaluations that the guest had to make.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[int, Remembered] = OrderedDict()
        self._at: dict[bytes, list[int]] = {}  # keys by a mark of the params: most need no full look
        self._lock = threading.Lock()
        self._next = 0
        self.hits = 0
        self.misses = 0

    @classmethod
    def of(cls, reuse: Any, adapter: Adapter, mode: str) -> Memory | None:
        """The memory that ``reuse=`` asks for; None for none.

        Raises:
            OptionError: no number of evaluations, or a model whose evaluations are not just their results.
        """
        check_options(reuse=reuse)
        if reuse and (mode == "train" or adapter.stochastic):
            raise OptionError(
                f"reuse={reuse} was asked for, and {adapter.label} in mode {mode!r} may draw random numbers or move "
                f"statistics, so that an evaluation is not just its result; leave reuse out or use mode='eval'"
            )
        return cls(int(reuse)) if reuse else None

    def recall(self, call: Any, values: Sequence[Any], wrt: tuple[int, ...]) -> Any:
        """The evaluation from memory, or made so that a later gradient with respect to the weights finds it."""
        evaluation = self.find(values, call.spec, call.dtype, wrt)
        if evaluation is None:
            weights = range(call.first_input)
            wider = (*(i for i in weights if i not in wrt), *wrt) if call.adapter.layout.size else wrt
            # Copies: the caller may change its arrays in place.
            own = tuple(x.copy() if isinstance(x, np.ndarray) else x for x in values)
            try:
                evaluation = call.evaluate_at(own, wider)
            except (DerivativeError, GuestError):
                if wider == wrt:
                    raise
                # A model without a gradient has a value all the same.
                evaluation = call.evaluate_at(own, wrt)
            if not call.adapter.stochastic:
                self.keep(Remembered(own, call.spec, call.dtype, evaluation.wrt, evaluation))
        # The caller owns what it gets, so what is remembered stays ours.
        return evaluation.with_own_outputs()

    def find(self, values: Sequence[Any], spec: CallSpec, dtype: np.dtype[Any], wrt: tuple[int, ...]) -> Any:
        """The evaluation of exactly these arguments in the host's dtype, if it is remembered and can be pulled back to `wrt`."""
        mark = _mark(values)
        with self._lock:
            kept = [(key, self._kept[key]) for key in reversed(self._at.get(mark, ()))]
        for key, one in kept:
            if (
                set(wrt) <= set(one.wrt)
                and one.spec == spec
                and one.dtype == dtype
                and len(one.values) == len(values)
                and all(map(same_content, one.values, values))
            ):
                with self._lock:
                    self.hits += 1
                    if key in self._kept:
                        self._kept.move_to_end(key)
                return one.evaluation
        with self._lock:
            self.misses += 1
        return None

    def keep(self, one: Remembered) -> None:
        """Remember an evaluation, forgetting the one that was not asked for longest.

        Args:
            one: its values are its own: the caller's may change in place.
        """
        mark = _mark(one.values)
        with self._lock:
            self._next += 1
            self._kept[self._next] = one
            self._at.setdefault(mark, []).append(self._next)
            while len(self._kept) > self._size:
                key, oldest = self._kept.popitem(last=False)
                mark = _mark(oldest.values)
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


def _mark(values: Sequence[Any]) -> bytes:
    """The first and the last few numbers of the first array, as bytes.

    Other marks are other arguments, equal ones need a full look.
    """
    first = next((x for x in values if isinstance(x, np.ndarray)), np.empty(0)).reshape(-1)
    return first[:4].tobytes() + first[-4:].tobytes()


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
