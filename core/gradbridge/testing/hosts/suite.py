"""The kit for hosts as a pytest class: subclass `HostConformanceSuite`, and every law is a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest

from gradbridge.testing.backend import BackendUnderTest, NotOfferedError
from gradbridge.testing.hosts.checks import HOST_CHECKS, HostCheck
from gradbridge.testing.hosts.finding import find_host
from gradbridge.testing.hosts.guests import BackendGuest, Guest
from gradbridge.testing.hosts.report import HostBench, is_reference, reference
from gradbridge.testing.hosts.under_test import HostUnderTest
from gradbridge.testing.report import find

#: {name: guest}, built once for all hosts of a process.
_GUESTS: dict[str, Guest] = {}


class HostConformanceSuite:
    """All checks on one host with one guest, as tests ``test_<check>[<scenario>]``.

    ::

        class TestMine(HostConformanceSuite):
            host_under_test = UnderTest     # a HostUnderTest, or
            host = "mine"                   # the name of a backend that brings its own
            guest = "torch"                 # of a backend; "reference" needs no framework

    Override a test to mark it.
    """

    #: The author's operations: a class, or an instance.
    host_under_test: ClassVar[HostUnderTest | type[HostUnderTest] | None] = None

    #: Name of a registered backend, looked up where `host_under_test` is not given.
    host: ClassVar[str] = ""

    #: The guest: a backend's name, its factories, or a guest that was made.
    guest: ClassVar[str | BackendUnderTest | Guest] = "reference"

    _bench: ClassVar[HostBench]

    @classmethod
    def bench(cls) -> HostBench:
        """The host's cells, shared by the tests of the class."""
        if "_bench" not in cls.__dict__:
            host = cls.host_under_test if cls.host_under_test is not None else find_host(cls.host)
            made = host() if isinstance(host, type) else host
            cls._bench = HostBench(made, [_guest(cls.guest, made)])
        return cls._bench


def _guest(guest: str | BackendUnderTest | Guest, host: HostUnderTest) -> Guest:
    if isinstance(guest, Guest):
        return guest
    if isinstance(guest, BackendUnderTest):
        return BackendGuest(guest)
    if guest not in _GUESTS:
        own = guest == "reference"
        _GUESTS[guest] = reference(host.registry) if own else BackendGuest(find(guest, host.registry))
    return _GUESTS[guest]


def _test(check: HostCheck) -> Callable[..., None]:
    @pytest.mark.parametrize("scenario", check.scenarios)
    def test(self: HostConformanceSuite, scenario: str) -> None:
        bench = self.bench()
        (guest,) = bench.guests.values()
        if check.on_paper and not is_reference(guest):
            pytest.skip("about the host alone: it runs with the reference as its guest")
        try:
            bench.check(check.name, guest.name, scenario)
        except NotOfferedError as reason:
            pytest.skip(str(reason))

    test.__name__ = f"test_{check.name}"
    test.__qualname__ = f"HostConformanceSuite.{test.__name__}"
    test.__doc__ = f"Law {check.law}. {check.statement}"
    return test


for _check in HOST_CHECKS.values():
    setattr(HostConformanceSuite, f"test_{_check.name}", _test(_check))
