"""The kit tests backends; this tests the kit: every check catches its fault, and nothing else."""

import pytest

from gradbridge.testing import CHECKS, LAWS, SCENARIOS, Bench, ConformanceSuite, NotOfferedError, run
from gradbridge.testing.faulty import FAULTS
from gradbridge.testing.reference import Reference


class TestReference(ConformanceSuite):
    """The closed forms themselves keep every law."""

    under_test = Reference


def test_every_check_has_a_fault_and_every_fault_a_check():
    assert set(FAULTS) == set(CHECKS)


EVERY = [
    pytest.param(fault, id=f"{fault.check}-{fault.adapter.__name__}") for f in FAULTS.values() for fault in f
]


@pytest.mark.parametrize("fault", EVERY)
def test_a_check_catches_its_fault(fault):
    assert fault.scenario in CHECKS[fault.check].scenarios
    assert fault.story.endswith("."), "a fault says what is wrong"
    with fault.core(), pytest.raises(AssertionError) as caught:
        Bench(fault.backend()).check(fault.check, fault.scenario)
    assert str(caught.value), "a failure says what was expected and what came"


# What the reference does not offer: its derivatives end with the second, and there is nothing to isolate.
NOT_OFFERED = {"third_order", "third_order_by_params", "isolated_calls"}


@pytest.mark.parametrize("fault", EVERY)
def test_the_right_adapter_passes_where_the_faulty_one_fails(fault):
    try:
        Bench(Reference()).check(fault.check, fault.scenario)
    except NotOfferedError:
        assert fault.check in NOT_OFFERED


def test_every_check_states_its_law_and_runs_on_scenarios_that_exist():
    for check in CHECKS.values():
        assert check.statement.endswith("."), check.name
        assert set(check.scenarios) <= set(SCENARIOS), check.name


def test_every_law_has_a_check():
    assert {check.law for check in CHECKS.values()} == set(LAWS)


def test_a_fault_is_named_in_the_report_with_its_numbers():
    report = run(FAULTS["params_in_flight"][0].backend(), checks=["params_in_flight"], scenarios=["mlp"])
    assert not report.passed
    (row,) = report.of("failed")
    assert row.message.startswith("gradient of params at θ, with f(2θ) in flight: expected ")
    assert "✗ params_in_flight[mlp], law 3: f(θ) + f(2θ)" in str(report)
