'''The conformance kit for hosts: does an autodiff system differentiate through any guest? For who adds one.

You bring a class with the operations of your system, a dozen one-liners in the words of its users; the kit
writes programs around bridges with them, and compares values and derivatives with the closed forms of its
scenarios: 1e-12, 1e-10 and 1e-8 for first, second and third order in float64. Put the class into a module
``host_conformance`` beside your host half, under the name ``UnderTest``::

    # my_package/host_conformance.py
    import mysystem as ms
    from gradbridge.testing.hosts import HostUnderTest

    class UnderTest(HostUnderTest):
        """Programs of mysystem."""

        host = "mine"                        # its name in the registry
        reasons = {"vmap": "mysystem maps nothing"}

        def array(self, array): return ms.constant(array.copy())
        def numpy(self, value): return value.read() if isinstance(value, ms.Array) else value
        def sin(self, x): return ms.sin(x)
        def sum(self, x): return ms.sum(x)
        def gradient(self, function, argnums=(0,)): return ms.grad(function, argnums)
        def vjp(self, function, arrays): return ms.vjp(function, arrays)

`HostUnderTest` says what each operation is. What you leave out is reported as skipped, with your reason from
`reasons`; it never counts as passed.

Guests are the scenarios of backends (`gradbridge.testing.BackendUnderTest`), and with no framework at all the
reference, whose adapters are closed forms on paper. The guest does not matter to a host: one that is right
with the reference is right with all, but for guests of its own system, which it inlines. Three ways to run it::

    gradbridge check mine                    # after the checks of its guest half, if it has one
    gradbridge check mine --guest torch

    class TestMine(HostConformanceSuite):    # pytest: one test per law and scenario
        host = "mine"
        guest = "reference"

    print(run_hosts(find_host("mine")))

The kit is tested itself: `gradbridge.testing.hosts.paper` is a small tape over NumPy that keeps all the laws,
and `gradbridge.testing.hosts.faulty` has, for every check, a copy of it that breaks one and is caught.
'''

from typing import TYPE_CHECKING, Any

from gradbridge.testing.hosts.cell import HostCell
from gradbridge.testing.hosts.checks import HOST_CHECKS, HostCheck
from gradbridge.testing.hosts.finding import find_host
from gradbridge.testing.hosts.guests import BackendGuest, Built, Guest
from gradbridge.testing.hosts.report import ABILITIES, Cell, HostBench, HostReport, reference, run_hosts
from gradbridge.testing.hosts.under_test import HostUnderTest

if TYPE_CHECKING:
    from gradbridge.testing.hosts.suite import HostConformanceSuite

__all__ = [
    "ABILITIES",
    "HOST_CHECKS",
    "BackendGuest",
    "Built",
    "Cell",
    "Guest",
    "HostBench",
    "HostCell",
    "HostCheck",
    "HostConformanceSuite",
    "HostReport",
    "HostUnderTest",
    "find_host",
    "reference",
    "run_hosts",
]


def __getattr__(name: str) -> Any:
    # The one part that needs pytest, which those who run `gradbridge check` may not have.
    if name == "HostConformanceSuite":
        from gradbridge.testing.hosts.suite import HostConformanceSuite

        return HostConformanceSuite
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
