"""The catalogue of checks: each is a function of a `Subject` that raises when its law is broken."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

from gradbridge.errors import HigherOrderError, Unsupported
from gradbridge.testing import networks
from gradbridge.testing.backend import NotOfferedError
from gradbridge.testing.subject import Subject

CheckFunction = Callable[[Subject], None]

#: Every scenario whose model has neither noise nor state of its own.
PLAIN = ("mlp", "embedding", "energy", "outputs", "tied", "unused")

#: With axes of size one, with a vector, and with one row that all rows share.
SHAPED = ("column", "broadcast")

#: What `gradbridge.build` makes.
BUILT = tuple(scenario.name for scenario in networks.BUILT)


@dataclass(frozen=True)
class Check:
    """One law, or one known way to break it silently.

    Attributes:
        name: of the function.
        law: its number in the protocol, see `gradbridge.testing.LAWS`.
        scenarios: names of those that it runs on.
        mode: the mode that models are bridged with.
        function: raises when the law is broken; its docstring states the law.
    """

    name: str
    law: int
    scenarios: tuple[str, ...]
    mode: str
    function: CheckFunction

    @property
    def statement(self) -> str:
        """The law in words: the first line of the docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def __call__(self, subject: Subject) -> None:
        """Run the check.

        Raises:
            AssertionError: the law is broken.
            NotOfferedError: the check does not apply to this backend.
        """
        self.function(subject)


CHECKS: dict[str, Check] = {}


def check(
    law: int, scenarios: tuple[str, ...] = PLAIN, mode: str = "eval"
) -> Callable[[CheckFunction], CheckFunction]:
    """Enter a function in the catalogue."""

    def enter(function: CheckFunction) -> CheckFunction:
        name = function.__name__
        assert name not in CHECKS, f"two checks are called {name}"
        CHECKS[name] = Check(name, law, scenarios, mode, function)
        return function

    return enter


def _skipped_on(kind: type[Unsupported], words: str) -> Callable[[CheckFunction], CheckFunction]:
    def decorate(function: CheckFunction) -> CheckFunction:
        @functools.wraps(function)
        def checked(subject: Subject) -> None:
            try:
                function(subject)
            except kind as error:
                raise NotOfferedError(f"{words}: {error}") from error

        return checked

    return decorate


#: What is not supported is not offered, and the reason is the guest's.
optional = _skipped_on(Unsupported, "not offered, and another way is taken")

#: A refusal is honest, wherever it comes, so the check is skipped with its reason.
refusable = _skipped_on(HigherOrderError, "refused, as it should be")
