"""The kit for hosts is tested itself: every check catches its fault, and nothing else."""

import subprocess
import sys

import pytest

from gradbridge.testing import LAWS, SCENARIOS, NotOfferedError, find
from gradbridge.testing.hosts import (
    HOST_CHECKS,
    BackendGuest,
    HostBench,
    HostConformanceSuite,
    find_host,
    reference,
    run_hosts,
)
from gradbridge.testing.hosts.faulty import HOST_FAULTS
from gradbridge.testing.report import CHECKS


class TestPaper(HostConformanceSuite):
    """The tape on paper keeps every law, with the closed forms as its guest."""

    host = "paper"


class TestPaperWithAutograd(HostConformanceSuite):
    """… and with a guest that has derivatives of every order."""

    host = "paper"
    guest = "autograd"


EVERY = [
    pytest.param(fault, id=f"{fault.check}-{fault.broken.__name__.lstrip('_')}")
    for faults in HOST_FAULTS.values()
    for fault in faults
]
guests = {}


def guest_of(fault):
    if fault.guest not in guests:
        registry = find_host("paper").registry
        own = fault.guest == "reference"
        guests[fault.guest] = reference(registry) if own else BackendGuest(find(fault.guest))
    return guests[fault.guest]


def run_on(under_test, fault):
    guest = guest_of(fault)
    HostBench(under_test, [guest]).check(fault.check, guest.name, fault.scenario)


def test_every_check_has_a_fault_and_every_fault_a_check():
    assert set(HOST_FAULTS) == set(HOST_CHECKS)


@pytest.mark.parametrize("fault", EVERY)
def test_a_check_catches_its_fault(fault):
    assert fault.scenario in HOST_CHECKS[fault.check].scenarios
    assert fault.story.endswith("."), "a fault says what is wrong"
    with pytest.raises(AssertionError) as caught:
        run_on(fault.under_test(), fault)
    assert str(caught.value), "a failure says what was expected and what came"


@pytest.mark.parametrize("fault", EVERY)
def test_the_right_host_passes_where_the_faulty_one_fails(fault):
    run_on(find_host("paper"), fault)


def test_every_check_states_its_law_and_runs_on_scenarios_that_exist():
    assert not set(HOST_CHECKS) & set(CHECKS), "--only means one of them"
    for check in HOST_CHECKS.values():
        assert check.statement.endswith("."), check.name
        assert check.law in LAWS
        assert set(check.scenarios) <= set(SCENARIOS), check.name


def test_a_fault_is_named_in_the_report_with_its_numbers():
    fault = HOST_FAULTS["host_second_order"][0]
    report = run_hosts(fault.under_test(), [guest_of(fault)], ["host_gradients", "host_second_order"])
    assert not report.passed
    text = str(report)
    assert "✗ host_second_order[autograd-mlp], law 7: The gradient of Σ u ∇f is the Hessian times u" in text
    assert "gradient of params of Σ u ∇f: expected " in text
    cell = report.cell("autograd")
    assert (cell.outcome, cell.order) == ("failed", 1)


def test_the_kit_loads_no_framework_and_no_autodiff_system():
    code = (
        "import sys, gradbridge.testing.hosts, gradbridge.testing.hosts.faulty; "
        "bad = {'torch', 'jax', 'tensorflow', 'autograd', 'pytest', 'gradbridge_numpy'} & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_refusal_of_a_second_order_is_no_pass():
    with pytest.raises(NotOfferedError, match="refused, as it should be"):
        guest = reference(find_host("paper").registry)
        HostBench(find_host("paper"), [guest]).check("host_third_order", "reference", "mlp")
