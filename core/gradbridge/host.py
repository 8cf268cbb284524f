"""What a host half is: the lifting of any adapter into one autodiff system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from gradbridge.execution.evaluation import Evaluation


class Reading(NamedTuple):
    """What a host knows of the arguments of one call.

    Attributes:
        values: the arguments, concrete.
        wrt: which of them it is differentiating.
        tangents: where it is pushing tangents forward and nothing else, one for each of `wrt`; else None.
    """

    values: list[Any]
    wrt: tuple[int, ...]
    tangents: list[Any] | None = None


class Host(ABC):
    """An autodiff system that calls us.

    Written once for each system, generically: it knows evaluations and nothing of any guest. It is
    asked once what the arguments of a call are, before the evaluation is made, and lifts it then.
    """

    #: Name of the backend that this half belongs to.
    name: ClassVar[str]

    @abstractmethod
    def read(self, arguments: Sequence[Any]) -> Reading:
        """The values of a call's arguments, traced or not, and which of them are traced."""

    @abstractmethod
    def lift(self, evaluation: Evaluation, arguments: Sequence[Any]) -> Any:
        """Make an evaluation a node of the host's graph, so that it can be differentiated.

        Args:
            evaluation: with at least one argument that is differentiated.
            arguments: that it was made of, traced or not.

        Returns:
            The outputs assembled as the model returned them, arrays of the host.
        """

    @abstractmethod
    def is_container(self, value: Any) -> bool:
        """Whether a value is a traced container: a list that is differentiated as a whole."""

    @abstractmethod
    def open(self, tree: Any) -> Any:
        """Make traced containers within a tree containers of traced leaves."""
