"""The catalogue of checks of hosts: each a law, or one known way to break it silently."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gradbridge.errors import HostError, Unsupported
from gradbridge.testing.backend import NotOfferedError
from gradbridge.testing.hosts.cell import HostCell

HostCheckFunction = Callable[[HostCell], None]

#: Every scenario that the checks run on, as far as the guest has it.
PLAIN = ("mlp", "embedding", "energy", "outputs", "unused")

#: Those that have derivatives of every order where a guest has any.
SMOOTH = ("mlp", "energy")


@dataclass(frozen=True)
class HostCheck:
    """One law of hosts.

    Attributes:
        name: of the function.
        law: its number in the protocol, see `gradbridge.testing.LAWS`.
        scenarios: names of those that it runs on.
        ability: what it tells about a cell of the matrix, one of `gradbridge.testing.hosts.ABILITIES`; "" for
            what every host must do.
        on_paper: whether it is about the host alone, and runs with the reference as its guest only.
        function: raises when the law is broken; its docstring states the law.
    """

    name: str
    law: int
    scenarios: tuple[str, ...]
    ability: str
    on_paper: bool
    function: HostCheckFunction

    @property
    def statement(self) -> str:
        """The law in words: the first line of the docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def __call__(self, cell: HostCell) -> None:
        """Run the check.

        Raises:
            AssertionError: the law is broken.
            NotOfferedError: the check does not apply to this host, or to this guest.
        """
        reasons = cell.host.reasons
        reason = reasons.get(self.name, reasons.get(self.ability) if self.ability else None)
        if reason is not None:
            raise NotOfferedError(f"{cell.host.name}: {reason}")
        self.function(cell)


HOST_CHECKS: dict[str, HostCheck] = {}


def check(
    law: int, scenarios: tuple[str, ...] = PLAIN, ability: str = "", on_paper: bool = False
) -> Callable[[HostCheckFunction], HostCheckFunction]:
    """Enter a function in the catalogue. What tells of an ability may be refused, with the reason."""

    def enter(function: HostCheckFunction) -> HostCheckFunction:
        name = function.__name__
        assert name not in HOST_CHECKS, f"two checks are called {name}"
        checked = _refusable(function) if ability else function
        HOST_CHECKS[name] = HostCheck(name, law, scenarios, ability, on_paper, checked)
        return function

    return enter


def refusal_in(error: BaseException) -> str | None:
    """What an error says where it is an honest refusal of ours, also within another system's words; else None.

    A compiled program may hand on nothing of an error but its text.
    """
    for each in chain_of(error):
        if isinstance(each, (Unsupported, HostError)):
            return str(each)
    for each in chain_of(error):
        found = _NAMED.search(str(each))
        if found is not None:
            return found.group(0)
    return None


#: Other systems have an "Unsupported" of their own.
_NAMED = re.compile(
    r"(gradbridge\.errors\.Unsupported|\b(HigherOrderError|HostError|ReentryError))\b:? ?[^\n]*"
)


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    seen, each = set[int](), [error]
    while each:
        one = each.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            each += [e for e in (one.__context__, one.__cause__) if e is not None]


def _refusable(function: HostCheckFunction) -> HostCheckFunction:
    @functools.wraps(function)
    def checked(cell: HostCell) -> None:
        try:
            function(cell)
        except (AssertionError, NotOfferedError):
            raise
        except Exception as error:
            reason = refusal_in(error)
            if reason is None:
                raise
            raise NotOfferedError(f"refused, as it should be: {reason}") from error

    return checked
