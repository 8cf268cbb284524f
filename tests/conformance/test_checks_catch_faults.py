"""The kit tests backends; this tests the kit: every check catches its fault, and nothing else."""

import pytest

from gradbridge.testing import CHECKS, SCENARIOS, Bench, ConformanceSuite, NotOfferedError, run
from gradbridge.testing.faulty import FAULTS
from gradbridge.testing.reference import Reference


class TestReference(ConformanceSuite):
    """The closed forms themselves keep every law."""

    under_test = Reference


def test_every_check_has_a_fault_and_every_fault_a_check():
    assert set(FAULTS) == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_catches_its_fault(name):
    fault = FAULTS[name]
    assert fault.scenario in CHECKS[name].scenarios
    with fault.core(), pytest.raises(AssertionError) as caught:
        Bench(fault.backend()).check(name, fault.scenario)
    assert str(caught.value), "a failure says what was expected and what came"


@pytest.mark.parametrize("name", CHECKS)
def test_the_right_adapter_passes_where_the_faulty_one_fails(name):
    try:
        Bench(Reference()).check(name, FAULTS[name].scenario)
    except NotOfferedError:
        assert name == "third_order", "the reference offers everything but a third derivative"


def test_every_check_states_its_law_and_runs_on_scenarios_that_exist():
    for check in CHECKS.values():
        assert check.statement.endswith("."), check.name
        assert set(check.scenarios) <= set(SCENARIOS), check.name


def test_every_law_has_a_check():
    assert {check.law for check in CHECKS.values()} == set(range(1, 10))


def test_a_fault_is_named_in_the_report_with_its_numbers():
    report = run(FAULTS["params_in_flight"].backend(), checks=["params_in_flight"], scenarios=["mlp"])
    assert not report.passed
    (row,) = report.of("failed")
    assert row.message.startswith("gradient of params at θ, with f(2θ) in flight: expected ")
    assert "✗ params_in_flight[mlp], law 3: f(θ) + f(2θ)" in str(report)
