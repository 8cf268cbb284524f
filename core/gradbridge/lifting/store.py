"""Where what a node recorded waits for its pull, in hosts that carry nothing but arrays: by its number."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable

from gradbridge.forks import fork_safe_lock
from gradbridge.lifting.node import Run

#: Bytes of arguments and outputs that a store keeps the records of.
KEPT_BYTES = 1 << 28

#: So many records are kept whatever their size: a scan's, or those of many calls in flight.
KEPT_AT_LEAST = 64


class Store:
    """The latest records by number, bounded by bytes; from any number of threads.

    What was forgotten is recorded again, at the price of another forward: never a wrong number.

    Args:
        nbytes: bytes of the arguments and outputs of what is kept.

    Attributes:
        hits, misses: how often a record was there, and was not.
    """

    def __init__(self, nbytes: int = KEPT_BYTES) -> None:
        self._limit, self._held = nbytes, 0
        self.hits = self.misses = 0
        self._runs: OrderedDict[int, Run] = OrderedDict()
        self._numbers = itertools.count(1)
        self._lock = fork_safe_lock()

    def put(self, run: Run) -> int:
        """Keep a record. Returns its number, from 1 to 2³¹ - 1; 0 is nobody's."""
        size = run.nbytes
        with self._lock:
            number = (next(self._numbers) - 1) % (2**31 - 1) + 1
            self._runs[number] = run
            self._held += size
            while self._held > self._limit and len(self._runs) > KEPT_AT_LEAST:
                self._held -= self._runs.popitem(last=False)[1].nbytes
        return number

    def get(self, number: int, otherwise: Callable[[], Run]) -> Run:
        """The record of a number, or another one made now.

        Args:
            number: that `put` returned; 0 for none.
            otherwise: records again.
        """
        with self._lock:
            run = self._runs.get(int(number))
            if run is not None:
                self._runs.move_to_end(int(number))
                self.hits += 1
                return run
            self.misses += number != 0
        return otherwise()
