"""Running the kit without pytest: `run` gives a `Report`, `check_command` prints one."""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import TYPE_CHECKING

from gradbridge.errors import BackendUnavailableError, GradbridgeWarning, OptionError
from gradbridge.registry import Registry, default_registry
from gradbridge.testing import tracebacks
from gradbridge.testing.backend import BackendUnderTest, NotOfferedError
from gradbridge.testing.checks import CHECKS, LAWS
from gradbridge.testing.checks.catalogue import Check
from gradbridge.testing.scenarios import BATCHNORM_TRAIN, SCENARIOS
from gradbridge.testing.subject import Subject
from gradbridge.wording import suggestion

if TYPE_CHECKING:
    from rich.table import Table

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
#: What a backend may offer or not, and the check that tells.
ABILITIES = {
    "second order": "second_order",
    "third order": "third_order",
    "forward mode of its own": "forward_mode",
    "many tangents at once": "forward_mode_many",
    "many cotangents at once": "many_cotangents",
    "per-example": "per_example_jacobians",
    "one forward for a Hessian-vector product": "one_forward_of_any_order",
    "weights in one leaf": "packed_weights",
    "shapes ahead of a call": "shapes_ahead",
    "complex numbers": "complex_gradient",
    "random layers": "noise_is_the_calls",
    "moving statistics": "statistics_move_once",
}
_MARKS = {PASSED: "[green]✓[/]", FAILED: "[bold red]✗[/]", SKIPPED: "[yellow]–[/]", "": ""}


class Bench:
    """The subjects of one backend, built when they are first needed and then shared by the checks."""

    def __init__(self, under_test: BackendUnderTest) -> None:
        self.under_test = under_test
        self._subjects: dict[tuple[str, str], Subject] = {}

    def check(self, name: str, scenario: str) -> None:
        """Run one check on one scenario.

        Raises:
            AssertionError: the law is broken.
            NotOfferedError: the backend does not offer what the check needs.
        """
        check = CHECKS[name]
        key = scenario, check.mode
        if key not in self._subjects:
            trained = check.mode == "train" and scenario == BATCHNORM_TRAIN.name
            model = BATCHNORM_TRAIN if trained else SCENARIOS[scenario]
            self._subjects[key] = Subject(self.under_test, model, check.mode)
        check(self._subjects[key])


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
        traceback: where the backend raised, with files and lines; empty where it did not.
    """

    check: str
    law: int
    scenario: str
    outcome: str
    message: str
    seconds: float
    traceback: str = ""


@dataclass(frozen=True)
class Report:
    """The outcome of all checks on one backend. Prints as a table, in rich or plainly."""

    backend: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed and something passed: a backend that offers nothing is not right."""
        return not self.of(FAILED) and bool(self.of(PASSED))

    def of(self, outcome: str) -> list[Row]:
        """The rows of one outcome."""
        return [row for row in self.rows if row.outcome == outcome]

    @property
    def summary(self) -> str:
        """``torch: 154 passed, 0 failed, 3 skipped in 4.1 s``."""
        counts = ", ".join(f"{len(self.of(outcome))} {outcome}" for outcome in (PASSED, FAILED, SKIPPED))
        return f"{self.backend}: {counts} in {sum(row.seconds for row in self.rows):.1f} s"

    def laws(self) -> dict[int, str]:
        """{law: its worst outcome}, for a matrix of backends and laws; skipped only if all of it was, "" if not run."""
        return {law: _worst(row for row in self.rows if row.law == law) for law in LAWS}

    def abilities(self) -> dict[str, str]:
        """{what may be offered or not: the outcome of its check, "skipped" where it is not offered}."""
        return {
            what: _worst(row for row in self.rows if row.check == check) for what, check in ABILITIES.items()
        }

    def table(self) -> Table:
        """Checks × scenarios, for rich."""
        from rich.table import Table

        scenarios = list(dict.fromkeys(row.scenario for row in self.rows))
        table = Table(title=f"gradbridge conformance of {self.backend}", title_justify="left")
        table.add_column("law and its checks", no_wrap=True)
        for scenario in scenarios:
            table.add_column(scenario, justify="center", overflow="fold")
        cells = {(row.check, row.scenario): row.outcome for row in self.rows}
        for law, title in LAWS.items():
            checks = list(dict.fromkeys(row.check for row in self.rows if row.law == law))
            if not checks:
                continue
            table.add_section()
            table.add_row(f"[bold]{law} {title}[/]")
            for check in checks:
                table.add_row(f"  {check}", *(_MARKS[cells.get((check, s), "")] for s in scenarios))
        return table

    def notes(self) -> list[str]:
        """What failed, in full; and each reason for skipping, once, with what it concerns.

        A traceback that several rows have in common stands with the first of them.
        """
        lines, told = [], dict[str, str]()
        for row in self.of(FAILED):
            where = f"{row.check}[{row.scenario}]"
            line = f"✗ {where}, law {row.law}: {CHECKS[row.check].statement}\n    {row.message}"
            if row.traceback in told:
                line += f"\n    raised where {told[row.traceback]} was"
            elif row.traceback:
                told[row.traceback] = where
                line += "\n" + indent(row.traceback, "    ")
            lines.append(line)
        reasons: dict[str, list[str]] = {}
        for row in self.of(SKIPPED):
            reasons.setdefault(row.message, []).append(f"{row.check}[{row.scenario}]")
        for reason, names in reasons.items():
            few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            lines.append(f"– {reason}\n    skipped: {few}")
        return lines

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=120, color_system=None)
        with console.capture() as captured:
            console.print(self.table())
        return "\n".join([captured.get().rstrip(), *self.notes(), self.summary])


