"""Computations of leaves, and programs: computations as they are run many times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optree

from gradbridge import trees
from gradbridge.errors import Unsupported

#: leaves ↦ (floating outputs, other outputs, their form, state after it)
Computation = Callable[[list[Any]], tuple[list[Any], list[Any], "Form", Sequence[Any]]]

#: Natives, in and out.
Function = Callable[[list[Any]], list[Any]]

#: `Framework.vjp`.
VJP = Callable[[Function, list[Any]], tuple[list[Any], Callable[[list[Any]], Sequence[Any]]]]


@dataclass(frozen=True)
class Form:
    """How a computation's outputs were together: static and hashable, so it may leave a trace.

    Attributes:
        structure: of the output tree; None for one array alone.
        floating: for each leaf, whether it is floating or complex and has a derivative.
        shapes: of the leaves, where somebody asks for them.
    """

    structure: optree.PyTreeSpec | None
    floating: tuple[bool, ...]
    shapes: tuple[tuple[int, ...], ...] = ()

    def merge(self, floats: Sequence[Any], others: Sequence[Any]) -> list[Any]:
        """Leaves in the order of the model's output."""
        if not others:
            return list(floats)
        left, right = iter(floats), iter(others)
        return [next(left) if floating else next(right) for floating in self.floating]

    def of_arrays(self) -> Form:
        """With None in place of what was returned next to arrays."""
        if self.structure is None:
            return self
        return replace(self, structure=trees.without_beside(self.structure))

    def assemble(self, leaves: Sequence[Any]) -> Any:
        """Leaves → the tree that the model returned."""
        return leaves[0] if self.structure is None else trees.unflatten(self.structure, leaves)


#: By far the most models return one floating array.
ONE_ARRAY = Form(None, (True,))


class RunAgain(Exception):
    """A run must be made once more: what was kept for its pull is gone, or its leaves are to be others.

    Args:
        outputs: the floating outputs that the new run must give again; none are compared where it is empty.
        reason: what makes that necessary, for the error where they differ.
    """

    def __init__(self, outputs: Sequence[Any] = (), reason: str = "") -> None:
        super().__init__(reason)
        self.outputs, self.reason = outputs, reason


class Program(ABC):
    """A computation as it is run many times, pulled back to some of its leaves.

    `Framework.trace` makes them. A complete one, compiled by JAX, is on the page *Writing a backend*, under *Programs*.
    """

    #: Whether `pull_recorded` may answer: a derivative of the derivative then makes no forward of its own.
    records: bool = False

    #: From how many weights on a host is to ask `pull_to_boundary` and `pull_merged`, which walk through the
    #: forward once where `pull` walks twice; None where they do not answer. 0 where the two may differ: a
    #: framework that differentiates the forward of a custom rule, not its backward, the second time.
    merges_from: int | None = None

    #: Of the model's surroundings, that it was made in.
    state: int = 0

    @abstractmethod
    def run(self, leaves: list[Any]) -> tuple[list[Any], list[Any], Form, Sequence[Any], Any]:
        """(floating outputs, other outputs, their form, state after it, what `pull` needs)."""

    @abstractmethod
    def pull(
        self, kept: Any, cotangents: Sequence[Any], wanted: Sequence[int], many: bool = False
    ) -> Sequence[Any]:
        """Pull cotangents of the floating outputs back.

        Args:
            kept: of the run. It may be pulled any number of times, from any thread.
            cotangents: natives; with `many` each with a leading axis, which the gradients get, too.
            wanted: which of the leaves that the program is pulled back to, by their place among these.
            many: whether there are many.

        Returns:
            A native per wanted leaf; None where there is no influence.

        Raises:
            Unsupported: many at once are not to be had.
            RunAgain: the forward must be made again first.
        """

    def strangers(self, kept: Any) -> Sequence[Any]:
        """Native arrays with a gradient that a run was computed with, and that are none of its leaves.

        For frameworks whose record can be walked; called at most a few times for a bridge.

        Args:
            kept: of the run, which was pulled back to all weights or is about to be.
        """
        return ()

    def unreached(self, kept: Any) -> Sequence[int]:
        """Which of its places the record of a run leads to from no output: see `Inspectable.unreached`."""
        return ()

    def operations(self, kept: Any) -> Hashable:
        """Which kinds of operations a run was recorded to consist of: see `Inspectable.operations`."""
        return None

    def pull_recorded(
        self, kept: Any, cotangents: Sequence[Any], wanted: Sequence[int]
    ) -> tuple[Sequence[Any], Any]:
        """`pull`, such that its result can be pulled back in turn: from the recorded run, without another.

        Conjugations are within the computation: cotangents come, and gradients leave, by the protocol's
        convention.

        Returns:
            (gradients, kept): natives, None where there is no influence; and what `pull` takes to pull
            their cotangents back to the leaves of the program, then to `cotangents`.

        Raises:
            Unsupported: the derivative is computed anew, then.
        """
        raise Unsupported("its program keeps too little for a derivative of the gradient")

    def pull_to_boundary(
        self, kept: Any, recorded: Any, cotangents: Sequence[Any]
    ) -> tuple[Sequence[Any], Any]:
        """Pull a recorded gradient back to its own cotangents, and no further into the run that it came from.

        The derivative of a gradient walks through the graph of the forward twice: once for what the
        gradient read of it, once for the cotangents' own way. What is left at the boundary here,
        `pull_merged` takes along on the second of these walks, so that there is one.

        Args:
            kept: of the run.
            recorded: what `pull_recorded` gave for it.
            cotangents: of the gradients that it returned.

        Returns:
            (gradients of the cotangents that `pull_recorded` was given, what is left: opaque).

        Raises:
            Unsupported: `pull` of `recorded` does both walks.
        """
        raise Unsupported("its program walks through the forward once for each")

    def pull_merged(
        self, kept: Any, cotangents: Sequence[Any], wanted: Sequence[int], left: Sequence[Any]
    ) -> Sequence[Any]:
        """`pull`, plus what `pull_to_boundary` left, in one walk.

        Args:
            kept, cotangents, wanted: as for `pull`.
            left: what one or several of them left.
        """
        raise Unsupported("its program walks through the forward once for each")


class TapeProgram(Program):
    """A computation that is recorded anew in every run, by the framework's `vjp`: what a `Framework` has by default.

    Args:
        vjp: of the framework; records.
        fn: the computation.
        places: of the leaves that it is pulled back to.
    """

    def __init__(self, vjp: VJP, fn: Computation, places: tuple[int, ...]) -> None:
        self._vjp, self._fn, self._places = vjp, fn, places

    def run(self, leaves: list[Any]) -> tuple[list[Any], list[Any], Form, Sequence[Any], Any]:
        if not self._places:
            return *self._fn(leaves), None
        rest: list[Any] = []

        def of(values: list[Any]) -> list[Any]:
            floats, *rest[:] = self._fn(filled(leaves, self._places, values))
            return floats

        floats, pull = self._vjp(of, [leaves[i] for i in self._places])
        others, form, after = rest
        return floats, others, form, after, pull

    def pull(
        self, kept: Any, cotangents: Sequence[Any], wanted: Sequence[int], many: bool = False
    ) -> Sequence[Any]:
        if many:
            raise Unsupported("the framework pulls one cotangent at a time")
        gradients = kept(list(cotangents))
        return [gradients[i] for i in wanted]


def filled(values: Sequence[Any], places: Sequence[int], new: Sequence[Any]) -> list[Any]:
    """Some values with others in their places."""
    values = list(values)
    for place, value in zip(places, new):
        values[place] = value
    return values
