"""Forked children: a fork takes one thread along, and a framework waits for its others for ever.

A `Runtime` is what a framework starts in a process and a forked child does not have. Each looks, in a
child, at what came along, once and before anything runs there; a bridge asks it only in a child. And it knows
which threads are in a call that the framework itself makes and waits for, where it cannot be called (`Runtime.waiting`).

Locks come along, too, as they were: one that another thread held stays held, by nobody. `fork_safe_lock`
gives one that is free in a child. What others lock while a module is imported or a framework starts, we cannot
free: a fork waits until it is over (`undivided`).
"""

from __future__ import annotations

# The standard library's modules that lock something before a fork. Those that registered last lock first, so
# ours has to come after them: a thread that we wait for may want their locks.
import concurrent.futures.thread  # noqa: F401
import logging  # noqa: F401
import os
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from gradbridge.errors import ForkError, ReentryError

_THREADS = "/proc/self/task"

#: Of Linux's flags of a process: it was forked, and runs the program of its parent (PF_FORKNOEXEC).
_FORKED = 0x40

#: How long a fork waits for what is `undivided`, in seconds; that may be waiting for what the fork is to do.
_PATIENCE = 30.0


class Runtime(ABC):
    """What a framework runs on in this process; one object for each framework.

    The module that makes it need not import the framework, and each subclass stands in a module of its own
    package, so that bridges which are pickled name it.
    """

    #: Of the framework, as errors call it.
    name: ClassVar[str]

    #: What to do where it would be called back while it waits.
    reentry_cure: ClassVar[str] = ""

    def __init__(self) -> None:
        #: The process that started it and then forked this one; None where it can be used.
        self.lost_by: int | None = None
        #: Whether nobody need be asked before it is used: it was started, here, and waits for nobody.
        self.is_settled = False
        #: {thread: how many calls of its own, one within the other, it waits for there}.
        self._awaited: dict[int, int] = {}
        self._lock = fork_safe_lock()
        _runtimes[type(self)] = self
        if parent is not None and self.is_started() and not self.runs_here():
            self.lost_by = parent  # it came along before there was anybody to look

    @abstractmethod
    def is_started(self) -> bool:
        """Whether it was started, in this process or in one that this was forked from.

        Must neither start it nor wait for a lock: in a child nobody may be left to release it.
        """

    def runs_here(self) -> bool:
        """Whether it was started in this very process, as far as that can be told afterwards."""
        return False

    def require(self) -> None:
        """Make sure that it can be used here, before it is used.

        Raises:
            ForkError: it was started before this process was forked.
            ReentryError: it waits for the very call that this is a part of.
        """
        if threading.get_ident() in self._awaited:
            raise ReentryError(
                f"{self.name} was called within a callback of a {self.name} program, which waits for it with the "
                f"threads that the call would need, and may wait for ever. {self.reentry_cure}"
            )
        if self.lost_by is not None:
            raise ForkError(
                f"{self.name} was started in process {self.lost_by}, which then forked this one, process "
                f"{os.getpid()}. {self.name}'s threads did not come along, and it would wait for them for ever. "
                f"Start the process with multiprocessing.get_context('spawn') rather than 'fork', or make the first "
                f"call of {self.name} after the fork, in the child; or stay in one process (n_workers=1). "
                f"docs/experiments.md shows it for seldonian-experiments"
            )

    @contextmanager
    def settling(self) -> Iterator[None]:
        """The block may be what starts it; a fork of another thread waits until it has.

        Raises:
            ForkError: it was started before this process was forked.
        """
        self.require()
        with undivided():
            with self._lock:
                # Within the block, and for other threads, which wait for the framework itself.
                self.is_settled = not self._awaited
            try:
                yield
            finally:
                self._settle()

    def waiting(self) -> Waiting:
        """A block that the framework calls from a program of its own, and waits for: a callback.

        Whoever would use it within the block, by whatever way, is refused (`require`).
        """
        return Waiting(self)

    def _settle(self) -> None:
        with self._lock:
            self.is_settled = self.lost_by is None and not self._awaited and self.is_started()

    def __reduce__(self) -> tuple[Any, ...]:
        # First in the pickle of a bridge: whoever reads it in a child must not come to the framework's own parts.
        self.require()
        return _required, (type(self),)


