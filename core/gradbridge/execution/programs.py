"""What is compiled, kept for the next call: a table of the latest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from gradbridge.forks import fork_safe_lock

V = TypeVar("V")

#: Programs kept for each adapter; a call with constants that change makes one for each value.
KEPT = 64


class LRUCache(Generic[V]):
    """A table that keeps its latest entries; from any number of threads.

    Args:
        size: how many.
        is_shared: whether copies share the table: where entries are compiled and hold no state.
    """

    def __init__(self, size: int = KEPT, is_shared: bool = False) -> None:
        self._size, self._is_shared = size, is_shared
        self._entries: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = fork_safe_lock()
        #: The entry of a key, or None: no call of ours where it is known.
        self.find = self._entries.get

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The entry of a key, made if there is none."""
        entry = self._entries.get(key)
        if entry is not None:
            return entry
        with self._lock:
            if key not in self._entries:
                self._entries[key] = make()
                if len(self._entries) > self._size:
                    self._entries.popitem(last=False)
            return self._entries[key]

    def __getstate__(self) -> dict[str, Any]:
        # Programs belong to the process.
        return {"_size": self._size, "_is_shared": self._is_shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_size"], state["_is_shared"])  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any]) -> LRUCache[V]:
        # What was compiled for one serves the other, which computes the same; state of its own it does not have.
        return self if self._is_shared else LRUCache(self._size)
