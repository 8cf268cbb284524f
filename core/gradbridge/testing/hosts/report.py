"""Running the kit for hosts without pytest: `run_hosts` gives a `HostReport`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradbridge.registry import Registry
from gradbridge.testing import rows as rows_
from gradbridge.testing.backend import BackendUnderTest
from gradbridge.testing.hosts.cell import HostCell
from gradbridge.testing.hosts.checks import HOST_CHECKS, HostCheck
from gradbridge.testing.hosts.guests import BackendGuest, Guest
from gradbridge.testing.hosts.paper import DECLARATION, PAPER
from gradbridge.testing.hosts.under_test import HostUnderTest
from gradbridge.testing.laws import LAWS
from gradbridge.testing.reference import Reference
from gradbridge.testing.rows import FAILED, MARKS, PASSED, Row, row_of, worst

if TYPE_CHECKING:
    from rich.table import Table

    from gradbridge.terminal import Told

#: What a host may offer or not, in a cell of the matrix: {ability: its letter there}.
ABILITIES = {
    "second order": "2",
    "third order": "3",
    "forward mode": "f",
    "forward over reverse": "",
    "reverse over forward": "",
    "Hessian": "",
    "vmap": "v",
    "compiled": "c",
    "compiled second order": "",
    "compiled forward mode": "",
    "complex": "i",
}


class HostBench:
    """The cells of one host, made when they are first needed and then shared by the checks.

    Args:
        host: the operations of the host.
        guests: where the scenarios come from; shared by as many benches as you like.
    """

    def __init__(self, host: HostUnderTest, guests: Iterable[Guest]) -> None:
        self.host = host
        self.guests = {guest.name: guest for guest in guests}
        self._cells: dict[tuple[str, str], HostCell] = {}

    def check(self, name: str, guest: str, scenario: str) -> None:
        """Run one check on one scenario of one guest.

        Raises:
            AssertionError: the law is broken.
            NotOfferedError: the host does not offer what the check needs, or the guest.
        """
        with self.host.active(), declared(self.host):
            key = guest, scenario
            if key not in self._cells:
                self._cells[key] = HostCell(self.host, self.guests[guest], scenario)
            HOST_CHECKS[name](self._cells[key])


@contextmanager
def declared(host: HostUnderTest) -> Iterator[None]:
    """While it runs the registry has the host, and the kit's own one, as any other."""
    with ExitStack() as stack:
        for one in {id(d): d for d in (host.declaration, _paper(host)) if d is not None}.values():
            stack.enter_context(host.registry.observing(one))
        yield


def _paper(host: HostUnderTest) -> object:
    """The host on paper, unless this is one that is called so."""
    return None if host.host == PAPER else DECLARATION


