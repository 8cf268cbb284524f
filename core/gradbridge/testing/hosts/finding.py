"""What a backend brings for the kit for hosts, found by the backend's name."""

from __future__ import annotations

from collections.abc import Iterator

from gradbridge.errors import BackendUnavailableError
from gradbridge.installed import has_module
from gradbridge.registry import Registry, default_registry
from gradbridge.testing.factories import under_test_of
from gradbridge.testing.hosts.paper import PAPER
from gradbridge.testing.hosts.paper.under_test import PaperHostUnderTest
from gradbridge.testing.hosts.under_test import HostUnderTest

#: Name of the module that has the operations, beside the host half.
MODULE = "host_conformance"


def find_host(name: str, registry: Registry | None = None) -> HostUnderTest:
    """The operations that a host brings: the class `UnderTest` in the module `host_conformance` beside its host half.

    A host half in ``my_package.host`` has its operations in ``my_package.host_conformance``. ``"paper"`` is the
    kit's own.

    Raises:
        UnknownBackendError: there is no such backend.
        BackendUnavailableError: its framework is missing, it is not a host, or it brings no operations.
    """
    registry = registry if registry is not None else default_registry()
    if name == PAPER and PAPER not in registry.names():
        return PaperHostUnderTest(registry)
    declared = registry.backend(name)
    if declared.host is None:
        raise BackendUnavailableError(f"backend {name!r} is not a host")
    registry.host(name)  # its own error says how to install the framework
    modules = list(_modules(declared.host.partition(":")[0]))
    module = next(filter(has_module, modules), modules[0])
    under_test: HostUnderTest = under_test_of(
        module,
        registry,
        f"backend {name!r}",
        "operations for the kit that checks hosts",
        "write one as gradbridge.testing.hosts.HostUnderTest tells",
    )
    return under_test


def _modules(half: str) -> Iterator[str]:
    """Where the operations may be: beside the half, then in the packages around it."""
    package = half.rpartition(".")[0]
    if not package:
        yield MODULE
    while package:
        yield f"{package}.{MODULE}"
        package = package.rpartition(".")[0]
