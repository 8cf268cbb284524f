"""The record of one run of a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradbridge.framework import Framework, Program


@dataclass(eq=False, slots=True)
class Residuals:
    """The record of one run.

    Attributes:
        program: that was run.
        kept: what it needs for a pull.
        wrt: the arguments that it can be pulled back to.
        places: of these among the leaves.
        floating: for each output, whether it has a derivative.
        dtypes: of the floating outputs, the framework's.
        is_complex: whether complex numbers may be among outputs and leaves, and conjugates matter.
        leaves: natives that it was run at.
        inputs: of the call, as its host gave them; only their shapes are read.
        noise: of the call.
        weights: how many of the arguments are weights, before the inputs.
    """

    program: Program
    kept: Any
    wrt: tuple[int, ...]
    places: tuple[int, ...]
    floating: tuple[bool, ...]
    dtypes: list[Any]
    is_complex: bool
    leaves: list[Any]
    inputs: Sequence[Any]
    noise: int
    weights: int

    @property
    def merges_from(self) -> int | None:
        """From how many weights on the program is to walk once where a derivative of its gradient would twice."""
        return self.program.merges_from

    def pull(
        self,
        framework: Framework,
        cotangents: Sequence[Any],
        wrt: tuple[int, ...],
        many: bool = False,
        left: Sequence[Any] = (),
    ) -> list[Any]:
        """One cotangent per output → one gradient per argument, zeros where there is no influence.

        Args:
            framework: of the program.
            cotangents: NumPy's or DLPack arrays; with `many` each with a leading axis.
            wrt: arguments, some of those that it can be pulled back to.
            many: whether there are many.
            left: of recorded pullbacks, at the boundary of this run.
        """
        dtypes = self.dtypes
        if len(dtypes) != len(cotangents):
            cotangents = [c for c, yes in zip(cotangents, self.floating) if yes]
        pulled = (
            [framework.lend(cotangents[0], dtypes[0])]
            if len(dtypes) == 1
            else list(map(framework.lend, cotangents, dtypes))
        )
        if self.is_complex:
            pulled = list(map(framework.conj, pulled))
        wanted = range(len(wrt)) if wrt == self.wrt else tuple(map(self.wrt.index, wrt))
        if left:
            gradients = self.program.pull_merged(self.kept, pulled, wanted, left)
        else:
            gradients = self.program.pull(self.kept, pulled, wanted, many)
        if self.is_complex:
            gradients = [None if g is None else framework.conj(g) for g in gradients]
        for gradient in gradients:
            if gradient is None:
                lead = tuple(cotangents[0].shape[:1]) if many else ()
                return [self.or_zeros(framework, g, i, lead) for g, i in zip(gradients, wanted)]
        return list(gradients)

    def or_zeros(self, framework: Framework, gradient: Any, index: int, lead: tuple[int, ...] = ()) -> Any:
        """A gradient of one of the arguments, by its place in `wrt`; zeros for None."""
        if gradient is not None:
            return gradient
        leaf = self.leaves[self.places[index]]
        return framework.zeros((*lead, *leaf.shape), leaf)