class Waiting:
    """`Runtime.waiting`, of this thread; no generator, which would take 4 µs of a callback.

    Args:
        runtime: that waits.
    """

    __slots__ = ("_runtime",)

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __enter__(self) -> None:
        runtime, me = self._runtime, threading.get_ident()
        with runtime._lock:
            runtime._awaited[me] = runtime._awaited.get(me, 0) + 1
            runtime.is_settled = False

    def __exit__(self, *error: object) -> None:
        runtime, me = self._runtime, threading.get_ident()
        with runtime._lock:
            left = runtime._awaited.pop(me, 1) - 1
            if left:
                runtime._awaited[me] = left
            runtime.is_settled = not runtime._awaited and runtime.lost_by is None


#: The process that this one was forked from; None for the others.
parent: int | None = None
#: Names of the modules that were imported before this process was forked, or before gradbridge was.
inherited = frozenset(sys.modules)
_runtimes: dict[type[Runtime], Runtime] = {}
_here = os.getpid()
_renewed: weakref.WeakSet[Any] = weakref.WeakSet()
_RLock = type(threading.RLock())
_gate = threading.Condition()
_inside: list[int] = []  # the threads that are `undivided`


def fork_safe_lock() -> Any:
    """A reentrant lock that is free in a forked child, unless the thread that forked holds it."""
    lock = threading.RLock()
    _renewed.add(lock)
    return lock


def renew(owner: Any) -> None:
    """Have ``owner._at_fork_reinit()`` called in each forked child, as long as there is the owner."""
    _renewed.add(owner)


@contextmanager
def undivided() -> Iterator[None]:
    """A fork by another thread waits for the end of the block: a child could neither go on with it nor repeat it."""
    me = threading.get_ident()
    with _gate:
        _inside.append(me)
    try:
        yield
    finally:
        with _gate:
            _inside.remove(me)
            _gate.notify_all()


def has_thread(name: str) -> bool:
    """Whether this process has a thread of that name, as its system calls it; False where that cannot be seen."""
    try:
        for thread in os.listdir(_THREADS):
            with open(f"{_THREADS}/{thread}/comm", encoding="ascii", errors="replace") as file:
                if file.read().strip() == name:
                    return True
    except OSError:
        pass  # no Linux; or a thread that has just ended
    return False


def is_held(lock: Any) -> bool:
    """Whether somebody else holds a lock of another package, without waiting for it; False for None."""
    if lock is None or not lock.acquire(blocking=False):
        return lock is not None
    lock.release()
    return False


def _required(kind: type[Runtime]) -> Runtime:
    runtime = _runtimes[kind]
    runtime.require()
    return runtime


def _before_fork() -> None:
    me = threading.get_ident()
    _gate.acquire()
    _gate.wait_for(lambda: all(thread == me for thread in _inside), _PATIENCE)


def _after_fork() -> None:
    _gate.release()


def _forked() -> None:
    global parent, inherited, _here, _gate
    parent, _here, inherited = _here, os.getpid(), frozenset(sys.modules)
    me, _gate = threading.get_ident(), threading.Condition()
    _inside[:] = [thread for thread in _inside if thread == me]
    for owner in list(_renewed):
        if not (isinstance(owner, _RLock) and owner._is_owned()):  # type: ignore[attr-defined]
            owner._at_fork_reinit()
    for runtime in _runtimes.values():
        runtime.is_settled = False
        runtime._awaited.clear()
        if runtime.is_started():
            runtime.lost_by = parent


def _forker() -> int | None:
    """The process that forked this one before gradbridge was imported, where the system or multiprocessing knows."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            is_forked = bool(int(file.read().rpartition(")")[2].split()[6]) & _FORKED)
    except (OSError, IndexError, ValueError):
        is_forked = False  # no Linux
    multiprocessing = sys.modules.get("multiprocessing")
    if not is_forked and multiprocessing is not None and multiprocessing.parent_process() is not None:
        method = getattr(multiprocessing.current_process(), "_start_method", None)
        is_forked = (method or multiprocessing.get_start_method(allow_none=True)) in ("fork", "forkserver")
    return os.getppid() if is_forked else None


parent = _forker()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_forked)
