"""An adapter whose rows are computed by workers, each with the model in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge.borders import Border
from gradbridge.call_spec import CallSpec
from gradbridge.errors import GradbridgeError
from gradbridge.execution.looks import Looks
from gradbridge.execution.piecewise import (
    Cut,
    PiecewisePullback,
    TreeSum,
    rows_to_probe,
)
from gradbridge.inspection import Stranger
from gradbridge.protocol import Adapter, Array
from gradbridge_ray.errors import ClusterError
from gradbridge_ray.messages import Facts, Fresh, InDtype, Missing, Order, Path, Proof, Pullback
from gradbridge_ray.pool import Pool
from gradbridge_ray.sending import Kept, SendingAdapter, Sent
from gradbridge_ray.waiting import Call

#: Gradients of so few pieces, or of so few bytes in all, are added here; others by the workers, and one comes back.
_ADDED_HERE, _BYTES_HERE = 4, 1 << 23
#: Numbers of copies that were never called.
_fresh = itertools.count(1)
#: How often residuals are made again, and sums, before it is given up.
_TRIES = 5


class ShardedAdapter(SendingAdapter):
    """An adapter that has workers compute another one, each some of the rows.

    Args:
        pool: the workers.
        path: how the other one is made of their model.
        facts: what is known of it.
        local: the model in this process, where it was made here; else it is made when it is asked for.
    """

    _weights: Sequence[Array] | None

    def __init__(self, pool: Pool, path: Path, facts: Facts, local: Callable[[], Adapter]) -> None:
        self._pool, self._path, self._facts, self._local = pool, path, facts, local
        self.label, self.layout = facts.label, facts.layout
        self.traits = replace(facts.traits, packs=False, takes_placed=True, runtime=None)
        self.argument_names, self.gradient_note = facts.argument_names, facts.gradient_note
        self.results_are_typed = facts.results_are_typed
        self.border = Border(self.layout)
        self.stochastic = facts.stochastic
        self._weights, self._looks = None, Looks()

    # -- what it tells of the model -----------------------------------------------------------

    @property
    def refusals_met(self) -> Mapping[str, str]:  # type: ignore[override]
        """As the first worker's."""
        met: Mapping[str, str] = self._first("refusals_met")
        return met

    def refusal(self, operation: str) -> str:
        return self._facts.refusals.get(operation, "")

    def weights(self) -> Sequence[Any]:
        if self._weights is None:
            self._weights = self._first("weights")
        return self._weights

    def model(self, weights: Sequence[Array]) -> Any:
        adapter = self._local()
        for step in self._path:
            if isinstance(step, InDtype):
                adapter = adapter.in_dtype(step.name)
        return adapter.model(weights)

    def in_dtype(self, name: str) -> ShardedAdapter:
        path = (*self._path, InDtype(name))
        facts = self._pool.facts(path)
        assert facts is not None
        return self if facts.is_parent else ShardedAdapter(self._pool, path, facts, self._local)

    def fresh(self) -> ShardedAdapter | None:
        path = (*self._path, Fresh(next(_fresh)))
        facts = self._pool.facts(path)
        return None if facts is None else ShardedAdapter(self._pool, path, facts, self._local)

    def isolate_calls(self) -> bool:
        if (
            self._looks is not None
        ):  # what a model kept from call to call may have hidden what it does to rows
            self._looks.forget()
        return self._pool.mend("isolate_calls", self._path)

    def renew_pulls(self) -> bool:
        return self._pool.mend("renew_pulls", self._path)

    def strangers(self, residuals: Any) -> Sequence[Stranger]:
        if not isinstance(residuals, Kept):
            return ()
        found: Sequence[Stranger] = self._pool.ask(
            self._calls("strangers", residuals.cut, residuals.key)[:1]
        )[0]
        return found

    def operations(self, residuals: Any) -> Hashable:
        if not isinstance(residuals, Kept):
            return None
        each = self._pool.ask(self._calls("operations", residuals.cut, residuals.key))
        if any(one is None for one in each):
            return None
        return frozenset().union(*each) if all(isinstance(one, frozenset) for one in each) else tuple(each)

    def output_spec(self, inputs: Sequence[Any], spec: CallSpec) -> Any:
        order = Order("output_spec", self._path, spec, more=tuple(inputs))
        return self._pool.ask([Call(0, order, (), "worker 1")])[0]

    # -- steps --------------------------------------------------------------------------------

    def update(self, weights: Sequence[Any]) -> Any:
        return self.update_flat(self.layout.join([self.border.view(w) for w in weights]), False)

    def update_flat(self, vector: Array, packed: bool) -> Any:
        return self._pool.shipped(vector, keeps=True)  # to all workers, once in an evaluation

    def forward(
        self, loaded: Any, inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        cut = self.cut(inputs)
        sent = self._inputs(inputs, cut, bool(wrt))
        key = self._pool.new_key() if wrt else 0
        kept = Kept(self._pool, key, loaded, sent, spec.replayed(), wrt, cut) if wrt else None
        parts = self._pool.ask(self._forwards("forward", loaded, sent, cut, spec, wrt, key))
        outputs = self.joined_outputs(parts, cut)
        self.look_in_turn(loaded, inputs, cut, spec)
        return outputs, kept

    def backward(self, residuals: Any, cotangents: Sequence[Any], wrt: tuple[int, ...]) -> list[Any]:
        return self._pulled(residuals, cotangents, wrt, False)

    def backward_many(self, residuals: Any, cotangents: Sequence[Any], wrt: tuple[int, ...]) -> list[Any]:
        return self._pulled(residuals, cotangents, wrt, True)

    def pushforward(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Any],
    ) -> tuple[Any, list[Any]]:
        cut, each = self._pushed("pushforward", loaded, inputs, spec, wrt, tangents, 0)
        outputs = self.joined_outputs([values for values, _ in each], cut)
        self.look_in_turn(loaded, inputs, cut, spec)
        return outputs, self.joined_tangents([moved for _, moved in each], cut)

    def pushforward_many(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Any],
    ) -> list[Any]:
        cut, each = self._pushed("pushforward_many", loaded, inputs, spec, wrt, tangents, 1)
        return self.joined_tangents(each, cut, 1)

    def row_jacobians(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        has_rows: tuple[bool, ...],
    ) -> list[list[Any]]:
        cut = self.cut(inputs)._replace(has_rows=has_rows)
        sent = self._inputs(inputs, cut, False)
        calls = self._forwards("row_jacobians", loaded, sent, cut, spec, wrt, 0, has_rows)
        return self.joined_jacobians(self._pool.ask(calls))

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return ShardedPullback(self, spec, wrt, residuals if isinstance(residuals, Kept) else None)

    # -- private ------------------------------------------------------------------------------

    def _first(self, what: str) -> Any:
        return self._pool.ask([Call(0, Order(what, self._path), (), "worker 1")])[0]

    def _pushed(
        self,
        what: str,
        loaded: Any,
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Any],
        axis: int,
    ) -> tuple[Cut, list[Any]]:
        cut = self.cut(inputs)
        moving = [self.arguments_with_rows(cut)[p] for p in wrt]
        sent = self._inputs(inputs, cut, False) + self._plain(tangents, moving, cut, axis)
        return cut, self._pool.ask(self._forwards(what, loaded, sent, cut, spec, wrt, 0))

    def _pulled(self, kept: Kept, cotangents: Sequence[Any], wrt: tuple[int, ...], many: bool) -> list[Any]:
        cut = kept.cut
        have_rows = self.outputs_with_rows(cut.has_rows, len(cotangents))
        sent = self._plain(cotangents, have_rows, cut, int(many))
        own = tuple(i for i in wrt if self.arguments_with_rows(cut)[i])
        shared = [i for i in wrt if i not in own]
        calls = self._calls("backward", cut, kept.key, sent, wrt=wrt, more=many)
        for _ in range(_TRIES):
            parts = self._pieces_pulled(kept, calls, own)
            few = len(parts) <= _ADDED_HERE or 8 * self.layout.size * len(parts) <= _BYTES_HERE
            if few or not shared:
                others = (
                    self._pool.got([ref for _, ref in parts], self.label) if shared else [[]] * len(parts)
                )
                whole = [own | dict(zip(shared, rest or ())) for (own, _), rest in zip(parts, others)]
                if None not in others:
                    gradients = self.joined_gradients(whole, cut, int(many))
                    return [gradients[i] for i in wrt]
            else:
                gradients = self.joined_gradients([one for one, _ in parts], cut, int(many))
                total = self._pool.got([self._added([ref for _, ref in parts])], self.label)[0]
                if total is not None:
                    gradients |= dict(zip(shared, total))
                    return [gradients[i] for i in wrt]
        raise ClusterError(
            f"workers were lost {_TRIES} times while the gradient of {self.label} was computed"
        )

    def _pieces_pulled(
        self, kept: Kept, calls: list[Call], own: tuple[int, ...]
    ) -> list[tuple[dict[int, Array], Any]]:
        """The gradients of each piece; residuals that went with a worker are made again."""
        parts: dict[int, tuple[dict[int, Array], Any]] = {}
        for _ in range(_TRIES):
            rest = [i for i in range(len(calls)) if i not in parts]
            pulled = self._pool.pull([calls[i] for i in rest], own)
            parts |= {i: part for i, part in zip(rest, pulled) if not isinstance(part[0], Missing)}
            lost = [i for i in rest if i not in parts]
            if not lost:
                return [parts[i] for i in range(len(calls))]
            again = self._forwards(
                "forward", kept.params, kept.inputs, kept.cut, kept.spec, kept.wrt, kept.key
            )
            self._pool.ask([again[i] for i in lost])
        raise ClusterError(
            f"workers of {self.label} were lost {_TRIES} times between a forward and its backward"
        )

    def _added(self, refs: Sequence[Any]) -> Any:
        """A reference to the sum, in the order that `joined_gradients` has."""
        total = TreeSum[tuple[Any, int]](lambda a, b: (self._pool.added(a[0], b[0], a[1]), a[1]))
        for i, ref in enumerate(refs):
            total.put((ref, self._pool.worker_of(i, len(refs))))
        return total.total()[0]

    def _look(self, loaded: Any, inputs: Sequence[Any], cut: Cut, spec: CallSpec) -> bool:
        """Compute some rows of all shards together, each must be what it was; and in all workers, whose models must be one."""
        if not cut.rows or not any(cut.has_rows):
            return False
        several = len(cut.pieces) > 1
        some = self._some(inputs, cut)
        spec = replace(spec, packed=False)
        order = Order("look", self._path, spec, more=cut.has_rows if several else None)
        try:
            same, outputs, self.stochastic = self._pool.ask(
                [Call(0, order, (loaded, *some), f"{self.label}, some rows of all shards")]
            )[0]
        except GradbridgeError:
            if several:
                raise
            return False  # it takes all of its rows alone
        if several:
            self.refuse_noise()
        told = self.refuse_dependent_rows(same)
        if not self.stochastic:
            self._pool.prove(Proof(self._path, spec, loaded, tuple(some), tuple(outputs)))
        return told and (several or self._pool.count == 1)

    def _some(self, inputs: Sequence[Any], cut: Cut) -> list[Any]:
        """A few rows of each input that has any."""
        first = next(x for x, yes in zip(inputs, cut.has_rows) if yes)
        rows = rows_to_probe(cut.rows)
        if first.dtype.kind in "fiu":
            each = self._of_pieces("largest", first, cut, [None] * len(cut.pieces))
            where = np.concatenate([found + piece.start for (found, _), piece in zip(each, cut.pieces)])
            sizes = np.concatenate([size for _, size in each])
            rows = np.unique([*rows, *where[np.argsort(sizes)[-2:]]])
        local = [rows[(rows >= p.start) & (rows < p.stop)] - p.start for p in cut.pieces]
        return [
            (x[rows] if isinstance(x, np.ndarray) else np.concatenate(self._of_pieces("take", x, cut, local)))
            if yes
            else self._inputs([x], Cut(0, (False,), (slice(0, 0),)), False).arrays[0][0]
            for x, yes in zip(inputs, cut.has_rows)
        ]

    def _of_pieces(self, what: str, array: Any, cut: Cut, more: Sequence[Any]) -> list[Any]:
        sent = self._inputs([array], cut._replace(has_rows=(True,)), False)
        calls = self._calls(what, cut, 0, sent)
        return self._pool.ask([c._replace(order=c.order._replace(more=m)) for c, m in zip(calls, more)])


