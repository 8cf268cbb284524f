"""The cells of host × guest, for tests: each check of hosts on one scenario, and what may be skipped."""

import functools
import warnings

import pytest

from gradbridge.errors import GradbridgeWarning
from gradbridge.testing import NotOfferedError, find
from gradbridge.testing.hosts import HOST_CHECKS, BackendGuest, HostBench, find_host

GUESTS = ("autograd", "jax", "numpy", "tensorflow", "torch")

#: Checks with a guest. All of them run with the guest that is quickest to differentiate; what every cell must show
#: runs with each: the guest does not matter to a host, but for those of its own system.
CHECKS = [check for check in HOST_CHECKS.values() if not check.on_paper]
QUICKEST = "autograd"
EACH_CELL = (
    *("host_value", "host_gradients", "host_in_flight", "host_one_forward", "host_first_call_compiled"),
    *("host_second_order", "host_hessian", "host_third_order", "host_tangents", "host_complex_numbers"),
    *("host_vmap", "host_vmap_of_gradients", "host_compiled", "host_compiled_second_order"),
)

#: The NumPy guest's written rules go as far as these need on energy alone.
_BY_WRITTEN_RULES = ("third order", "forward over reverse", "reverse over forward")


def cases():
    """(guest, check) of the tests of one host."""
    for guest in GUESTS:
        for check in CHECKS:
            if guest == QUICKEST or check.name in EACH_CELL:
                yield pytest.param(guest, check, id=f"{guest}-{check.name}")


def scenario_of(check, guest):
    if guest == "numpy" and check.ability in _BY_WRITTEN_RULES:
        return "energy"
    return "mlp" if "mlp" in check.scenarios else check.scenarios[0]


@functools.cache
def guest_of(name):
    pytest.importorskip(name)
    if name == "jax":
        pytest.importorskip("flax")
    return BackendGuest(find(name))


@functools.cache
def host_of(name):
    pytest.importorskip(name)
    return find_host(name)


@functools.cache
def bench_of(host, guest):
    return HostBench(host_of(host), [guest_of(guest)])


def expect_passes(host, guest, check, left_out):
    """Run a check; it may be skipped where the host's author left its ability out, and nowhere else.

    Args:
        host, guest: names.
        check: which.
        left_out: abilities, and names of checks, that the host has not.
    """
    bench = bench_of(host, guest)
    is_inlined = host == guest and check.law == 8  # a part of the host's program makes no steps to count
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradbridgeWarning)  # what scenarios do on purpose
            bench.check(check.name, guest, scenario_of(check, guest))
    except NotOfferedError as reason:
        if check.ability in left_out or check.name in left_out or is_inlined:
            pytest.skip(str(reason))
        raise AssertionError(f"skipped, and should not be: {reason}") from reason
