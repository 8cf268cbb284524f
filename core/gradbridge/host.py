"""What a host half is: the lifting of any adapter into one autodiff system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from gradbridge.execution.evaluation import Call
from gradbridge.layout import Array


class Reading(NamedTuple):
    """What a host knows of the arguments of one call.

    Attributes:
        values: the arguments: concrete, or an `ArraySpec` for what is not known before the program runs.
        wrt: which of them it is differentiating, or may be.
        tangents: where it is pushing tangents forward and nothing else, one for each of `wrt`; else None.
    """

    values: list[Any]
    wrt: tuple[int, ...]
    tangents: list[Any] | None = None


class Host(ABC):
    """An autodiff system that calls us.

    Written once for each system, generically: it knows calls and nothing of any guest. It is asked what
    the arguments of a call are, and lifts the call then. A host that carries nothing but arrays of its own,
    and may trace a program before it runs, derives from `gradbridge.lifting.LiftingHost`.
    """

    #: Name of the backend that this half belongs to.
    name: ClassVar[str]

    @abstractmethod
    def follows(self, value: Any) -> bool:
        """Whether one of its arrays is traced, or has a gradient asked for: what decides who the host is."""

    @abstractmethod
    def constant(self, value: Any) -> Any:
        """The same value, not differentiated any more."""

    @abstractmethod
    def array(self, array: Array, is_own: bool = True) -> Any:
        """An array of NumPy as this system's.

        Args:
            array: any.
            is_own: whether nobody else will write to it, so that the memory may be shared for good; otherwise it
                is the caller's, who may.
        """

    @abstractmethod
    def numpy(self, value: Any) -> Any:
        """One of its arrays as NumPy's, off its graph, which may share its memory; anything else as it is.

        Raises:
            NotDifferentiableError: it has no numbers yet.
        """

    @abstractmethod
    def read(self, arguments: list[Any]) -> Reading:
        """What the arguments of a call are.

        Args:
            arguments: of a call; a host may put arrays of its own in the place of NumPy's.
        """

    @abstractmethod
    def apply(self, call: Call, arguments: Sequence[Any], reading: Reading) -> Any:
        """Make a call, differentiably.

        Args:
            call: to make.
            arguments: of it, as the host has them.
            reading: what it said of them; values are in the form that guests take.

        Returns:
            The outputs assembled as the model returned them, arrays of the host.
        """

    def is_container(self, value: Any) -> bool:
        """Whether a value is a traced container: a list that is differentiated as a whole."""
        return False

    def open(self, tree: Any) -> Any:
        """Make traced containers within a tree containers of traced leaves."""
        return tree


class Hosts(Protocol):
    """Where host halves are found: the registry, to what is below it."""

    def host_of(self, kind: type) -> str | None:
        """The backend whose arrays a class is one of."""

    def host(self, name: str) -> Host:
        """The host half of a backend."""

    def load_compiling_hosts(self) -> None:
        """Load those whose framework has a compiler, and is there: it may be the first to meet a call."""

    def wrapper(self, name: str) -> Callable[..., Any]:
        """What makes a layer of a bridge, by the name of the bridge's method."""
