"""The matrix of what works: host × guest, and guest × law; of all backends that work here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradbridge.errors import BackendUnavailableError
from gradbridge.registry import Registry
from gradbridge.testing.checks import CHECKS
from gradbridge.testing.hosts.checks import HOST_CHECKS
from gradbridge.testing.hosts.finding import find_host
from gradbridge.testing.hosts.guests import BackendGuest
from gradbridge.testing.hosts.report import Cell, HostReport, run_hosts
from gradbridge.testing.laws import LAWS
from gradbridge.testing.report import ABILITIES, Report, find, run
from gradbridge.testing.rows import FAILED, MARKS, PASSED, SKIPPED, known

if TYPE_CHECKING:
    from rich.table import Table

#: What is shown of a cell beside its outcome and its order: {ability: its letter}.
SHOWN = {"forward mode": "f", "vmap": "v", "compiled": "c"}

LEGEND = (
    "✓ every law holds, ✗ one is broken; 1, 2, 3: the highest order of derivatives; "
    "f forward mode, v vmap, c compiled (c¹ of first order alone); – not there, for a reason that is given below"
)


@dataclass(frozen=True)
class Matrix:
    """What the kits found.

    Attributes:
        guests: {name: the report of the kit for guests}.
        hosts: {name: the report of the kit for hosts, with all guests}.
        left_out: why a backend that there is could not be checked.
        versions: {backend: version of its framework, or None}.
    """

    guests: dict[str, Report]
    hosts: dict[str, HostReport]
    left_out: tuple[str, ...]
    versions: dict[str, str | None]

    @property
    def passed(self) -> bool:
        """Whether no law is broken."""
        return not self.failures() and bool(self.guests or self.hosts)

    @property
    def columns(self) -> list[str]:
        """The guests of the cells."""
        return list(dict.fromkeys(guest for report in self.hosts.values() for guest in report.guests))

    def cells(self) -> list[Cell]:
        """One for each host and guest."""
        return [report.cell(guest) for report in self.hosts.values() for guest in report.guests]

    def failures(self) -> list[str]:
        """What failed, in full."""
        reports: list[Report | HostReport] = [*self.guests.values(), *self.hosts.values()]
        return [
            f"{report.name}: {note}"
            for report in reports
            for note in report.notes()[: len(report.of(FAILED))]
        ]

    def reasons(self) -> list[str]:
        """Why there is a "–" in cells: for each host and ability the first guest's reason, told once."""
        told: dict[tuple[str, str], tuple[str, list[str]]] = {}
        for cell in self.cells():
            for what, reason in cell.reasons.items():
                if cell.abilities.get(what) == SKIPPED:
                    told.setdefault((cell.host, what), (reason, []))[1].append(cell.guest)
        alike: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
        for (host, what), (reason, guests) in told.items():
            alike.setdefault((host, reason, tuple(guests)), []).append(what)
        return [
            f"– {', '.join(abilities)}, {host} with {self._guests(guests)}: {reason}"
            for (host, reason, guests), abilities in alike.items()
        ]

    def _guests(self, guests: Sequence[str]) -> str:
        return "every guest" if list(guests) == self.columns else ", ".join(guests)

    def as_dict(self) -> dict[str, Any]:
        """All of it, of what JSON has."""
        return {
            "versions": self.versions,
            "hosts": {
                host: {guest: _cell_as_dict(report.cell(guest)) for guest in report.guests}
                for host, report in self.hosts.items()
            },
            "guests": {
                guest: {
                    "laws": {str(law): outcome for law, outcome in report.laws().items()},
                    "abilities": report.abilities(),
                    "checks": {outcome: len(report.of(outcome)) for outcome in (PASSED, FAILED, SKIPPED)},
                }
                for guest, report in self.guests.items()
            },
            "left_out": list(self.left_out),
            "failures": self.failures(),
        }

    def host_table(self) -> Table:
        """Host × guest, for rich."""
        from rich.table import Table

        table = Table(title="host × guest", title_justify="left")
        table.add_column("host")
        for guest in self.columns:
            table.add_column(guest, justify="center", no_wrap=True)
        for host, report in self.hosts.items():
            cells = [mark(report.cell(guest)) if guest in report.guests else "" for guest in self.columns]
            table.add_row(host, *cells)
        return table

    def guest_table(self) -> Table:
        """Guest × law, for rich."""
        from rich.table import Table

        table = Table(title="guest × law, and what it offers beyond", title_justify="left")
        table.add_column("law")
        for name in self.guests:
            table.add_column(name, justify="center", no_wrap=True)
        reports = self.guests.values()
        for law, statement in LAWS.items():
            table.add_row(f"{law}. {statement}", *[MARKS[report.laws()[law]] for report in reports])
        table.add_section()
        for what in ABILITIES:
            table.add_row(what, *[MARKS[report.abilities()[what]] for report in reports])
        table.add_section()
        for outcome in (PASSED, FAILED, SKIPPED):
            table.add_row(f"checks {outcome}", *[str(len(report.of(outcome))) for report in reports])
        return table


