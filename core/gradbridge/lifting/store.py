"""Where what a node recorded waits for its pull, in hosts that carry nothing but arrays: by its number."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable

from gradbridge.forks import fork_safe_lock
from gradbridge.lifting.node import Run

#: Bytes of arguments and outputs that a store keeps the records of; of records that were used, a quarter of that.
KEPT_BYTES = 1 << 28

#: So many records that were not used yet are kept whatever their size, and so many that were.
KEPT_AT_LEAST, USED_AT_LEAST = 8, 2


class _Kept:
    """Records by number, the oldest first, and their bytes."""

    def __init__(self) -> None:
        self.runs: OrderedDict[int, tuple[Run, int]] = OrderedDict()  # with its bytes
        self.nbytes = 0

    def put(self, number: int, record: tuple[Run, int]) -> None:
        self.runs[number] = record
        self.nbytes += record[1]

    def pop(self, number: int) -> tuple[Run, int] | None:
        record = self.runs.pop(number, None)
        if record is not None:
            self.nbytes -= record[1]
        return record

    def beyond(self, nbytes: int, count: int) -> list[Run]:
        """Take out the oldest, as long as there are more bytes and more records than these."""
        runs = []
        while self.nbytes > nbytes and len(self.runs) > count:
            run, size = self.runs.popitem(last=False)[1]
            self.nbytes -= size
            runs.append(run)
        return runs


class Store:
    """The latest records by number, bounded by bytes; from any number of threads.

    Nobody says that a record will not be asked for again, but most are used once: those that were used go first.
    What was forgotten is recorded again, at the price of another forward: never a wrong number.

    Args:
        nbytes: bytes of the arguments and outputs of what is kept.

    Attributes:
        hits, misses: how often a record was there, and was not.
    """

    def __init__(self, nbytes: int = KEPT_BYTES) -> None:
        self._limit = nbytes
        self.hits = self.misses = 0
        self._waiting, self._used = _Kept(), _Kept()
        self._numbers = itertools.count(1)
        self._lock = fork_safe_lock()

    def put(self, run: Run) -> int:
        """Keep a record. Returns its number, from 1 on and below 2⁶³, never one that was given before; 0 is nobody's."""
        record = run, run.nbytes
        with self._lock:
            number = next(self._numbers)
            self._waiting.put(number, record)
            forgotten = self._forgotten()
        del forgotten  # outside of the lock: whatever a framework does then
        return number

    def get(self, number: int, otherwise: Callable[[], Run]) -> Run:
        """The record of a number, or another one made now, which takes its place.

        Args:
            number: that `put` returned; 0 for none.
            otherwise: records again.
        """
        run = self._found(number, None)
        if run is not None:
            self.hits += 1
            return run
        if not number:
            return otherwise()
        self.misses += 1
        made = otherwise()
        return self._found(number, made) or made

    def _found(self, number: int, made: Run | None) -> Run | None:
        """The record of a number, from now on a used one, or what was made in its place."""
        new = None if made is None else (made, made.nbytes)
        with self._lock:
            record = self._waiting.pop(number) or self._used.pop(number) or new
            if record is None:
                return None
            self._used.put(number, record)
            forgotten = self._forgotten()
        del forgotten
        return record[0]

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            forgotten, self._waiting, self._used = (self._waiting, self._used), _Kept(), _Kept()
        del forgotten

    def _forgotten(self) -> list[Run]:
        used = self._used.beyond(self._limit // 4, USED_AT_LEAST)
        return used + self._waiting.beyond(self._limit - self._used.nbytes, KEPT_AT_LEAST)
