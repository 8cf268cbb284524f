"""Programs: a computation compiled for each kind of leaves, and for more orders as they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from gradbridge.errors import GradbridgeError, Unsupported
from gradbridge.program import Computation, Form, Program
from gradbridge_tensorflow.isolation import apart, tracing
from gradbridge_tensorflow.open_sizes import Looks
from gradbridge_tensorflow.stages import Path, Stage, spread

#: Kinds of leaves of one rank that a program is kept for, where each size is a kind of its own.
_KINDS = 32


class TensorFlowProgram(Program):
    """A computation, compiled once per kind of leaves; where the number of rows is open, once for all.

    Args:
        label: of the model, for refusals.
        fn: the computation.
        places: of the leaves that it is pulled back to.
        rows: of the leaves whose first axis is left open from the start. Functions may look at the number
            of rows; for theirs it is left open when a second one comes, as `tf.function` does.
        looks: whether the model's Python code looks at sizes: then each is a kind of its own.
    """

    records = True
    merges_from = 16384  # the plain way names an operation that has no second derivative

    def __init__(
        self, label: str, fn: Computation, places: tuple[int, ...], rows: Sequence[int], looks: Looks
    ) -> None:
        self.label, self.fn, self.places, self.rows, self.looks = label, fn, places, rows, looks
        self._kinds: dict[Any, list[Kind]] = {}
        self._latest: Kind | None = None

    def part(self, leaves: list[Any]) -> tuple[list[Any], list[Any], Form, Sequence[Any]]:
        """The run as a part of the program that calls, an eager one or a graph, which differentiates it itself."""
        stage = self._kind(leaves).stage
        floats, others, after, _ = stage.forward.within(*leaves)
        return floats, others, stage.form, after

    def run(self, leaves: list[Any]) -> tuple[list[Any], list[Any], Form, Sequence[Any], Any]:
        kind = self._latest
        if kind is None or not kind.fits(leaves):
            kind = self._latest = self._kind(leaves)
        stage = kind.stage
        floats, others, after, residuals = stage.forward(*leaves)
        kept = Kept(kind, stage, leaves, (), residuals, None) if self.places else None
        return floats, others, stage.form, after, kept

    def pull(
        self, kept: Kept, cotangents: Sequence[Any], wanted: Sequence[int], many: bool = False
    ) -> Sequence[Any]:
        gradients = kept.stage.pull(kept, cotangents, many)
        return [gradients[i] for i in wanted]

    def operations(self, kept: Kept) -> frozenset[str]:
        return kept.stage.operations

    def strangers(self, kept: Kept) -> Sequence[Any]:
        return [v for v in kept.stage.variables if v.trainable]

    def pull_recorded(
        self, kept: Kept, cotangents: Sequence[Any], wanted: Sequence[int]
    ) -> tuple[Sequence[Any], Kept]:
        depth = len(kept.cotangents)
        path = (*kept.stage.path[:depth], tuple(wanted))
        if kept.stage.path[: depth + 1] != path:
            kept = kept.kind.deepened(kept, path)
        return kept.recorded(cotangents)

    def pull_to_boundary(
        self, kept: Kept, recorded: Kept, cotangents: Sequence[Any]
    ) -> tuple[Sequence[Any], Any]:
        product = recorded.stage.product
        if product is None or len(recorded.cotangents) != 1:
            raise Unsupported(f"a loop of {self.label} keeps lists of tensors, which cannot be met half-way")
        tangents = recorded.stage.heard(1, cotangents)
        with recorded.stage.naming_what_is_missing():
            by_cotangents, left = product.to_boundary(*recorded.residuals, *tangents)
        return spread(by_cotangents, product.outward), (recorded.base, left)

    def pull_merged(
        self, kept: Kept, cotangents: Sequence[Any], wanted: Sequence[int], left: Sequence[Any]
    ) -> Sequence[Any]:
        # The forward may have been made again since: each of these knows its own residuals.
        bars = list(cotangents)
        total: list[Any] = [None] * len(self.places)
        for base, part in left:
            product = base.stage.product
            with base.stage.naming_what_is_missing():
                (found,) = product.home(*base.residuals, *bars, *part)
            total = [
                b if a is None else a if b is None else a + b
                for a, b in zip(total, spread(found, product.homeward))
            ]
            bars = list(map(tf.zeros_like, bars))
        return [total[i] for i in wanted]

    # -- private ------------------------------------------------------------------------------

    def _kind(self, leaves: list[Any]) -> Kind:
        ranks = tuple([(x.dtype, x.shape.rank) for x in leaves])
        known = next((kind for kind in self._kinds.get(ranks, ()) if kind.fits(leaves)), None)
        if known is not None:
            return known
        with tracing:
            family = self._kinds.setdefault(ranks, [])
            known = next((kind for kind in family if kind.fits(leaves)), None)
            if known is None:
                known = self._traced(family, leaves)
                family.append(known)
                del family[:-_KINDS]
            return known

    def _traced(self, family: list[Kind], leaves: list[Any]) -> Kind:
        """Compile for as many shapes as the computation lets, this one among them."""
        exact = wide = [x.shape for x in leaves]
        if not self.looks.seen and not any(kind.is_rigid for kind in family):
            if family and not family[-1].stage.form.shapes:
                wide = [a.most_specific_compatible_shape(b) for a, b in zip(family[-1].shapes, exact)]
            elif self.rows:
                wide = [
                    tf.TensorShape([None, *s[1:]]) if i in self.rows and s.rank else s
                    for i, s in enumerate(exact)
                ]
        if wide != exact:
            try:
                kind = Kind(self, leaves, wide, False)
            except GradbridgeError:
                raise
            except Exception:
                # A user's code that looks at the sizes fails in any way where one is open. If it was
                # something else, it fails for these sizes as well, and says so.
                return Kind(self, leaves, exact, True)
            if not kind.stage.looks_at_sizes:
                return kind
            # What it decided by an open size may be another thing for this one. A tf.function within it
            # is not asked again by other programs of the model, so these are told.
            self.looks.seen = True
        return Kind(self, leaves, exact, self.looks.seen)


class Kind:
    """One kind of leaves: a stage for each order that was asked for, the deepest of them in use.

    Args:
        program: compiled.
        leaves: some of that kind.
        shapes: of such leaves, some axes open.
        is_rigid: whether the computation looks at sizes, so that each is a kind of its own.
    """

    def __init__(
        self, program: TensorFlowProgram, leaves: list[Any], shapes: list[tf.TensorShape], is_rigid: bool
    ) -> None:
        self._program, self.shapes, self.is_rigid = program, shapes, is_rigid
        self._dtypes = [x.dtype for x in leaves]
        self._stages: dict[Path, Stage] = {}
        self.stage = self._stage(())

    def fits(self, leaves: list[Any]) -> bool:
        """Whether leaves are of this kind."""
        for leaf, dtype, shape in zip(leaves, self._dtypes, self.shapes):
            if leaf.dtype is not dtype or not ((s := leaf.shape) == shape or s.is_subtype_of(shape)):
                return False
        return True

    def deepened(self, kept: Kept, path: Path) -> Kept:
        """The call once more, so that enough is kept for derivatives along a path; later calls keep it at once."""
        with tracing:
            now = self.stage.path
            # It grows, so that no order undoes another.
            stage = self._stage(now if now[: len(path)] == path else path)
            if len(stage.path) > len(now):
                self.stage = stage
        *_, residuals = stage.forward(*kept.leaves)
        again = Kept(self, stage, kept.leaves, (), residuals, None)
        for cotangents in kept.cotangents:
            _, again = again.recorded(cotangents)
        return again

    def _stage(self, path: Path) -> Stage:
        if path not in self._stages:
            program = self._program
            specs = [tf.TensorSpec(s, d) for s, d in zip(self.shapes, self._dtypes)]
            self._stages[path] = apart(lambda: Stage(program.label, program.fn, program.places, specs, path))
        return self._stages[path]


class Kept:
    """What a run, or a gradient that was recorded, keeps: the tensors that the next part of the graph reads.

    Args:
        kind: of the leaves.
        stage: that made it.
        leaves: of the run.
        cotangents: of each gradient that was recorded.
        residuals: for the next part.
        base: what the part before kept.
    """

    __slots__ = ("base", "cotangents", "kind", "leaves", "residuals", "stage")

    def __init__(
        self,
        kind: Kind,
        stage: Stage,
        leaves: list[Any],
        cotangents: tuple[list[Any], ...],
        residuals: Sequence[Any],
        base: Kept | None,
    ) -> None:
        self.kind, self.stage, self.leaves, self.cotangents = kind, stage, leaves, cotangents
        self.residuals, self.base = residuals, base

    def recorded(self, cotangents: Sequence[Any]) -> tuple[list[Any], Kept]:
        """(gradients, what their own pull needs)."""
        gradients, residuals = self.stage.record(len(self.cotangents), self.residuals, cotangents)
        cotangents = (*self.cotangents, list(cotangents))
        return gradients, Kept(self.kind, self.stage, self.leaves, cotangents, residuals, self)
