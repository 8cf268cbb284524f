"""What comes of a check: rows, as reports have them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import TYPE_CHECKING, TypeVar

from gradbridge.errors import GradbridgeWarning, OptionError
from gradbridge.testing import tracebacks
from gradbridge.testing.backend import NotOfferedError
from gradbridge.testing.laws import LAWS
from gradbridge.wording import suggestion

if TYPE_CHECKING:
    from rich.table import Table

    from gradbridge.terminal import Told

Case = TypeVar("Case")

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"

#: How tables show an outcome.
MARKS = {PASSED: "[green]✓[/]", FAILED: "[bold red]✗[/]", SKIPPED: "[yellow]–[/]", "": ""}


@dataclass(frozen=True)
class Row:
    """What came of one check on one scenario.

    Attributes:
        check: its name.
        law: its number.
        scenario: name.
        outcome: ``"passed"``, ``"failed"`` or ``"skipped"``.
        message: what was expected and what came, or why it was skipped.
        seconds: wall time.
        traceback: where it was raised, with files and lines; empty where a check found the law broken.
        statement: the law in words.
        guest: of a check of a host: the backend that the scenario is of.
    """

    check: str
    law: int
    scenario: str
    outcome: str
    message: str
    seconds: float
    traceback: str = ""
    statement: str = ""
    guest: str = ""

    @property
    def place(self) -> str:
        """``gradient_is_right[mlp]``, ``host_gradients[torch-mlp]``."""
        return f"{self.check}[{f'{self.guest}-' if self.guest else ''}{self.scenario}]"


def row_of(
    name: str, law: int, statement: str, scenario: str, run: Callable[[], None], guest: str = ""
) -> Row:
    """Run a check and tell what came of it; nothing that it raises goes on."""
    start = time.perf_counter()
    outcome, message, where = PASSED, "", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradbridgeWarning)  # what a scenario does on purpose
            run()
    except NotOfferedError as error:
        outcome, message = SKIPPED, str(error)
    except Exception as error:  # whatever a backend raises is a row of the report
        outcome, message, where = FAILED, str(error), tracebacks.of_backend(error)
        if not (isinstance(error, AssertionError) and tracebacks.is_of_kit(error)):
            message = f"raised {type(error).__name__}: {error}"
            where = where or tracebacks.whole(error)  # a check that stumbles over what it was given
    seconds = time.perf_counter() - start
    return Row(name, law, scenario, outcome, message, seconds, where, statement, guest)


def of(rows: Iterable[Row], outcome: str) -> list[Row]:
    """The rows of one outcome."""
    return [row for row in rows if row.outcome == outcome]


def worst(rows: Iterable[Row]) -> str:
    """The worst outcome; skipped only if all of it was, "" if there is none."""
    outcomes = {row.outcome for row in rows}
    return next((outcome for outcome in (FAILED, PASSED, SKIPPED) if outcome in outcomes), "")


def counted(rows: Sequence[Row]) -> str:
    """``154 passed, 0 failed, 3 skipped in 4.1 s``."""
    counts = ", ".join(f"{len(of(rows, outcome))} {outcome}" for outcome in (PASSED, FAILED, SKIPPED))
    return f"{counts} in {sum(row.seconds for row in rows):.1f} s"


def notes(rows: Sequence[Row]) -> list[str]:
    """What failed, in full; and each reason for skipping, once, with what it concerns.

    A traceback that several rows have in common stands with the first of them.
    """
    return [*failures(rows), *skips(rows)]


def failures(rows: Sequence[Row]) -> list[str]:
    """What failed, in full."""
    lines, told = [], dict[str, str]()
    for row in of(rows, FAILED):
        line = f"✗ {row.place}, law {row.law}: {row.statement}\n    {row.message}"
        if row.traceback in told:
            line += f"\n    raised where {told[row.traceback]} was"
        elif row.traceback:
            told[row.traceback] = row.place
            line += "\n" + indent(row.traceback, "    ")
        lines.append(line)
    return lines


def skips(rows: Sequence[Row]) -> list[str]:
    """Each reason for skipping, once, with what it concerns."""
    reasons: dict[str, list[str]] = {}
    for row in of(rows, SKIPPED):
        reasons.setdefault(row.message, []).append(row.place)
    lines = []
    for reason, names in reasons.items():
        few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        lines.append(f"– {reason}\n    skipped: {few}")
    return lines


def telling(cases: Sequence[Case], told: Told | None, name: Callable[[Case], str]) -> Iterator[Case]:
    """Each of some cases, told of before it is taken, and once more after the last."""
    for i, case in enumerate(cases):
        if told is not None:
            told(i, len(cases), name(case))
        yield case
    if told is not None:
        told(len(cases), len(cases), "")


def count_table(rows: Sequence[Row], title: str) -> Table:
    """Checks × outcomes, for rich: of how many scenarios each check has which outcome."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("law and its checks")
    for outcome in (PASSED, FAILED, SKIPPED):
        table.add_column(outcome, justify="right")
    for law, statement in LAWS.items():
        checks = list(dict.fromkeys(row.check for row in rows if row.law == law))
        if not checks:
            continue
        table.add_section()
        table.add_row(f"[bold]{law} {statement}[/]")
        for check in checks:
            own = [row for row in rows if row.check == check]
            counts = {outcome: len(of(own, outcome)) for outcome in (PASSED, FAILED, SKIPPED)}
            cells = (f"{n} {MARKS[outcome]}" if n else "" for outcome, n in counts.items())
            table.add_row(f"  {check}", *cells)
    return table


def drawn(table: Table) -> str:
    """A table as plain text of at most eighty columns."""
    from rich.console import Console

    from gradbridge.terminal import print_table

    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        print_table(console, table)
    return captured.get().rstrip()


def known(names: Iterable[str] | None, all_names: Iterable[str], what: str) -> list[str]:
    """The names that are meant, all where None.

    Raises:
        OptionError: there is none of such a name.
    """
    every = list(all_names)
    chosen = every if names is None else list(dict.fromkeys(names))
    for name in chosen:
        if name not in every:
            hint = suggestion(name, every).rstrip() or f"there are {', '.join(every)}"
            raise OptionError(f"the kit has no {what} {name!r}; {hint}")
    return chosen
