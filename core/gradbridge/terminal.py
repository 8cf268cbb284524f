"""What commands print with: tables that fit into the terminal, progress that only a terminal sees, no logs of C++.

Colours, their absence (`NO_COLOR`) and the width (the terminal's, `COLUMNS`, or 80 in a pipe) are rich's.
"""

from __future__ import annotations

import functools
import importlib.machinery
import os
import re
import sys
import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.text import Text

if TYPE_CHECKING:
    from rich.table import Table

#: How long work tells of itself: (how many parts are done, of how many, the part that begins).
Told = Callable[[int, int, str], None]

# Wide enough for any table to be measured as it would like to be.
_ENDLESS = 100_000


def print_table(console: Console, *tables: Table) -> None:
    """Print the first of some tables that fits into the console without a word cut in two.

    Where none does, the rows of the last one are printed below each other, a line or a few for each.

    Args:
        console: where to.
        *tables: the same in several forms, the widest first.
    """
    for table in tables:
        if _least_width(console, table) <= console.width:
            console.print(table)
            return
    for line in _as_list(console, tables[-1]):
        console.print(line)


def _least_width(console: Console, table: Table) -> int:
    """How many columns a table needs so that each word stands on one line."""
    return Measurement.get(console, console.options.update(max_width=_ENDLESS), table).minimum


def _as_list(console: Console, table: Table) -> Iterator[Text]:
    """The title, then each row: its first cell, and below it ``heading: cell`` of the others that are not empty."""
    if table.title:
        title = console.render_str(table.title) if isinstance(table.title, str) else Text(str(table.title))
        title.stylize("italic")
        yield title
    columns = [[_text(console, cell) for cell in column._cells] for column in table.columns]
    headings = [_text(console, column.header).plain for column in table.columns]
    for first, *others in zip(*columns):
        yield first
        for heading, cell in zip(headings[1:], others):
            if cell.plain.strip():
                yield Text.assemble("    ", f"{heading}: " if heading else "", cell)


def _text(console: Console, cell: object) -> Text:
    return cell.copy() if isinstance(cell, Text) else console.render_str(str(cell))


@contextmanager
def progress(what: str) -> Iterator[Told | None]:
    """A bar on standard error for as long as the block runs; nothing where that is not a terminal.

    Args:
        what: is being done.

    Yields:
        What is to be told of the work; None where nobody looks.
    """
    if not sys.stderr.isatty():  # rich takes FORCE_COLOR for a terminal
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # What is printed on standard output meanwhile goes there, which may be a file.
    bars = Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, expand=True
    )
    with bars:
        task = bars.add_task(what, total=None)

        def told(done: int, total: int, part: str) -> None:
            bars.update(task, completed=done, total=total, description=f"{what}: {part}" if part else what)

        yield told


def silence_logs(frameworks: Container[str]) -> None:
    """Keep the log lines of frameworks' C++ off the terminal for the rest of this process, which is a command's.

    TensorFlow has a variable for them, ``TF_CPP_MIN_LOG_LEVEL``; that of the user holds. But it writes some lines when
    it is imported before it reads the variable: those below the level are left out of what imports write.

    Args:
        frameworks: modules whose imports may log.
    """
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    left_out = "IWE"[: int(level)] if level.isdigit() else ""
    if not left_out:
        return
    try:
        terminal = os.dup(2)
    except OSError:  # standard error is closed
        return
    # Python's own way to it stays open while C++ has another.
    sys.stderr = os.fdopen(terminal, "w", buffering=1, encoding=sys.stderr.encoding, errors="replace")
    # Abseil's format: level, day, time, thread, place.
    line = rf"[{left_out}]\d{{4}} \d\d:[\d:.]+ +\d+ \S+:\d+\] |WARNING: All log messages before absl::"
    sys.meta_path.insert(0, _QuietImports(frameworks, re.compile(line.encode())))


class _QuietImports(MetaPathFinder):
    """Imports of some modules, which leave lines that match a pattern out of what they write on standard error."""

    def __init__(self, modules: Container[str], pattern: re.Pattern[bytes]) -> None:
        self._modules, self._pattern = modules, pattern

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in self._modules else None
        if spec is not None and spec.loader is not None:
            run = functools.partial(self._run, spec.loader.exec_module)
            setattr(spec.loader, "exec_module", run)  # noqa: B010  (of this one import)
        return spec

    def _run(self, run: Callable[[ModuleType], None], module: ModuleType) -> None:
        with tempfile.TemporaryFile() as held:
            before = os.dup(2)
            os.dup2(held.fileno(), 2)
            try:
                run(module)
            finally:
                os.dup2(before, 2)
                os.close(before)
                held.seek(0)
                os.write(2, b"".join(line for line in held if not self._pattern.match(line)))
