"""Code of others, run where it may raise anything: imports of plugins and frameworks, and hooks."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gradbridge.errors import GradbridgeError


@contextmanager
def foreign_code(error_class: type[GradbridgeError], said: str) -> Iterator[None]:
    """Whatever is raised in the block, a `SystemExit` or an interrupt of its own included, as an error of ours.

    The user's own interrupt (Ctrl-C) passes as it is.

    Args:
        error_class: of the error.
        said: what failed, in words that name the plugin; the class and the message of what was raised follow.
    """
    with _interrupts() as came:
        try:
            yield
        except BaseException as error:
            if came and isinstance(error, KeyboardInterrupt):
                raise
            raise error_class(f"{said}: {type(error).__name__}: {error}") from error


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Note the interrupts that the user sends while the block runs.

    A plugin may raise `KeyboardInterrupt` itself, and only the signal tells the two apart. Python hands
    signals to its main thread alone, so elsewhere there is nothing to note.
    """
    came: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield came
        return

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        if signal.getsignal(signal.SIGINT) is note:  # unless the block has set one of its own
            signal.signal(signal.SIGINT, before)
