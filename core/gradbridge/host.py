"""What a host half is: the lifting of any adapter into one autodiff system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from gradbridge.call import Call


class Host(ABC):
    """An autodiff system that calls us.

    Written once for each system, generically: it knows `Call` and nothing of any guest.
    """

    #: Name of the backend that this half belongs to.
    name: ClassVar[str]

    @abstractmethod
    def is_traced(self, value: Any) -> bool:
        """Whether the host is differentiating with respect to this value."""

    @abstractmethod
    def open(self, tree: Any) -> Any:
        """Make a traced container (a list that is differentiated as a whole) a container of traced leaves."""

    @abstractmethod
    def constant(self, value: Any) -> Any:
        """What a leaf holds, traced or not, as a value that the host does not follow."""

    @abstractmethod
    def join(self, pieces: Sequence[Any]) -> Any:
        """Arrays, some of them traced, raveled and laid one after the other: one traced vector."""

    @abstractmethod
    def apply(self, call: Call, params: Any, inputs: Sequence[Any]) -> Any:
        """Evaluate the call so that the host can differentiate through it.

        Args:
            call: not run yet; its `wrt` is set here.
            params: (P,) concrete or traced.
            inputs: leaves, concrete or traced.

        Returns:
            The outputs assembled as the model returned them, arrays of the host.
        """
