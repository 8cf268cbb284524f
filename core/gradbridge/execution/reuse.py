"""Reuse of evaluations: programs that ask for the same (params, inputs) again and again.

A constrained optimizer evaluates its objective and each constraint at one point, first for their
values and then for their gradients, and each asks the model anew. A bridge with ``reuse=N``
remembers its last N evaluations with their residuals. A repetition is recognised by comparing
the content, byte for byte: never by identity, because callers change their arrays in place, and
never by a hash alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.constants import constant_key
from gradbridge.errors import DerivativeError, GuestError, OptionError
from gradbridge.forks import fork_safe_lock, renew
from gradbridge.layout import Array
from gradbridge.option_values import check_options
from gradbridge.placed import PlacedArray
from gradbridge.protocol import Adapter

_SMALL = 1 << 15


class Memory:
    """The last few evaluations of one bridge. Safe to ask from any thread.

    Attributes:
        hits: evaluations that were answered from memory.
        misses: evaluations that the guest had to make.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        #: (mark of its values, evaluation), the latest last. Bound anew as a whole, so that an interrupt at any
        #: moment leaves it as it was or as it is to be.
        self._kept: tuple[tuple[bytes, Any], ...] = ()
        self._lock = fork_safe_lock()
        renew(self)
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
        evaluation = self.find(call, values, wrt)
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
                self.keep(evaluation)
        # The caller owns what it gets, so what is remembered stays ours.
        return evaluation.with_own_outputs()

    def find(self, call: Any, values: Sequence[Any], wrt: tuple[int, ...]) -> Any:
        """The evaluation of exactly this call at these values, if it is remembered and can be pulled back to `wrt`."""
        mark = _mark(values)
        for one in reversed(self._kept):
            evaluation = one[1]
            # Other marks are other arguments: most need no full look.
            if (
                one[0] == mark
                and set(wrt) <= set(evaluation.wrt)
                and evaluation.call.spec == call.spec
                and evaluation.dtype == call.dtype
                and len(evaluation.values) == len(values)
                and all(map(same_content, evaluation.values, values))
            ):
                with self._lock:
                    self.hits += 1
                    if any(other is one for other in self._kept):
                        self._kept = (*(other for other in self._kept if other is not one), one)
                return evaluation
        with self._lock:
            self.misses += 1
        return None

    def keep(self, evaluation: Any) -> None:
        """Remember an evaluation, forgetting the one that was not asked for longest.

        Args:
            evaluation: its values are its own: the caller's may change in place.
        """
        one = _mark(evaluation.values), evaluation
        with self._lock:
            self._kept = (*self._kept, one)[-self._size :]

    def forget(self) -> None:
        """Drop everything that is remembered, and the residuals with it."""
        self._kept = ()

    def _at_fork_reinit(self) -> None:
        self.forget()  # other threads were pulling back what was remembered, perhaps

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

    What is not an array must be a constant, equal and of the same type.
    """
    if isinstance(ours, np.ndarray):
        if not isinstance(theirs, np.ndarray) or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return False
        if ours.dtype.hasobject:
            return False
        return not _differ_at_once(ours, theirs) and _same_bytes(ours, theirs)
    if isinstance(ours, PlacedArray):
        return ours is theirs  # it never changes
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