def mark(cell: Cell) -> str:
    """A cell in a few letters, for rich: ``✓ 3 f v c``."""
    if not cell.outcome:
        return ""
    letters = [_letter(cell, ability) for ability in SHOWN]
    return " ".join([MARKS[cell.outcome], str(cell.order or "–"), *letters])


def _letter(cell: Cell, ability: str) -> str:
    if cell.abilities[ability] != PASSED:
        return MARKS[cell.abilities[ability]]
    first_alone = ability == "compiled" and cell.abilities["compiled second order"] != PASSED
    return SHOWN[ability] + ("¹" if first_alone else "")


def matrix_of(
    registry: Registry,
    only: Sequence[str] = (),
    working: Callable[[str], AbstractContextManager[Any]] = lambda what: nullcontext(),
) -> Matrix:
    """Run both kits on all backends that work here.

    Args:
        registry: the plugins to choose from.
        only: names of the checks to run; all by default.
        working: entered while something is checked, with what; what it yields is told of each check.

    Raises:
        OptionError: there is no check of such a name.
    """
    known(only, [*CHECKS, *HOST_CHECKS], "check")
    of_guests = [name for name in only if name in CHECKS]
    of_hosts = [name for name in only if name in HOST_CHECKS]
    guests, hosts = dict[str, Report](), dict[str, HostReport]()
    left_out, made = list[str](), list[BackendGuest]()
    infos = registry.infos()
    for name in _available((n for n, i in infos.items() if "guest" in i.roles), registry, left_out):
        try:
            under_test = find(name, registry)
        except BackendUnavailableError as error:
            left_out.append(f"{name} is left out: {error}")
            continue
        made.append(BackendGuest(under_test))
        if of_guests or not only:
            with working(f"checking {name}") as told:
                guests[name] = run(under_test, of_guests or None, told=told)
    if of_hosts or not only:
        for name in _available((n for n, i in infos.items() if "host" in i.roles), registry, left_out):
            try:
                host = find_host(name, registry)
            except BackendUnavailableError as error:
                left_out.append(f"{name} is left out as a host: {error}")
                continue
            with working(f"checking {name} as a host") as told:
                hosts[name] = run_hosts(host, made, of_hosts or None, told)
    versions = {name: infos[name].version for name in dict.fromkeys([*hosts, *guests])}
    return Matrix(guests, hosts, tuple(left_out), versions)


def _available(names: Iterable[str], registry: Registry, left_out: list[str]) -> list[str]:
    """Those whose framework is there; of the others the reason is noted, once."""
    available = []
    for name in names:
        info = registry.infos()[name]
        if info.available:
            available.append(name)
        elif (line := f"{name} is left out: {info.reason}") not in left_out:
            left_out.append(line)
    return available


def _cell_as_dict(cell: Cell) -> dict[str, Any]:
    return {
        "outcome": cell.outcome,
        "order": cell.order,
        "abilities": cell.abilities,
        "reasons": cell.reasons,
    }