def _worst(rows: Iterable[Row]) -> str:
    outcomes = {row.outcome for row in rows}
    return next((outcome for outcome in (FAILED, PASSED, SKIPPED) if outcome in outcomes), "")


def run(
    under_test: BackendUnderTest,
    checks: Iterable[str] | None = None,
    scenarios: Iterable[str] | None = None,
) -> Report:
    """Run the conformance kit on a backend.

    Args:
        under_test: the author's factories.
        checks: names of those to run; all by default.
        scenarios: names of those to run on; all by default.

    Returns:
        One row per check and scenario; a check never stops the next.

    Raises:
        OptionError: there is no check, or no scenario, of such a name.
    """
    bench = Bench(under_test)
    chosen = [CHECKS[name] for name in _known(checks, CHECKS, "check")]
    models = set(_known(scenarios, SCENARIOS, "scenario"))
    rows = [_row(bench, check, s) for check in chosen for s in check.scenarios if s in models]
    return Report(under_test.name, tuple(rows))


def _known(names: Iterable[str] | None, all_names: Iterable[str], what: str) -> list[str]:
    known = list(all_names)
    chosen = known if names is None else list(dict.fromkeys(names))
    for name in chosen:
        if name not in known:
            hint = suggestion(name, known).rstrip() or f"there are {', '.join(known)}"
            raise OptionError(f"the kit has no {what} {name!r}; {hint}")
    return chosen


def find(name: str, registry: Registry | None = None) -> BackendUnderTest:
    """The factories that a backend brings: the class `UnderTest` in the module `conformance` beside its guest half.

    A guest half in ``my_package.guest`` has its factories in ``my_package.conformance``.

    Raises:
        UnknownBackendError: there is no such backend.
        BackendUnavailableError: its framework is missing, it is no guest, or it brings no factories.
    """
    registry = registry if registry is not None else default_registry()
    declared = registry.backend(name)
    if declared.guest is None:
        raise BackendUnavailableError(f"backend {name!r} is no guest, and the kit checks guests")
    registry.guest(name)  # its own error says how to install the framework
    package = declared.guest.partition(":")[0].rpartition(".")[0]
    module = f"{package}.conformance" if package else "conformance"
    try:
        found = importlib.import_module(module).UnderTest
    except (ModuleNotFoundError, AttributeError) as error:
        raise BackendUnavailableError(
            f"backend {name!r} brings no factories for the conformance kit: expected a class UnderTest in the "
            f"module {module} ({error}); write one as gradbridge.testing.BackendUnderTest tells"
        ) from error
    under_test: BackendUnderTest = found(registry)
    if declared.builder is not None:
        under_test.builds = True
    return under_test


