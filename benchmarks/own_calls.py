"""Counts of our own Python: calls, files entered and moves between files, exactly."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import NamedTuple


class Call(NamedTuple):
    """One call of a function of ours.

    Attributes:
        file: from the package's folder on, e.g. ``gradbridge/bridge.py``.
        function: its qualified name.
        depth: how many calls of ours it stands in.
    """

    file: str
    function: str
    depth: int


@dataclass(frozen=True)
class OwnCalls:
    """Our own calls in the order they were made. A generator counts each time that it goes on."""

    calls: tuple[Call, ...]

    @property
    def files(self) -> int:
        """How many different files of ours were entered."""
        return len({call.file for call in self.calls})

    @property
    def moves(self) -> int:
        """How often the file changes from one of the calls to the next: what a reader has to follow."""
        return sum(a.file != b.file for a, b in itertools.pairwise(self.calls))

    def __len__(self) -> int:
        return len(self.calls)

    def __str__(self) -> str:
        """Every call on a line, indented by its depth; its file where that is another than before."""
        lines: list[str] = []
        for file, calls in itertools.groupby(self.calls, key=lambda call: call.file):
            lines += [file, *(f"    {'  ' * call.depth}{call.function}" for call in calls)]
        return "\n".join(lines)


def own_calls(function: Callable[[], object], package: str = "gradbridge") -> OwnCalls:
    """Run a function once and note the calls of our own code in this thread.

    Args:
        function: of no arguments, warmed up: what is done once would be counted, too.
        package: what is ours: this package, and those that are called ``{package}_…``.
    """
    folders = tuple(_folders(package))
    noted: list[Call] = []

    def is_own(frame: FrameType) -> bool:
        return frame.f_code.co_filename.startswith(folders)

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and is_own(frame):
            depth, caller = 0, frame.f_back
            while caller is not None:
                depth, caller = depth + is_own(caller), caller.f_back
            path = frame.f_code.co_filename
            folder = next(f for f in folders if path.startswith(f))
            shown = os.path.relpath(path, os.path.dirname(folder.rstrip(os.sep)))
            noted.append(Call(shown.replace(os.sep, "/"), frame.f_code.co_qualname, depth))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return OwnCalls(tuple(noted))


def _folders(package: str) -> list[str]:
    """Where the packages lie that are imported and ours, with a separator at the end."""
    return [
        os.path.dirname(str(module.__file__)) + os.sep
        for name, module in list(sys.modules.items())
        if "." not in name
        and (name == package or name.startswith(f"{package}_"))
        and getattr(module, "__file__", None)
    ]
