"""Bridges on their way to another process of multiprocessing: bytes, until it is known that they can be read there.

A worker of a pool reads its tasks outside of what it watches: an error there ends it, its task is lost, and whoever
asked waits for ever. So nothing is raised while a bridge is read, but where it is used.
"""

from __future__ import annotations

import pickle
import threading
from typing import Any, NoReturn

from gradbridge.errors import ForkError
from gradbridge.forks import Runtime, undivided


class UnreadBridge:
    """In place of a bridge that cannot be used in this process. It can be handed on to one where it can.

    Args:
        data: the bridge's pickle.
        reason: why not.
    """

    def __init__(self, data: bytes, reason: str) -> None:
        self._data, self._reason = data, reason

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused.

        Raises:
            ForkError: always.
        """
        raise ForkError(self._reason)

    def __getattr__(self, name: str) -> NoReturn:
        raise ForkError(self._reason)

    def __reduce__(self) -> tuple[Any, ...]:
        return _read, (self._data,)


class _Nesting(threading.local):
    is_on = False


_nesting = _Nesting()


def send_unread(kind: type, runtime: Runtime | None) -> None:
    """Have multiprocessing send the bridges of a class as bytes, if their framework may be lost in a forked child.

    Pickles of others (pickle, cloudpickle, copies) stay as they are.

    Args:
        kind: the class.
        runtime: of the framework; None, or one that refuses nothing, leaves the class alone.
    """
    if _may_refuse(runtime):
        with undivided():  # a fork waits for the import
            from multiprocessing.reduction import ForkingPickler  # late: it brings sockets

        ForkingPickler.register(kind, _sent)


def _may_refuse(runtime: Runtime | None) -> bool:
    """Whether it keeps to what `Runtime` does in a child that it is lost in; PyTorch's goes on."""
    return runtime is not None and type(runtime).require is Runtime.require


def _sent(whole: Any) -> Any:
    from multiprocessing.reduction import ForkingPickler

    # One that comes again within its own bytes (a method of what holds it) is the same there.
    if _nesting.is_on or not _may_refuse(whole.adapter.traits.runtime):
        return whole.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
    _nesting.is_on = True
    try:
        return _read, (bytes(ForkingPickler.dumps(whole)),)
    finally:
        _nesting.is_on = False


def _read(data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except ForkError as error:
        return UnreadBridge(data, str(error))