def check_command(name: str, registry: Registry | None = None, only: Sequence[str] = ()) -> int:
    """``gradbridge check NAME``: run the kit and print the table.

    Args:
        name: of the backend.
        registry: the plugins to choose from.
        only: names of the checks to run; all by default.

    Returns:
        The exit code: 0 if every law that could be checked holds, else 1.

    Raises:
        UnknownBackendError, BackendUnavailableError
        OptionError: there is no check of such a name.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console()
    under_test = find(name, registry)
    with console.status(f"checking {name}"):
        report = run(under_test, only or None)
    console.print(report.table())
    for note in report.notes():
        console.print(Text(note), soft_wrap=True)
    console.print(Text(report.summary, style="bold green" if report.passed else "bold red"))
    return 0 if report.passed else 1


def _row(bench: Bench, check: Check, scenario: str) -> Row:
    start = time.perf_counter()
    outcome, message, where = PASSED, "", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradbridgeWarning)  # what a scenario does on purpose
            bench.check(check.name, scenario)
    except NotOfferedError as error:
        outcome, message = SKIPPED, str(error)
    except Exception as error:  # whatever a backend raises is a row of the report
        outcome, message, where = FAILED, str(error), tracebacks.of_backend(error)
        if not (isinstance(error, AssertionError) and tracebacks.is_of_kit(error)):
            message = f"raised {type(error).__name__}: {error}"
    return Row(check.name, check.law, scenario, outcome, message, time.perf_counter() - start, where)


def matrix_command(registry: Registry | None = None, only: Sequence[str] = ()) -> int:
    """Print the matrix guest × law of every backend that works here.

    Args:
        registry: the plugins to choose from.
        only: names of the checks to run; all by default.

    Returns:
        The exit code: 1 if a law is broken, else 0.
    """
    from rich.console import Console
    from rich.table import Table

    registry = registry if registry is not None else default_registry()
    console = Console()
    table = Table(title="guest × law, and what it offers beyond", title_justify="left")
    table.add_column("law")
    reports: dict[str, Report] = {}
    for name, info in registry.infos().items():
        if "guest" not in info.roles:
            continue
        if not info.available:
            console.print(f"{name} is left out: {info.reason}", soft_wrap=True, markup=False)
            continue
        try:
            under_test = find(name, registry)
        except BackendUnavailableError as error:
            console.print(f"{name} is left out: {error}", soft_wrap=True, markup=False)
            continue
        with console.status(f"checking {name}"):
            reports[name] = run(under_test, only or None)
        table.add_column(name, justify="center")
    for law, statement in LAWS.items():
        table.add_row(
            f"{law}. {statement}", *[_MARKS[report.laws().get(law, "")] for report in reports.values()]
        )
    table.add_section()
    for what in ABILITIES:
        table.add_row(what, *[_MARKS[report.abilities()[what]] for report in reports.values()])
    table.add_section()
    for outcome in (PASSED, FAILED, SKIPPED):
        table.add_row(f"checks {outcome}", *[str(len(report.of(outcome))) for report in reports.values()])
    console.print(table)
    for report in reports.values():
        for note in report.notes()[: len(report.of(FAILED))]:
            console.print(f"{report.backend}: {note}", markup=False, highlight=False, soft_wrap=True)
    return 0 if all(report.passed for report in reports.values()) else 1
