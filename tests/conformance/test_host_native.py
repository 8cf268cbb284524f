"""The kit for hosts lets native programs of each host pass: what it asks of a bridge, the host itself does."""

import importlib

import pytest
from native_programs import NativeGuest

from gradbridge.testing import NotOfferedError
from gradbridge.testing.hosts import HOST_CHECKS, HostBench

HOSTS = ("autograd", "jax", "tensorflow", "torch")
benches = {}


def bench_of(host):
    pytest.importorskip(host)
    if host not in benches:
        under_test = importlib.import_module(f"gradbridge_{host}.host_conformance").UnderTest()
        benches[host] = HostBench(under_test, [NativeGuest(host)])
    return benches[host]


def scenario_of(check):
    """The smallest that tells."""
    return "energy" if "energy" in check.scenarios else check.scenarios[0]


@pytest.mark.parametrize("check", [c for c in HOST_CHECKS.values() if not c.on_paper], ids=lambda c: c.name)
@pytest.mark.parametrize("host", HOSTS)
def test_a_native_program_passes(host, check):
    try:
        if (host, check.name) == ("autograd", "host_changed_in_place"):
            # The one thing that bridges are better at: autograd reads its caller's arrays when it pulls back.
            with pytest.raises(AssertionError, match="after arguments were changed in place: expected"):
                bench_of(host).check(check.name, "native", scenario_of(check))
        else:
            bench_of(host).check(check.name, "native", scenario_of(check))
    except NotOfferedError as reason:
        pytest.skip(str(reason))


SKIPPED = {
    "autograd": {"vmap", "compiled", "compiled second order", "compiled forward mode"},
    "jax": set(),
    "tensorflow": set(),
    "torch": set(),
}


@pytest.mark.parametrize("host", HOSTS)
def test_each_host_has_all_that_it_is_known_for(host):
    """What its author left out, with a reason: nothing else may be skipped without anybody seeing it."""
    under_test = bench_of(host).host
    missing = {
        check.ability
        for check in HOST_CHECKS.values()
        if check.ability and (check.name in under_test.reasons or _operation(check) in under_test.reasons)
    }
    assert missing == SKIPPED[host]


def _operation(check):
    words = {"forward mode": "jvp", "forward over reverse": "jvp", "reverse over forward": "jvp"}
    ability = check.ability
    if ability.startswith("compiled"):
        return "compiled"
    return words.get(ability, ability.lower())
