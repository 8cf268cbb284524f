"""What a function reads from outside of its arguments: so that compiled code does not keep an old value of it.

Compiled code has the values of globals, closure cells, defaults and attributes in it as they were when
it was traced. `surroundings` finds what the code of a function names, and `Surroundings` tells in a few
microseconds whether all of that is as it was: a program is kept for each state of it.

Seen are the names in the code of the function and of all functions that it reaches, in the user's own
files: globals, cells, defaults, attributes by their names, the items of lists, tuples, dicts and sets,
and the numbers in NumPy arrays (of large ones a sample). Not seen is what has no name in the code: items
that are looked up by a computed name, what installed packages read, the inside of other libraries'
arrays and objects, and what the function itself changes as it is traced.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from gradbridge.errors import GuestError
from gradbridge.forks import fork_safe_lock
from gradbridge.notices import notice
from gradbridge.outside import Look, differing

#: States of its surroundings that a function is known in, and after how many there is a word on what they cost.
_STATES, _MANY = 16, 8


def surroundings(*functions: Callable[..., Any]) -> Surroundings | None:
    """What callables read from outside; None where that is nothing but modules, so that nothing is to be watched.

    Args:
        functions: functions, methods, partial ones, or objects with ``__call__``.
    """
    found = Surroundings(*functions)
    return found if found.is_watching else None


class Surroundings:
    """What functions read from outside; called, it gives a key that is another one where that has changed.

    Args:
        functions: callables.

    Attributes:
        now: how all of it was when it was looked at last.
    """

    def __init__(self, *functions: Callable[..., Any]) -> None:
        self._functions = functions
        self._ignored: set[str] = set()
        self._states: OrderedDict[Hashable, int] = OrderedDict()
        self._lock = fork_safe_lock()
        self._count = 0
        self.now = self._looked()
        self._state = self._number(self.now)
        self._label = ", ".join(getattr(f, "__name__", type(f).__name__) for f in functions)

    def __call__(self) -> int:
        """A number for the present state, the same one whenever it is the same."""
        now, state = self.now, self._state
        return state if now.holds() else self._again()

    @property
    def is_watching(self) -> bool:
        """Whether there is anything that could change."""
        return self.now.may_change

    def require(self, state: int) -> None:
        """Make sure that a call can be computed once more.

        Args:
            state: that it had.

        Raises:
            GuestError: it is another one by now.
        """
        if self() != state:
            known: Any = next((key for key, known in self._states.items() if known == state), ())
            changed = ", ".join(sorted(differing(dict(known), self.now.marks))) or "something"
            raise GuestError(
                f"{self._label} reads {changed} from outside, which changed after the call whose derivative was "
                f"asked for; make it an argument, or change it after the derivative"
            )

    @contextmanager
    def traced(self, state: int) -> Iterator[None]:
        """Trace the function in a block, for a state that a call had.

        Raises:
            GuestError: it is another one by now.
        """
        self.require(state)
        before = self.now
        yield
        self.settle(before)

    def settle(self, before: Look) -> None:
        """Watch no more what the function itself has changed while it was run: a counter, a memo.

        Args:
            before: `now` as it was then.
        """
        if not before.writes or before.holds():
            return
        with self._lock:
            state = self._number(before)
            self._ignored |= differing(before.marks, self._looked().marks)
            self.now = self._looked()
            self._state = self._states[self.now.key] = state

    # -- private ------------------------------------------------------------------------------

    def _again(self) -> int:
        with self._lock:
            before, count = self.now, self._count
            now = self._looked()
            state = self._number(now)
            # Two attributes: whoever reads an old look beside a new state finds that it does not hold.
            self.now, self._state = now, state
        if count < _MANY == self._count:
            notice(
                f"{self._label} reads {', '.join(sorted(differing(before.marks, now.marks)))} from outside, which has changed "
                f"{count} times: each value is compiled anew; make it an argument"
            )
        return state

    def _number(self, look: Look) -> int:
        if look.key not in self._states:
            self._states[look.key] = self._count = self._count + 1
            if len(self._states) > _STATES:
                self._states.popitem(last=False)
        self._states.move_to_end(look.key)
        return self._states[look.key]

    def _looked(self) -> Look:
        names: set[str] = set()
        while True:  # until no function brings another name
            count, look = len(names), Look(names, self._ignored)
            for function in self._functions:
                look.see("", function)
            if len(names) == count:
                return look

    def __deepcopy__(self, memo: dict[int, Any]) -> Surroundings:
        return self  # what a function reads is that of its copies

    def __reduce__(self) -> Any:
        return Surroundings, self._functions