class ShardedPullback(PiecewisePullback, ShardedAdapter):
    """The VJP of a sharded adapter; where it starts from an evaluation, at the arguments that were sent for that.

    Args:
        parent: whose VJP it is.
        spec, wrt: as for `Adapter.pullback`.
        kept: the evaluation that it starts from.
    """

    def __init__(
        self, parent: ShardedAdapter, spec: CallSpec, wrt: tuple[int, ...], kept: Kept | None
    ) -> None:
        pool, local = parent._pool, parent._local
        path = (
            *parent._path,
            Pullback(replace(spec, packed=False), wrt, kept.key if kept is not None else 0),
        )
        facts = pool.facts(path)
        assert facts is not None
        super().__init__(pool, path, facts, local)
        self.of(parent, spec, wrt)
        self._start = kept
        if kept is not None:
            self.step = "backward"

    def cut(self, inputs: Sequence[Any]) -> Cut:
        if self._start is None:
            return super().cut(inputs)
        rows, has_rows, pieces = self._start.cut
        count = len(inputs) - self._count
        return Cut(rows, (*has_rows, *self._parent.outputs_with_rows(has_rows, count)), pieces)

    def update_flat(self, vector: Array, packed: bool) -> Any:
        return super().update_flat(vector, packed) if self._start is None else self._start.params

    def _inputs(self, inputs: Sequence[Any], cut: Cut, keeps: bool) -> Sent:
        if self._start is None or len(inputs) < self._count:
            return super()._inputs(inputs, cut, keeps)
        own = cut._replace(has_rows=cut.has_rows[self._count :])
        return self._start.inputs + super()._inputs(inputs[self._count :], own, keeps)