@dataclass(frozen=True)
class HostReport:
    """The outcome of all checks on one host with some guests. Prints as a table, in rich or plainly.

    Attributes:
        host: its name.
        guests: their names.
        rows: one for each check, guest and scenario.
    """

    host: str
    guests: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed and something passed."""
        return not self.of(FAILED) and bool(self.of(PASSED))

    def of(self, outcome: str) -> list[Row]:
        """The rows of one outcome."""
        return rows_.of(self.rows, outcome)

    @property
    def name(self) -> str:
        """What a list of reports calls it."""
        return f"{self.host} as a host"

    @property
    def summary(self) -> str:
        """``torch as a host: 154 passed, 0 failed, 3 skipped in 4.1 s``."""
        return f"{self.name}: {rows_.counted(self.rows)}"

    def cell(self, guest: str) -> Cell:
        """What holds of one guest in this host."""
        return Cell.of(self.host, guest, [row for row in self.rows if row.guest == guest])

    def table(self) -> Table:
        """Checks × guests, for rich: the worst outcome of all scenarios."""
        from rich.table import Table

        table = Table(title=f"{self.host} as a host of gradbridge", title_justify="left")
        table.add_column("law and its checks", overflow="fold")
        for guest in self.guests:
            table.add_column(guest, justify="center", overflow="fold")
        for law, title in LAWS.items():
            checks = list(dict.fromkeys(row.check for row in self.rows if row.law == law))
            if not checks:
                continue
            table.add_section()
            table.add_row(f"[bold]{law} {title}[/]")
            for check in checks:
                marks = [
                    MARKS[worst(r for r in self.rows if (r.check, r.guest) == (check, guest))]
                    for guest in self.guests
                ]
                table.add_row(f"  {check.removeprefix('host_')}", *marks)
        return table

    def notes(self) -> list[str]:
        """What failed, in full; and each reason for skipping, once, with what it concerns."""
        return rows_.notes(self.rows)

    def __str__(self) -> str:
        return "\n".join([rows_.drawn(self.table()), *self.notes(), self.summary])


@dataclass(frozen=True)
class Cell:
    """One host × one guest.

    Attributes:
        host, guest: their names.
        outcome: the worst of all checks.
        order: the highest order of derivatives that is right, with all below it; 0 where a gradient is not.
        abilities: {ability: the outcome of its checks, "skipped" where it is not offered, "" where not run}.
        reasons: {ability, or check: why not}.
    """

    host: str
    guest: str
    outcome: str
    order: int
    abilities: dict[str, str]
    reasons: dict[str, str]

    @classmethod
    def of(cls, host: str, guest: str, rows: Sequence[Row]) -> Cell:
        """The cell of some rows."""
        abilities, reasons = {}, dict[str, str]()
        for ability in ABILITIES:
            own = [row for row in rows if HOST_CHECKS[row.check].ability == ability]
            abilities[ability] = worst(own)
        for row in rows:
            ability = HOST_CHECKS[row.check].ability
            if row.outcome == FAILED or (ability and abilities[ability] != PASSED):
                reasons.setdefault(ability or row.check, row.message)
        gradients = worst(row for row in rows if row.check == "host_gradients")
        marks = [gradients, abilities["second order"], abilities["third order"]]
        order = next((i for i, mark in enumerate(marks) if mark != PASSED), len(marks))
        return cls(host, guest, worst(rows), order, abilities, reasons)


def run_hosts(
    host: HostUnderTest,
    guests: Iterable[Guest | BackendUnderTest] | None = None,
    checks: Iterable[str] | None = None,
    told: Told | None = None,
) -> HostReport:
    """Run the kit on a host.

    Args:
        host: the operations of its author.
        guests: the scenarios of some backends; by default those of the reference, which needs no framework.
        checks: names of those to run; all by default.
        told: called before each with (how many are done, of how many, ``check[guest-scenario]``).

    Returns:
        One row per check, guest and scenario; a check never stops the next.

    Raises:
        OptionError: there is no check of such a name.
    """
    made = [_guest(guest) for guest in guests] if guests is not None else [reference(host.registry)]
    bench = HostBench(host, made)
    chosen = [HOST_CHECKS[name] for name in rows_.known(checks, HOST_CHECKS, "check")]
    every = list(cases(chosen, made))
    rows = []
    for case in rows_.telling(every, told, lambda case: f"{case[0].name}[{case[1]}-{case[2]}]"):
        rows.append(_row(bench, *case))
    return HostReport(host.name, tuple(bench.guests), tuple(rows))


def cases(checks: Iterable[HostCheck], guests: Sequence[Guest]) -> Iterator[tuple[HostCheck, str, str]]:
    """(check, guest, scenario) of all that is to be run."""
    for check in checks:
        for guest in guests:
            if not check.on_paper or is_reference(guest):
                for scenario in check.scenarios:
                    yield check, guest.name, scenario


def is_reference(guest: Guest) -> bool:
    """Whether a guest is the reference, on which the checks run that are about the host alone."""
    return isinstance(guest, BackendGuest) and guest.is_paper


def reference(registry: Registry) -> BackendGuest:
    """The closed forms themselves as a guest."""
    return BackendGuest(Reference(registry))


def _guest(guest: Guest | BackendUnderTest) -> Guest:
    return guest if isinstance(guest, Guest) else BackendGuest(guest)


def _row(bench: HostBench, check: HostCheck, guest: str, scenario: str) -> Row:
    def run() -> None:
        bench.check(check.name, guest, scenario)

    return row_of(check.name, check.law, check.statement, scenario, run, guest)
