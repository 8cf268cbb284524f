"""What one bridge has found out about its guest, and what it still has to look at (law 10)."""

from __future__ import annotations

from collections.abc import Hashable


class Audit:
    """The findings of one bridge. What was found once is not looked at again.

    Args:
        is_on: whether anything is looked at.
        precision: that the model was seen to compute in, where it is coarser than its outputs' dtype; else 0.

    Attributes:
        notes: {what: what was found}, for `Bridge.capabilities`.
    """

    def __init__(self, is_on: bool = True, precision: float = 0.0) -> None:
        self.is_on, self.precision = is_on, precision
        self.notes: dict[str, str] = {}
        self._called: set[tuple[str, bool]] = set()
        self._right: dict[tuple[int, tuple[Hashable, ...]], bool] = {}

    def awaits_call(self, dtype: str, differentiated: bool = True) -> bool:
        """Whether no call of a host in this dtype was looked at yet.

        Args:
            dtype: name of the host's.
            differentiated: whether the call can be pulled back; one that cannot shows less.
        """
        return (
            self.is_on and (dtype, True) not in self._called and (dtype, differentiated) not in self._called
        )

    def called(self, dtype: str, differentiated: bool = True) -> None:
        """The first call of a host in this dtype was looked at."""
        self._called.add((dtype, differentiated))

    def awaits(self, order: int, step: tuple[Hashable, ...]) -> bool:
        """Whether a step was not compared with an independent one yet.

        Args:
            order: of the model that makes it: 0 for the guest's own, 1 for its gradient, and so on.
            step: which, its kind first, and by what.
        """
        return self.is_on and (order, step) not in self._right

    def found(self, order: int, step: tuple[Hashable, ...], right: bool) -> None:
        """Keep what a comparison said."""
        self._right[order, step] = right

    def is_known_wrong(self, order: int, step: tuple[Hashable, ...]) -> bool:
        """Whether a comparison said so of this very step."""
        return self._right.get((order, step)) is False

    def is_wrong(self, order: int, kind: str) -> bool:
        """Whether a step of this kind was found wrong, for a derivative of this order or for what that is made of.

        Args:
            order: as for `awaits`.
            kind: the first word of the steps.
        """
        return any(
            not right and at <= order and step[0] == kind for (at, step), right in list(self._right.items())
        )
