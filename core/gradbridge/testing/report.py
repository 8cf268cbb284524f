"""Running the kit without pytest: `run` gives a `Report`, `check_command` prints one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradbridge.errors import BackendUnavailableError
from gradbridge.registry import Registry, default_registry
from gradbridge.testing import rows as rows_
from gradbridge.testing.backend import BackendUnderTest
from gradbridge.testing.checks import CHECKS
from gradbridge.testing.checks.catalogue import Check
from gradbridge.testing.factories import under_test_of
from gradbridge.testing.laws import LAWS
from gradbridge.testing.rows import FAILED, MARKS, PASSED, Row, row_of, worst
from gradbridge.testing.scenarios import BATCHNORM_TRAIN, SCENARIOS
from gradbridge.testing.subject import Subject

if TYPE_CHECKING:
    from rich.table import Table

    from gradbridge.terminal import Told

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
        return rows_.of(self.rows, outcome)

    @property
    def name(self) -> str:
        """What a list of reports calls it."""
        return self.backend

    @property
    def summary(self) -> str:
        """``torch: 154 passed, 0 failed, 3 skipped in 4.1 s``."""
        return f"{self.backend}: {rows_.counted(self.rows)}"

    def laws(self) -> dict[int, str]:
        """{law: its worst outcome}, for a matrix of backends and laws; skipped only if all of it was, "" if not run."""
        return {law: worst(row for row in self.rows if row.law == law) for law in LAWS}

    def abilities(self) -> dict[str, str]:
        """{what may be offered or not: the outcome of its check, "skipped" where it is not offered}."""
        return {
            what: worst(row for row in self.rows if row.check == check) for what, check in ABILITIES.items()
        }

    def table(self) -> Table:
        """Checks × scenarios, for rich: some three hundred columns wide."""
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
                table.add_row(f"  {check}", *(MARKS[cells.get((check, s), "")] for s in scenarios))
        return table

    def count_table(self) -> Table:
        """Checks × outcomes, for rich: how many scenarios each has; fits into eighty columns."""
        return rows_.count_table(self.rows, f"gradbridge conformance of {self.backend}")

    def notes(self) -> list[str]:
        """What failed, in full; and each reason for skipping, once, with what it concerns.

        A traceback that several rows have in common stands with the first of them.
        """
        return rows_.notes(self.rows)

    def __str__(self) -> str:
        return "\n".join([rows_.drawn(self.count_table()), *self.notes(), self.summary])


def run(
    under_test: BackendUnderTest,
    checks: Iterable[str] | None = None,
    scenarios: Iterable[str] | None = None,
    told: Told | None = None,
) -> Report:
    """Run the conformance kit on a backend.

    Args:
        under_test: the author's factories.
        checks: names of those to run; all by default.
        scenarios: names of those to run on; all by default.
        told: called before each with (how many are done, of how many, ``check[scenario]``).

    Returns:
        One row per check and scenario; a check never stops the next.

    Raises:
        OptionError: there is no check, or no scenario, of such a name.
    """
    bench = Bench(under_test)
    chosen = [CHECKS[name] for name in rows_.known(checks, CHECKS, "check")]
    models = set(rows_.known(scenarios, SCENARIOS, "scenario"))
    cases = [(check, s) for check in chosen for s in check.scenarios if s in models]
    rows = []
    for check, s in rows_.telling(cases, told, lambda case: f"{case[0].name}[{case[1]}]"):
        rows.append(_row(bench, check, s))
    return Report(under_test.name, tuple(rows))


def find(name: str, registry: Registry | None = None) -> BackendUnderTest:
    """The factories that a backend brings: the class `UnderTest` in the module `conformance` beside its guest half.

    A guest half in ``my_package.guest`` has its factories in ``my_package.conformance``.

    Raises:
        UnknownBackendError: there is no such backend.
        BackendUnavailableError: its framework is missing, it is not a guest, or it brings no factories.
    """
    registry = registry if registry is not None else default_registry()
    declared = registry.backend(name)
    if declared.guest is None:
        raise BackendUnavailableError(f"backend {name!r} is not a guest, and the kit checks guests")
    registry.guest(name)  # its own error says how to install the framework
    package = declared.guest.partition(":")[0].rpartition(".")[0]
    module = f"{package}.conformance" if package else "conformance"
    under_test: BackendUnderTest = under_test_of(
        module,
        registry,
        f"backend {name!r}",
        "factories for the conformance kit",
        "write one as gradbridge.testing.BackendUnderTest tells",
    )
    if declared.builder is not None:
        under_test.builds = True
    return under_test


def _row(bench: Bench, check: Check, scenario: str) -> Row:
    def run() -> None:
        bench.check(check.name, scenario)

    return row_of(check.name, check.law, check.statement, scenario, run)
