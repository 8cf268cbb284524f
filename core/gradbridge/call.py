"""One call in flight: the four steps of one evaluation, and all that its pullback needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradbridge import borders, trees
from gradbridge.errors import DerivativeError, GuestError, NotDifferentiableError
from gradbridge.protocol import Adapter, Array, Signature
from gradbridge.reuse import Evaluation, Memory
from gradbridge.transposes import ForwardTrust, is_transposed

if TYPE_CHECKING:
    import optree

    from gradbridge.registry import Registry


@dataclass(frozen=True, slots=True)
class Step:
    """What an observer of a protocol step is told.

    Attributes:
        name: ``update``, ``forward``, ``zero`` or ``backward``.
        bridge: label of the model, e.g. ``Net`` (``gradient of Net`` for a derivative of it; ``Net, JVP``
            for its forward mode, ``Net, JVP checked`` where the first of them was compared with a
            backward; in a Jacobian ``Net, rows apart``, ``rows at once``, ``batched VJP`` or
            ``batched JVP``).
        shapes: of the params (update), the inputs (forward; a JVP's tangents), or the cotangents
            (backward).
        seconds: wall time that the guest took.
    """

    name: str
    bridge: str
    shapes: tuple[tuple[int, ...], ...]
    seconds: float


def _is_zero(array: Array) -> bool:
    # Most that are not zero show it in their first number, and a full look costs ten times as much.
    return not array.size or (not array.item(0) and not array.any())


class Call:
    """One evaluation of an adapter, and the record that its derivative travels with.

    A host half makes no steps itself: it runs the call where its arrays are concrete, and pulls
    cotangents back, or lifts `differentiated(...)` when they are traced themselves.
    """

    __slots__ = (
        "_check_finite",
        "_memory",
        "_noise",
        "_order",
        "_outputs",
        "_registry",
        "_residuals",
        "_shapes",
        "_structure",
        "_trust",
        "adapter",
        "dtype",
        "guest_dtypes",
        "signature",
        "wrt",
    )

    def __init__(
        self,
        adapter: Adapter,
        signature: Signature,
        dtype: np.dtype[Any],
        registry: Registry,
        noise: Callable[[Array], int] | None = None,
        check_finite: bool = False,
        memory: Memory | None = None,
        trust: ForwardTrust | None = None,
        order: int = 0,
    ) -> None:
        self.adapter = adapter
        self.signature = signature
        self.dtype = dtype
        #: Positions that may be pulled back to; the host half sets it before `run`.
        self.wrt: tuple[int, ...] = ()
        self._registry = registry
        self._noise = noise
        self._check_finite = check_finite
        self._memory = memory
        self._trust, self._order = trust, order
        self._residuals: Any = None
        self._shapes: dict[int, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self._structure: optree.PyTreeSpec | None = None
        self._outputs: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...] = ()
        #: Of the output leaves as the guest returned them.
        self.guest_dtypes: tuple[np.dtype[Any], ...] = ()

    @property
    def outputs(self) -> tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]:
        """(shape, dtype in the host) of each output leaf, after `run`."""
        return self._outputs

    def run(self, params: Any, inputs: Sequence[Any]) -> list[Array]:
        """Steps update and forward, at concrete arrays.

        Args:
            params: (P,) real.
            inputs: the leaves, as `borders.admit` gives them.

        Returns:
            The output leaves in the host's dtype.
        """
        adapter = self.adapter
        vector = np.ascontiguousarray(params, dtype=np.float64)
        if self._check_finite:
            borders.check_finite(vector, adapter.layout, adapter.label)
        inputs = borders.admit_differentiated(inputs, self.wrt, adapter.label, adapter.takes_complex)
        if self._noise is not None:
            self.signature = replace(self.signature, noise=self._noise(vector))
        self._shapes = {
            i: (inputs[i - 1].shape, borders.host_dtype(inputs[i - 1].dtype, self.dtype))
            if i
            else (vector.shape, self.dtype)
            for i in self.wrt
        }
        if self._memory is None:
            outputs, self._residuals = self._forward(vector, inputs, self.wrt)
        else:
            outputs, self._residuals = self._remembered(self._memory, vector, inputs)
        if type(outputs) is np.ndarray:
            leaves, self._structure = [outputs], None
        else:
            leaves, self._structure = trees.flatten(outputs)
        arrays = borders.outputs_to_host(leaves, self.dtype, adapter.label, adapter.takes_complex)
        self._outputs = tuple((a.shape, a.dtype) for a in arrays)
        self.guest_dtypes = tuple(leaf.dtype for leaf in leaves)
        return arrays

    def _forward(self, vector: Array, inputs: Sequence[Any], wrt: tuple[int, ...]) -> tuple[Any, Any]:
        adapter = self.adapter
        if not self._registry.observed:
            return adapter.forward(adapter.update(vector), inputs, self.signature, wrt)
        loaded = self._observe("update", (vector.shape,), adapter.update, vector)
        shapes = tuple(x.shape for x in inputs if isinstance(x, np.ndarray))
        outputs: tuple[Any, Any] = self._observe(
            "forward", shapes, adapter.forward, loaded, inputs, self.signature, wrt
        )
        return outputs

    def _remembered(self, memory: Memory, vector: Array, inputs: Sequence[Any]) -> tuple[Any, Any]:
        """The forward from memory, or made so that a later gradient with respect to the params finds it."""
        one = memory.find(vector, inputs, self.signature, self.wrt)
        if one is None:
            wrt = self.wrt
            if 0 not in wrt and self.adapter.layout.size:
                wrt = (0, *wrt)
            try:
                outputs, residuals = self._forward(vector, inputs, wrt)
            except (DerivativeError, GuestError):
                if wrt == self.wrt:
                    raise
                # A model without a gradient has a value all the same.
                wrt = self.wrt
                outputs, residuals = self._forward(vector, inputs, wrt)
            # Copies: the caller may change its arrays in place.
            own = tuple([x.copy() if isinstance(x, np.ndarray) else x for x in inputs])
            one = Evaluation(vector.copy(), own, self.signature, wrt, outputs, residuals)
            if not self.adapter.stochastic:
                memory.keep(one)
        if type(one.outputs) is np.ndarray:
            return one.outputs.copy(), one.residuals
        leaves, structure = trees.flatten(one.outputs)
        # The caller owns what it gets, so what is remembered stays ours.
        copies = [leaf.copy() if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
        return trees.unflatten(structure, copies), one.residuals

    def assemble(self, leaves: Sequence[Any]) -> Any:
        """Output leaves, concrete or traced → the tree that the model returned."""
        return leaves[0] if self._structure is None else trees.unflatten(self._structure, leaves)

    def pull(self, cotangents: Sequence[Any], wrt: tuple[int, ...]) -> list[Array]:
        """Steps zero and backward: one guest backward for all positions together.

        Args:
            cotangents: one per output leaf, of its shape.
            wrt: positions to pull back to.

        Returns:
            A gradient per position in the host's dtype, new arrays.
        """
        adapter = self.adapter
        self.refuse_flat_outputs()
        arrays = borders.cotangents_to_guest(cotangents, self._outputs, adapter.label)
        if all(map(_is_zero, arrays)):
            # Linear in the cotangents, so the guest need not be asked: what autograd's jacobian
            # pulls back is mostly zeros, wherever a program calls its model more than once.
            return [np.zeros(*self._shapes[position]) for position in wrt]
        if self._registry.observed:
            self._observe("zero", (), adapter.zero, self._residuals)
            shapes = tuple(a.shape for a in arrays)
            gradients = self._observe("backward", shapes, adapter.backward, self._residuals, arrays, wrt)
        else:
            adapter.zero(self._residuals)
            gradients = adapter.backward(self._residuals, arrays, wrt)
        return [self._to_host(g) for g in gradients]

    def pull_many(self, cotangents: Sequence[Array], wrt: tuple[int, ...], how: str) -> list[Array] | None:
        """Many cotangents at once: `Adapter.backward_many`, and the zero before it.

        Args:
            cotangents: one per output leaf, each with one leading axis.
            wrt: positions to pull back to.
            how: what observers are told of it.

        Returns:
            A gradient per position with the leading axis, or None where the guest cannot.
        """
        adapter = self.adapter
        adapter.zero(self._residuals)
        if not self._registry.observed:
            return adapter.backward_many(self._residuals, cotangents, wrt)
        found: list[Array] | None = self._observe_some(
            "backward", how, cotangents, adapter.backward_many, self._residuals, cotangents, wrt
        )
        return found

    def row_jacobians(
        self, params: Array, inputs: Sequence[Any], wrt: tuple[int, ...], rowed: tuple[bool, ...]
    ) -> list[list[Array]] | None:
        """`Adapter.row_jacobians` at these inputs, which may be some rows of the call's."""
        adapter = self.adapter
        loaded = adapter.update(np.ascontiguousarray(params, dtype=np.float64))
        arguments = (loaded, inputs, self.signature.replayed(), wrt, rowed)
        if not self._registry.observed:
            return adapter.row_jacobians(*arguments)
        arrays = [x for x in inputs if isinstance(x, np.ndarray)]
        found: list[list[Array]] | None = self._observe_some(
            "backward", "rows apart", arrays, adapter.row_jacobians, *arguments
        )
        return found

    def push(
        self, params: Any, inputs: Sequence[Any], wrt: tuple[int, ...], tangents: Sequence[Any]
    ) -> list[Array] | None:
        """The guest's own forward mode, at concrete arrays: `Adapter.pushforward`.

        Args:
            params, inputs: as for `run`, which has been called.
            wrt: positions that move.
            tangents: one per position, of that argument's shape.

        Returns:
            One array per output leaf in the host's dtype, or None where the guest has no forward mode.
        """
        if type(self.adapter).pushforward is Adapter.pushforward:
            return None
        arrays = borders.tangents_to_guest(tangents, [params, *inputs], wrt, self.adapter.label)
        return self._pushed("pushforward", "JVP", params, inputs, wrt, arrays)

    def push_many(
        self, params: Any, inputs: Sequence[Any], wrt: tuple[int, ...], tangents: Sequence[Array]
    ) -> list[Array] | None:
        """`push` of many tangents at once, each with one leading axis: `Adapter.pushforward_many`."""
        if type(self.adapter).pushforward_many is Adapter.pushforward_many:
            return None
        return self._pushed("pushforward_many", "batched JVP", params, inputs, wrt, tangents)

    def _pushed(
        self,
        step: str,
        how: str,
        params: Any,
        inputs: Sequence[Any],
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        adapter, trust = self.adapter, self._trust
        self.refuse_flat_outputs()
        if trust is not None and trust.is_refused(self._order):
            return None
        inputs = borders.admit_differentiated(inputs, wrt, adapter.label, adapter.takes_complex)
        loaded = adapter.update(np.ascontiguousarray(params, dtype=np.float64))
        arguments = (loaded, inputs, self.signature.replayed(), wrt, tangents)
        method: Callable[..., list[Array] | None] = getattr(adapter, step)
        if self._registry.observed:
            found = self._observe_some("forward", how, tangents, method, *arguments)
        else:
            found = method(*arguments)
        if found is None:
            return None
        if (
            trust is not None
            and adapter.is_forward_mode_checked
            and not trust.is_known(self._order, step, wrt)
        ):
            moved, reached = tangents, found
            if step == "pushforward_many":
                moved, reached = [t[0] for t in tangents], [y[0] for y in found]
            checked = (adapter, loaded, inputs, self.signature.replayed(), wrt, moved, reached)
            if self._registry.observed:
                shapes = tuple(t.shape for t in reached)
                right = self._observe("backward", shapes, is_transposed, *checked, how=", JVP checked")
            else:
                right = is_transposed(*checked)
            trust.tell(self._order, step, wrt, right is not False)
            if right is False:
                return None
        return [self._to_host(t) for t in found]

    def differentiated(self, wrt: tuple[int, ...]) -> Call:
        """A call of the pullback: ``(params, *inputs, *cotangents) ↦ gradients``, for the host to lift.

        Raises:
            HigherOrderError: the guest cannot differentiate its derivative.
        """
        self.refuse_flat_outputs()
        signature = self.signature.replayed()
        count = signature.count + len(self._outputs)
        adapter = self.adapter.pullback(signature, wrt)
        return Call(
            adapter,
            Signature.flat(count, signature.noise),
            self.dtype,
            self._registry,
            trust=self._trust,
            order=self._order + 1,
        )

    def zero_cotangents(self) -> list[Array]:
        """One array of zeros per output leaf."""
        return [np.zeros(shape, dtype if dtype.kind == "c" else self.dtype) for shape, dtype in self._outputs]

    def refuse_flat_outputs(self) -> None:
        """Raise if no output is floating.

        Raises:
            NotDifferentiableError
        """
        if all(dtype.kind not in borders.INEXACT for _, dtype in self._outputs):
            dtypes = ", ".join(str(dtype) for _, dtype in self._outputs)
            raise NotDifferentiableError(
                f"{self.adapter.label} returned only {dtypes}, which has no derivative; return a floating "
                f"array (probabilities rather than a class, say)"
            )

    def _to_host(self, array: Array) -> Array:
        """A gradient or a tangent in the host's dtype; a complex one stays complex."""
        dtype = self.dtype if array.dtype.kind != "c" else borders.host_dtype(array.dtype, self.dtype)
        return array.astype(dtype, copy=False)

    def _observe(self, name: str, shapes: Any, step: Callable[..., Any], *args: Any, how: str = "") -> Any:
        start = time.perf_counter()
        result = step(*args)
        seconds = time.perf_counter() - start
        self._registry.tell(Step(name, self.adapter.label + how, tuple(shapes), seconds))
        return result

    def _observe_some(
        self, name: str, how: str, arrays: Sequence[Array], step: Callable[..., Any], *args: Any
    ) -> Any:
        """As a step of that name, if the guest made it."""
        start = time.perf_counter()
        result = step(*args)
        if result is not None:
            shapes = tuple(a.shape for a in arrays)
            label = f"{self.adapter.label}, {how}"
            self._registry.tell(Step(name, label, shapes, time.perf_counter() - start))
        return result
