"""The kit as its users meet it: skipping, reports, the command, and pytest."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from gradbridge.cli import cli
from gradbridge.errors import BackendUnavailableError, OptionError, UnknownBackendError
from gradbridge.testing import (
    CHECKS,
    LAWS,
    BackendUnderTest,
    Bench,
    Native,
    NotOfferedError,
    check_command,
    find,
    run,
)
from gradbridge.testing.faulty import FAULTS
from gradbridge.testing.reference import Reference
from gradbridge.testing.scenarios import SCENARIOS


class OnlyEnergy(BackendUnderTest):
    """What a backend author has after ten minutes."""

    backend = "numpy"
    reasons = {"dropout": "paper has no dice"}  # noqa: RUF012

    def energy(self):
        return Native(
            lambda x, y: np.sum(x**2 * y),
            vjp=(lambda ans, x, y: lambda v: 2 * v * x * y, lambda ans, x, y: lambda v: v * x**2),
        )


def test_what_is_left_out_is_skipped_with_the_reason_and_never_passes():
    report = run(OnlyEnergy())
    assert report.passed
    assert {row.scenario for row in report.of("passed")} == {"energy"}
    reasons = {row.scenario: row.message for row in report.of("skipped") if row.scenario != "energy"}
    assert reasons["dropout"] == "numpy: paper has no dice"
    assert reasons["mlp"] == "numpy: no factory mlp() was given"
    assert reasons["column"] == "numpy: no factory mlp() was given"
    assert reasons["linear"] == "numpy: it builds no architectures"
    assert set(reasons) == set(SCENARIOS) - {"energy"}


def test_a_backend_that_offers_nothing_has_not_passed():
    class Nothing(BackendUnderTest):
        backend = "numpy"

    report = run(Nothing())
    assert not report.of("failed")
    assert not report.passed


def test_a_factory_that_raises_is_a_failure_of_its_rows_and_of_no_others():
    class Broken(OnlyEnergy):
        def tied(self, weight):
            raise RuntimeError("no such layer")

    report = run(Broken(), checks=["value_is_right"])
    (row,) = report.of("failed")
    assert (row.scenario, row.message) == ("tied", "raised RuntimeError: no such layer")


def test_the_order_in_which_a_framework_stores_parameters_does_not_matter():
    bench = Bench(find("numpy"))
    bench.check("gradient_is_right", "unused")
    order = bench._subjects["unused", "eval"].order
    assert order.tolist() == [6, 7, 8, 9, 0, 1, 2, 3, 4, 5]  # a dict's keys are sorted: spare, then weight


def test_a_model_whose_params_are_not_its_own_is_named():
    class Doubling(Reference):
        def tied(self, weight):
            return super().tied(weight=2 * weight)

    with pytest.raises(
        AssertionError, match="weights\\(\\) of tied must hold the 9 numbers that the model holds"
    ):
        Bench(Doubling()).check("value_is_right", "tied")


def test_without_a_dtype_its_checks_are_skipped():
    class Single(Reference):
        dtypes = ("float32",)

    bench = Bench(Single())
    bench.check("value_is_right", "mlp")
    with pytest.raises(NotOfferedError, match="float64"):
        bench._subjects["mlp", "eval"].adapter("float64")


def test_a_framework_that_means_to_fix_what_a_function_reads_says_so_and_the_check_is_skipped():
    class Fixed(OnlyEnergy):
        reasons = {"outside_is_fresh": "a graph is built once, with the numbers in it"}  # noqa: RUF012

    (row,) = run(Fixed(), checks=["outside_is_fresh"]).of("skipped")
    assert row.message == "numpy: a graph is built once, with the numbers in it"
    (row,) = run(OnlyEnergy(), checks=["outside_is_fresh"]).of("skipped")
    assert row.message == "numpy: energy() is not a plain function, and reading() was not given"


def test_the_report_prints_a_table_with_reasons_and_counts():
    names = ("value_is_right", "second_order")
    text = str(run(OnlyEnergy(), checks=names))
    skipped = sum(len(CHECKS[name].scenarios) for name in names) - 1
    assert "gradbridge conformance of numpy" in text
    assert "1 right" in text
    assert "– numpy: paper has no dice" in text
    assert f"numpy: 1 passed, 0 failed, {skipped} skipped" in text


def test_the_report_tells_the_worst_outcome_of_each_law():
    report = run(FAULTS["third_order"][0].backend())
    assert report.laws() == {law: "failed" if law == 7 else "passed" for law in LAWS}
    assert report.abilities()["third order"] == "failed"
    assert {outcome for what, outcome in report.abilities().items() if what != "third order"} == {"passed"}


def test_the_report_tells_what_is_not_offered():
    report = run(OnlyEnergy())
    assert report.abilities()["random layers"] == "skipped"
    assert report.abilities()["per-example"] == "skipped"


def test_the_command_exits_with_zero_where_all_holds(capsys):
    assert check_command("numpy") == 0
    assert "0 failed" in capsys.readouterr().out


def test_the_command_exits_with_one_where_a_law_is_broken(monkeypatch, capsys):
    faulty = FAULTS["gradient_is_right"][0].backend()
    monkeypatch.setattr("gradbridge.testing.commands.find", lambda name, registry: faulty)
    assert check_command("numpy") == 1
    assert "✗ gradient_is_right[tied], law 1" in capsys.readouterr().out


def test_an_unknown_backend_is_met_with_the_nearest_name():
    with pytest.raises(UnknownBackendError, match="did you mean 'numpy'"):
        find("nunpy")


def test_a_backend_without_factories_says_where_they_belong(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradbridge_numpy.conformance", None)
    with pytest.raises(
        BackendUnavailableError, match="class UnderTest in the module gradbridge_numpy.conformance"
    ):
        find("numpy")


def test_the_kit_loads_no_framework_and_no_autodiff_system():
    code = (
        "import sys, gradbridge.testing, gradbridge.testing.faulty; "
        "bad = {'torch', 'jax', 'tensorflow', 'autograd', 'pytest', 'gradbridge_numpy'} & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Raising(OnlyEnergy):
    """A framework whose own code raises, in a gradient, in a factory, and by an assertion of its own."""

    backend = "numpy"

    def energy(self):
        def of_x(ans, x, y):
            def pull(v):
                raise ZeroDivisionError("no such kernel")

            return pull

        return Native(lambda x, y: np.sum(x**2 * y), vjp=(of_x, lambda ans, x, y: lambda v: v * x**2))

    def root(self, scale):
        assert scale.shape == (3,), "three channels"


def lines_of(function, word):
    source, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(source) if word in line)


def test_what_a_backend_raises_is_shown_with_file_and_line():
    report = run(Raising(), checks=["gradient_is_right", "not_finite"])
    text = str(report)
    line = lines_of(Raising.energy, "no such kernel")
    assert f'File "{__file__}", line {line}, in pull' in text
    assert "ZeroDivisionError: no such kernel" in text
    line = lines_of(Raising.root, "three channels")
    assert f'File "{__file__}", line {line}, in root' in text
    assert "raised AssertionError: three channels" in text
    assert "gradbridge/testing/checks" not in text, "the kit's own frames help nobody"


def test_a_traceback_that_rows_have_in_common_is_shown_once():
    report = run(Raising(), checks=["gradient_is_right", "each_argument_alone", "backward_twice"])
    assert len(report.of("failed")) == 3
    text = "\n".join(report.notes())
    assert text.count("no such kernel\n") <= text.count("File ")
    assert len({row.traceback for row in report.of("failed")}) == text.count(f'File "{__file__}"')


def test_what_a_check_found_itself_has_no_traceback():
    faulty = FAULTS["gradient_is_right"][0].backend()
    report = run(faulty, checks=["gradient_is_right"], scenarios=["tied"])
    assert not report.passed
    assert {row.traceback for row in report.of("failed")} == {""}


def command(*arguments):
    return CliRunner().invoke(cli, arguments)


def test_the_command_runs_only_the_checks_that_are_named():
    result = command("check", "numpy", "--only", "value_is_right", "--only", "second_order")
    assert result.exit_code == 0, result.output
    assert "value_is_right" in result.output
    assert "second_order" in result.output
    assert "gradient_is_right" not in result.output


@pytest.mark.parametrize("arguments", [("check", "numpy"), ("matrix",)])
def test_a_check_that_there_is_not_is_met_with_the_nearest_name(arguments):
    result = command(*arguments, "--only", "gradient_is_wright")
    assert result.exit_code == 1
    assert "no check 'gradient_is_wright'; did you mean 'gradient_is_right'?" in result.output


def test_a_scenario_that_there_is_not_is_met_with_the_nearest_name():
    with pytest.raises(OptionError, match="no scenario 'mpl'; did you mean 'mlp'"):
        run(OnlyEnergy(), scenarios=["mpl"])


def test_the_command_prints_where_a_backend_raised(monkeypatch):
    monkeypatch.setattr("gradbridge.testing.commands.find", lambda name, registry: Raising())
    result = command("check", "numpy", "--only", "gradient_is_right")
    assert result.exit_code == 1
    assert f'File "{__file__}", line {lines_of(Raising.energy, "no such kernel")}, in pull' in result.output
