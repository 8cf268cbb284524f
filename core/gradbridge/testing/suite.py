"""The kit as a pytest class: subclass `ConformanceSuite`, and every law is a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest

from gradbridge.testing.backend import BackendUnderTest, NotOfferedError
from gradbridge.testing.checks import CHECKS
from gradbridge.testing.checks.catalogue import Check
from gradbridge.testing.report import Bench, find


class ConformanceSuite:
    """All checks on one backend, as tests ``test_<check>[<scenario>]``.

    ::

        class TestMine(ConformanceSuite):
            under_test = UnderTest          # a BackendUnderTest, or
            backend = "mine"                # the name of a backend that brings its own

    Override a test to mark it, or set ``backend`` alone to run what ``gradbridge check`` runs.
    """

    #: The author's factories: a class, or an instance.
    under_test: ClassVar[BackendUnderTest | type[BackendUnderTest] | None] = None

    #: Name of a registered backend, looked up where `under_test` is not given.
    backend: ClassVar[str] = ""

    @classmethod
    def bench(cls) -> Bench:
        """The backend's subjects, shared by the tests of the class."""
        if "_bench" not in cls.__dict__:
            under_test = cls.under_test if cls.under_test is not None else find(cls.backend)
            cls._bench = Bench(under_test() if isinstance(under_test, type) else under_test)
        return cls._bench

    _bench: ClassVar[Bench]


def _test(check: Check) -> Callable[..., None]:
    @pytest.mark.parametrize("scenario", check.scenarios)
    def test(self: ConformanceSuite, scenario: str) -> None:
        try:
            self.bench().check(check.name, scenario)
        except NotOfferedError as reason:
            pytest.skip(str(reason))

    test.__name__ = f"test_{check.name}"
    test.__qualname__ = f"ConformanceSuite.{test.__name__}"
    test.__doc__ = f"Law {check.law}. {check.statement}"
    return test


for _check in CHECKS.values():
    setattr(ConformanceSuite, f"test_{_check.name}", _test(_check))
