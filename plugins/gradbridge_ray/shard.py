"""The model in one worker: it computes pieces of calls, and keeps what their pullbacks need. Nothing of Ray here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

import gradbridge
from gradbridge import trees
from gradbridge.derivatives.independence import close, visible_precision
from gradbridge.errors import NOT_OFFERED, AuditError
from gradbridge.execution.piecewise import (
    look_at_rows,
    pulled_piece,
    pushed_piece,
    sizes_of_rows,
    viewed,
)
from gradbridge.inspection import Stranger
from gradbridge.protocol import Adapter, Array
from gradbridge_ray.messages import Facts, Fresh, InDtype, Missing, Order, Path, Proof, Pullback

#: Adapters that are not of one evaluation, and are known by their paths.
_KNOWN = 64


def built(model: Any, options: Mapping[str, Any]) -> tuple[Adapter, bool]:
    """(the adapter of what a user gave or made, whether it follows the dtype of the params).

    Args:
        model: an `Adapter`, a Bridge, or a native model.
        options: of `gradbridge.bridge`, for a native one.
    """
    if isinstance(model, Adapter):
        return model, False
    bridge = model if isinstance(model, gradbridge.Bridge) else gradbridge.bridge(model, **options)
    adapter, made_with = bridge.made_with()
    return adapter, bool(made_with["follows"])


class Shard:
    """The model, and the residuals of evaluations in flight.

    Args:
        make: gives the adapter.
    """

    def __init__(self, make: Callable[[], Adapter]) -> None:
        self._base = make()
        self._known: OrderedDict[Path, Adapter] = OrderedDict()
        self._kept: dict[int, dict[int, tuple[Adapter, Any, Sequence[Any]]]] = {}
        self._mended: set[tuple[str, Path]] = set()

    @property
    def kept(self) -> int:
        """Evaluations whose residuals are held."""
        return len(self._kept)

    def do(self, order: Order, arrays: Sequence[Any]) -> Any:
        """Carry out an order, with the arrays that came along, cut as it says."""
        if order.slices:
            arrays = [a if cut is None else a[cut] for a, cut in zip(arrays, order.slices)]
        return getattr(self, order.what)(order, *arrays)

    def drop(self, keys: Sequence[int]) -> None:
        """Forget evaluations."""
        for key in keys:
            self._kept.pop(key, None)

    def mend(self, mends: Sequence[tuple[str, Path]]) -> None:
        """Ask of the adapters what was asked of them before this process was."""
        for method, path in mends:
            if (method, path) not in self._mended:
                self._mended.add((method, path))
                getattr(self._adapter(path), method)()

    def prove(self, proof: Proof) -> None:
        """Compute a call whose outputs are known.

        Raises:
            AuditError: this is another model.
        """
        adapter = _unused(self._adapter(proof.path))
        outputs, _ = adapter.evaluate(proof.params, proof.inputs, proof.spec.replayed(), (), True)
        ours = [adapter.border.view(y) for y in trees.flatten(outputs)[0]]
        precision = visible_precision(ours)
        if len(ours) != len(proof.outputs) or not all(
            close(a, b, precision) for a, b in zip(ours, proof.outputs)
        ):
            raise AuditError(
                f"the workers hold different models of {adapter.label}: the same params and inputs give other outputs in "
                f"one of them than in the first. What makes the model draws random constants, or reads what differs between "
                f"processes: seed it, or pass a Bridge, which is made once and sent to all"
            )

    # -- orders -------------------------------------------------------------------------------

    def facts(self, order: Order) -> Facts | None:
        """Of the adapter at a path; None where there is none."""
        adapter = self._adapter(order.path)
        if adapter is None:
            return None
        is_parent = bool(order.path) and adapter is self._adapter(order.path[:-1])
        return Facts(
            adapter.label,
            adapter.layout,
            adapter.traits,
            adapter.argument_names,
            adapter.gradient_note,
            adapter.stochastic,
            adapter.results_are_typed,
            {operation: adapter.refusal(operation) for operation in NOT_OFFERED},
            is_parent,
        )

    def weights(self, order: Order) -> list[Array]:
        """The model's present weights."""
        adapter = self._adapter(order.path)
        return [np.array(adapter.border.view(w)) for w in adapter.weights()]

    def forward(self, order: Order, params: Any, *inputs: Any) -> Any:
        """The outputs as arrays of NumPy; residuals are kept under the order's key."""
        adapter = self._adapter(order.path, order.piece)
        outputs, residuals = adapter.evaluate(params, inputs, order.spec, order.wrt, True)
        if order.key:
            self._kept.setdefault(order.key, {})[order.piece] = adapter, residuals, inputs
        return viewed(outputs, adapter.border)

    def backward(self, order: Order, *cotangents: Any) -> dict[int, Array] | Missing:
        """{argument: gradient}; `order.more` says whether of many cotangents at once."""
        kept = self._residuals(order)
        if kept is None:
            return Missing()
        adapter, residuals, inputs = kept
        return pulled_piece(adapter, residuals, cotangents, order.wrt, inputs, bool(order.more))

    def pushforward(self, order: Order, params: Any, *arrays: Any) -> tuple[Any, list[Array]]:
        """(outputs, tangents); the tangents come after the inputs."""
        adapter, count = self._adapter(order.path, order.piece), order.spec.count
        loaded = adapter.update_flat(params, False)
        return pushed_piece(
            adapter, loaded, list(arrays[:count]), order.spec, order.wrt, list(arrays[count:])
        )

    def pushforward_many(self, order: Order, params: Any, *arrays: Any) -> list[Array]:
        """Tangents alone, of many at once."""
        adapter, count = self._adapter(order.path, order.piece), order.spec.count
        loaded = adapter.update_flat(params, False)
        pushed = adapter.pushforward_many(loaded, arrays[:count], order.spec, order.wrt, arrays[count:])
        return [adapter.border.view(t) for t in pushed]

    def row_jacobians(self, order: Order, params: Any, *inputs: Any) -> list[list[Array]]:
        """Per-example Jacobians; `order.more` says which inputs have rows."""
        adapter = self._adapter(order.path, order.piece)
        loaded = adapter.update_flat(params, False)
        jacobians = adapter.row_jacobians(loaded, inputs, order.spec, order.wrt, order.more)
        return [[adapter.border.view(a) for a in output] for output in jacobians]

    def output_spec(self, order: Order) -> Any:
        """Of inputs like those in `order.more`."""
        return self._adapter(order.path).output_spec(order.more, order.spec)

    def look(self, order: Order, params: Any, *some: Any) -> tuple[bool | None, list[Array], bool]:
        """Whether these few rows are independent of each other, their outputs together, and whether the model is random."""
        adapter = self._adapter(order.path)
        same: bool | None = True
        if order.more is not None:
            loaded = adapter.update_flat(params, False)
            same = look_at_rows(adapter, loaded, list(some), order.more, order.spec)
        outputs, _ = _unused(adapter).evaluate(params, some, order.spec.replayed(), (), True)
        arrays = [np.array(adapter.border.view(y)) for y in trees.flatten(outputs)[0]]
        return same, arrays, adapter.stochastic

    def shape(self, order: Order, array: Any) -> tuple[tuple[int, ...], str]:
        """Of an array in the object store, as NumPy has it."""
        array = np.asarray(array)
        return array.shape, array.dtype.str

    def take(self, order: Order, array: Array) -> Array:
        """Some rows of an array."""
        return array[order.more]

    def largest(self, order: Order, array: Array) -> tuple[Array, Array]:
        """(indices, sizes) of the two largest rows of an array of numbers."""
        sizes = sizes_of_rows(array)
        rows = np.argsort(sizes)[-2:]
        return rows, sizes[rows]

    def strangers(self, order: Order) -> list[Stranger]:
        """See `Adapter.strangers`."""
        kept = self._residuals(order)
        return [] if kept is None else list(kept[0].strangers(kept[1]))

    def operations(self, order: Order) -> Hashable:
        """See `Adapter.operations`."""
        kept = self._residuals(order)
        return None if kept is None else kept[0].operations(kept[1])

    def refusals_met(self, order: Order) -> dict[str, str]:
        """See `Adapter.refusals_met`."""
        return dict(self._adapter(order.path).refusals_met)

    def asked(self, order: Order) -> bool:
        """A method of the adapter that changes how it computes, by its name in `order.more`."""
        self._mended.add((order.more, order.path))
        return bool(getattr(self._adapter(order.path), order.more)())

    # -- private ------------------------------------------------------------------------------

    def _residuals(self, order: Order) -> tuple[Adapter, Any, Sequence[Any]] | None:
        return self._kept.get(order.key, {}).get(order.piece)

    def _adapter(self, path: Path, piece: int = 0) -> Any:
        """The adapter at the end of a path, for one piece of the evaluations on it."""
        if not path:
            return self._base
        if path in self._known:
            self._known.move_to_end(path)
            return self._known[path]
        step = path[-1]
        if isinstance(step, InDtype):
            adapter: Any = self._adapter(path[:-1], piece).in_dtype(step.name)
        elif isinstance(step, Fresh):
            adapter = self._adapter(path[:-1], piece).fresh()
        else:
            parent, residuals, _ = self._kept.get(step.key, {}).get(piece, (None, None, ()))
            if parent is None:
                parent = self._adapter(path[:-1], piece)
            adapter = parent.pullback(step.spec, step.wrt, residuals)
        if any(isinstance(one, Pullback) and one.key for one in path):
            return adapter  # of one evaluation, and quickly made again
        self._known[path] = adapter
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return adapter


def _unused(adapter: Adapter) -> Adapter:
    """The model as if it had never been called, where there is such: what it keeps of calls is not what it is."""
    fresh = adapter.fresh()
    return adapter if fresh is None else fresh
