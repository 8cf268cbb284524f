"""What the benchmarks report with: figures with their budgets, printed as tables and kept for a JSON file."""

from __future__ import annotations

import json
import os
import pathlib
import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from benchmarks.timing import readable
from gradbridge.terminal import print_table


@dataclass(frozen=True)
class Figure:
    """One number that was measured, and what it may be.

    Attributes:
        value: in `unit`.
        unit: ``"s"``, ``"×"`` for ratios, ``"MiB"``, or what was counted.
        at_most, at_least: its budget; None where there is none.
        signed: whether it is printed with its sign, as a difference is.
    """

    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    signed: bool = False

    @property
    def budget(self) -> str | None:
        """The budget in words, None if there is none."""
        if self.at_most is not None:
            return f"≤ {self._written(self.at_most, short=True)}"
        if self.at_least is not None:
            return f"≥ {self._written(self.at_least, short=True)}"
        return None

    @property
    def kept(self) -> bool | None:
        """Whether the budget is kept, None if there is none."""
        if self.budget is None:
            return None
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    @property
    def verdict(self) -> str:
        """The budget and whether it is kept; nothing if there is none."""
        return f"{self.budget}: {'kept' if self.kept else 'MISSED'}" if self.budget else ""

    def __str__(self) -> str:
        sign = "+" if self.signed and self.value > 0 else ""
        return sign + self._written(self.value)

    def _written(self, value: float, short: bool = False) -> str:
        if self.unit == "s":
            return readable(value)
        if isinstance(value, int):
            number = f"{value:,}"
        elif short or self.unit not in ("×", "MiB"):
            number = f"{value:.3g}"
        else:
            near_one = self.unit == "×" and 0.5 < value < 2
            number = f"{value:.{3 if near_one else 2}f}"
        # What was counted stands in the column's heading.
        return f"{number} {self.unit}" if self.unit in ("×", "MiB") else number


def seconds(value: float, **budget: Any) -> Figure:
    """A time, in seconds."""
    return Figure(value, "s", **budget)


def ratio(value: float, **budget: Any) -> Figure:
    """How many times as much."""
    return Figure(value, "×", **budget)


def count(value: int, of: str, **budget: Any) -> Figure:
    """How many, exactly."""
    return Figure(value, of, **budget)


def mebibytes(value: float, **options: Any) -> Figure:
    """Memory, in MiB."""
    return Figure(value, "MiB", **options)


class Report:
    """Prints what the benchmarks measure and remembers every figure.

    Args:
        console: where to print.
        verbose: whether to print what lies behind the figures, too.
    """

    def __init__(self, console: Console, verbose: bool = False) -> None:
        self.console, self.verbose = console, verbose
        #: Name of the benchmark that is running: every figure's name starts with it.
        self.benchmark = ""
        self._figures: list[dict[str, Any]] = []

    def table(self, title: str, *headings: str, of: str = "") -> Table:
        """A table to fill; printed at the end of its ``with`` block.

        Args:
            title: stands above it.
            *headings: of its columns.
            of: what all of its figures' names begin with, where a benchmark prints several tables.
        """
        return Table(self, title, headings, of)

    def line(self, name: str, figure: Figure) -> None:
        """Print one figure on a line of its own."""
        self.keep(name, figure)
        budget = f", budget {figure.verdict}" if figure.budget else ""
        self.console.print(f"[bold]{escape(name)}[/]: {figure}{budget}")

    def say(self, text: str) -> None:
        """Print words that are no figure."""
        self.console.print(escape(text))

    def keep(self, name: str, figure: Figure) -> None:
        """Remember a figure for `write`."""
        self._figures.append(
            {
                "name": f"{self.benchmark}: {name}",
                "value": figure.value,
                "unit": figure.unit,
                "budget": figure.budget,
                "kept": figure.kept,
            }
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write every figure so far as a JSON list of {name, value, unit, budget, kept}; "-" is standard output."""
        text = json.dumps(self._figures, indent=1, ensure_ascii=False) + "\n"
        if path == "-":
            sys.stdout.write(text)
        else:
            pathlib.Path(path).write_text(text)


class Table:
    """Rows of words and figures; the figures' budgets stand in a last column.

    A figure's name is made of the words before the first figure of its row, and of its heading.
    """

    def __init__(self, report: Report, title: str, headings: tuple[str, ...], of: str) -> None:
        self._report, self._title, self._headings, self._of = report, title, headings, of
        self._rows: list[tuple[str | Figure, ...]] = []

    def row(self, *cells: str | Figure) -> None:
        """Add a row, a cell for each heading."""
        if len(cells) != len(self._headings):
            raise ValueError(f"a row of {len(cells)} cells in a table of {len(self._headings)} columns")
        self._rows.append(cells)
        first = next((i for i, cell in enumerate(cells) if isinstance(cell, Figure)), len(cells))
        words = ", ".join(filter(None, (self._of, *map(str, cells[:first]))))
        for heading, cell in zip(self._headings, cells):
            if isinstance(cell, Figure):
                self._report.keep(f"{words}: {heading}", cell)

    def __enter__(self) -> Table:
        return self

    def __exit__(self, kind: type | None, *ignored: object) -> None:
        # What was measured before something went wrong is worth seeing, too.
        if self._rows:
            print_table(self._report.console, self._drawn())

    def _drawn(self) -> RichTable:
        budgeted = any(isinstance(cell, Figure) and cell.budget for row in self._rows for cell in row)
        table = RichTable(title=escape(self._title), title_justify="left")
        for i, heading in enumerate(self._headings):
            words = all(isinstance(row[i], str) for row in self._rows)
            table.add_column(escape(heading), justify="left" if words else "right")
        if budgeted:
            table.add_column("budget", no_wrap=True)
        for row in self._rows:
            cells = [escape(str(cell)) for cell in row]
            table.add_row(*cells, *([self._verdicts(row)] if budgeted else []))
        return table

    def _verdicts(self, row: tuple[str | Figure, ...]) -> str:
        with_budget = [
            (heading, cell)
            for heading, cell in zip(self._headings, row)
            if isinstance(cell, Figure) and cell.budget
        ]
        if len(with_budget) == 1:
            return with_budget[0][1].verdict
        return "\n".join(f"{escape(heading)} {cell.verdict}" for heading, cell in with_budget) or "none"
