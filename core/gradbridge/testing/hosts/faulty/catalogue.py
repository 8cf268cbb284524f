"""The catalogue of faults of hosts: each maps a check to a host that breaks its law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from gradbridge.testing.hosts.paper import Declaration
from gradbridge.testing.hosts.paper.host import Lifted, PaperHost
from gradbridge.testing.hosts.paper.under_test import PaperHostUnderTest

#: A faulty host half, a faulty operation of one, or a faulty system.
Broken = TypeVar("Broken", bound=type[Any])


@dataclass(frozen=True)
class HostFault:
    """A broken law.

    Attributes:
        check: name of the check that must catch it.
        story: what is wrong.
        scenario: where it shows.
        guest: with which guest: one that has derivatives of every order, or the reference.
        broken: the class with the fault.
        under_test: the operations of the faulty host.
    """

    check: str
    story: str
    scenario: str
    guest: str
    broken: type
    under_test: type[PaperHostUnderTest]


#: The faults that each check must catch, the plainest first.
HOST_FAULTS: dict[str, list[HostFault]] = {}


def breaks(check: str, scenario: str = "mlp", guest: str = "autograd") -> Callable[[Broken], Broken]:
    """Enter a class in the catalogue; its docstring says what is wrong.

    Args:
        check: that must catch it.
        scenario: where it shows.
        guest: with which guest; autograd is there wherever gradbridge is.
    """

    def enter(broken: Broken) -> Broken:
        fault = HostFault(check, broken.__doc__ or "", scenario, guest, broken, _under_test(broken))
        HOST_FAULTS.setdefault(check, []).append(fault)
        return broken

    return enter


def _under_test(broken: type) -> type[PaperHostUnderTest]:
    if issubclass(broken, PaperHostUnderTest):
        return broken
    half = broken
    if issubclass(broken, Lifted):
        half = type(f"{broken.__name__}Host", (PaperHost,), {"operation": broken})
    name = f"_half_of_{broken.__name__.lstrip('_')}"
    globals()[name] = half  # a registry finds it by its name

    class Faulty(PaperHostUnderTest):
        declaration: ClassVar[Any] = Declaration(f"{__name__}:{name}")

    return Faulty
