"""When the rows of a model that is computed in pieces are looked at: once is not enough.

What a call's rows do to each other may depend on its keyword arguments and on what has rows in it, and a
dependence may be hidden at the parameters and rows of one call: a gate that starts at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from gradbridge.call_spec import CallSpec
from gradbridge.execution.programs import LRUCache

#: Kinds of calls that are remembered.
_KINDS = 64


class Looks:
    """Counts the calls of each kind: the first is looked at, the second, the fourth, the eighth …"""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._calls: LRUCache[list[int]] = LRUCache(_KINDS)

    def take(self, kind: Hashable, look: Callable[[], bool]) -> None:
        """One more call of a kind, which is looked at if it is its turn.

        Args:
            kind: see `kind_of`.
            look: whether anything could be told; if not, the next call is looked at. Raises what is wrong.
        """
        calls = self._calls.get(kind, lambda: [0])
        if calls[0] & (calls[0] + 1) or look():
            calls[0] += 1

    def __reduce__(self) -> tuple[Any, ...]:
        return Looks, ()


def kind_of(inputs: Sequence[Any], has_rows: Sequence[bool], spec: CallSpec) -> Hashable:
    """What calls have in common whose rows do the same to each other, as far as arguments tell.

    Their names and places, what has rows, the shapes of the rest, and words and switches among them. Numbers
    that are not arrays may be others in each call, and are left to the counting.
    """
    leaves = (
        tuple(x.shape)[yes:] if hasattr(x, "shape") else x if isinstance(x, (bool, str)) else type(x)
        for x, yes in zip(inputs, has_rows)
    )
    return spec.structure, tuple(has_rows), tuple(leaves)
