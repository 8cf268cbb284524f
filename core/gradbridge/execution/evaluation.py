"""A call of an adapter, and the evaluation that it gives: all that its pullback needs, and immutable.

What nearly every call and every pull is, a float64 vector and one floating output, is handled in place;
all that is unusual goes by way of `gradbridge.execution.steps` and the borders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
import optree

from gradbridge import borders, trees
from gradbridge.audit import first_call, orders
from gradbridge.call_spec import CallSpec
from gradbridge.errors import NotDifferentiableError
from gradbridge.execution import derivation, steps
from gradbridge.execution.arguments import Arguments
from gradbridge.execution.cotangents import cotangents_to_guest
from gradbridge.execution.settings import BridgeSettings
from gradbridge.layout import Array, name_of
from gradbridge.protocol import Adapter


@dataclass(frozen=True)
class Call:
    """What is evaluated, before it is known where.

    Attributes:
        adapter: the guest model, or a derivative of one.
        spec: of its inputs.
        arguments: what the host's arguments are among the adapter's.
        dtype: the host's.
        settings: of the bridge.
        results: what the host's results are among the adapter's outputs; None where they are the same.
        wrt: of a derivative: the arguments whose gradients it returns.
        order: how many derivatives it is of a model.
        parent: the call that it is the derivative of.
    """

    adapter: Adapter
    spec: CallSpec
    arguments: Arguments
    dtype: np.dtype[Any]
    settings: BridgeSettings
    results: Arguments | None = None
    wrt: tuple[int, ...] = ()
    order: int = 0
    parent: Call | None = None

    @property
    def root(self) -> Call:
        """The call of the model that this is a derivative of; itself where it is none."""
        return self if self.parent is None else self.parent.root

    def by(self, adapter: Adapter) -> Call:
        """The same call of another adapter of the model."""
        arguments = Arguments.of(self.arguments.vectors, len(adapter.layout))
        return replace(self, adapter=adapter, spec=replace(self.spec, packed=False), arguments=arguments)

    def again(self, noise: int) -> Call:
        """The same call as it was made before with this noise: it draws the same numbers, and moves no state."""
        settings = self.settings if self.settings.draw_noise is None else self.settings.drawn
        return replace(self, spec=replace(self.spec, noise=noise, replay=True), settings=settings)

    @property
    def first_input(self) -> int:
        """Which of the host's arguments is the first input, after the weights or their vector."""
        return 1 if self.arguments.vectors[:1] == (True,) else len(self.adapter.layout)

    def leaf_shapes(self, values: Sequence[Any], wrt: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Of the leaves of some arguments."""
        layout, shapes = self.adapter.layout, list[tuple[int, ...]]()
        for i in wrt:
            if not self.arguments.vectors[i]:
                shapes.append(np.shape(values[i]))
            elif self.spec.packed:
                shapes.append((layout.size,))
            else:
                shapes += layout.shapes
        return shapes

    def evaluate(self, values: Sequence[Any], wrt: tuple[int, ...]) -> Evaluation:
        """Steps update and forward, and the borders around them.

        Args:
            values: the host's arguments, concrete: a flat vector or the weights, then the input leaves.
            wrt: which of them may be pulled back to.
        """
        arguments, settings = self.arguments, self.settings
        plain = settings.is_plain if wrt else settings.gives_plain_values
        if plain and arguments.first_only and (wrt == (0,) or not wrt) and not self.order:
            vector = values[0]
            if (
                vector.dtype is _FLOAT64
                and vector.flags.c_contiguous
                and not settings.observers.observed
                and wrt in arguments.known
            ):  # nearly every call: of the vector alone, with nothing unusual asked
                leaves = arguments.known[wrt]
                outputs, residuals = self.adapter.evaluate(vector, values[1:], self.spec, leaves, True)
                if hasattr(outputs, "dtype"):
                    array = self.adapter.border.view(outputs)
                    if array.dtype.kind == "f":
                        own = np.array(array, self.dtype)
                        return Evaluation(self, wrt, (own,), None, residuals, values, (array.dtype,))
                return self.given(outputs, residuals, values, wrt)
        call, values = self.prepared(values, wrt)
        if self.order:
            return call.evaluate_at(values, wrt)
        if settings.audit.awaits_call(name_of(self.dtype), bool(wrt)):
            looked_at: Evaluation = first_call.evaluated(call, values, wrt)
            return looked_at
        return call.remembered(values, wrt)

    def remembered(self, values: Sequence[Any], wrt: tuple[int, ...]) -> Evaluation:
        """The steps at values that are prepared, or what is remembered of them."""
        if self.settings.memory is None:
            return self.evaluate_at(values, wrt)
        evaluation: Evaluation = self.settings.memory.recall(self, values, wrt)
        return evaluation

    def prepared(self, values: Sequence[Any], wrt: tuple[int, ...]) -> tuple[Call, Sequence[Any]]:
        """The call with its noise, and the values checked and in the form that steps take."""
        settings, arguments, adapter = self.settings, self.arguments, self.adapter
        if not self.spec.lent:  # else they are arrays, floating where the host differentiates
            values = borders.admit_differentiated(values, wrt, self)
        if self.order:
            return self, values
        if arguments.vectors[:1] == (True,):
            vector = values[0]
            if vector.dtype != np.float64 or not vector.flags.c_contiguous:
                values = [np.ascontiguousarray(vector, np.float64), *values[1:]]
        if not settings.checks_finite and settings.draw_noise is None:
            return self, values
        is_flat = arguments.vectors[:1] == (True,)
        vector = values[0] if is_flat else adapter.layout.join(values[: self.first_input])
        if settings.checks_finite:
            borders.check_finite(vector, adapter.layout, adapter.label)
        if settings.draw_noise is None:
            return self, values
        return replace(self, spec=replace(self.spec, noise=settings.draw_noise(vector))), values

    def evaluate_at(self, values: Sequence[Any], wrt: tuple[int, ...]) -> Evaluation:
        """The steps at values that are prepared."""
        outputs, residuals = steps.evaluated(self, values, self.arguments.leaves(wrt))
        return self.given(outputs, residuals, values, wrt)

    def given(self, outputs: Any, residuals: Any, values: Sequence[Any], wrt: tuple[int, ...]) -> Evaluation:
        """Bring what the guest returned to the host."""
        adapter, results = self.adapter, self.results
        if results is not None:
            shapes = self.leaf_shapes(values, self.wrt)
            steps.check_results(adapter, outputs, range(len(shapes)), shapes, kinds=["fc"] * len(shapes))
            gradients = results.to_host(outputs, range(len(results.vectors)), adapter.border, self.dtype)
            guest_dtypes = tuple([g.dtype for g in gradients])
            return Evaluation(self, wrt, tuple(gradients), None, residuals, values, guest_dtypes)
        if type(outputs) in _CONTAINERS or trees.is_container(outputs):
            leaves, structure = trees.flatten(outputs, opens=True)
        else:
            leaves, structure = [outputs], None
        arrays, guest_dtypes = borders.outputs_to_host(
            leaves, self.dtype, adapter.label, adapter.traits.takes_complex, adapter.border
        )
        return Evaluation(self, wrt, tuple(arrays), structure, residuals, values, guest_dtypes)


_CONTAINERS = (tuple, list, dict)
_FLOAT64 = np.dtype(np.float64)
_shape_of = attrgetter("shape")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation.

    Attributes:
        call: that was evaluated.
        wrt: arguments that it can be pulled back to.
        outputs: the leaves in the host's dtype, new arrays.
        structure: of the outputs; None for one array alone, or for the gradients of a derivative.
        residuals: of the guest.
        values: the host's arguments.
        guest_dtypes: of the outputs as the guest returned them.
        tangents: of the outputs, where they were pushed.
    """

    call: Call
    wrt: tuple[int, ...]
    outputs: tuple[Array, ...]
    structure: optree.PyTreeSpec | None
    residuals: Any
    values: Sequence[Any]
    guest_dtypes: tuple[np.dtype[Any], ...]
    tangents: tuple[Array, ...] | None = None

    @property
    def adapter(self) -> Adapter:
        """That was evaluated."""
        return self.call.adapter

    @property
    def dtype(self) -> np.dtype[Any]:
        """The host's."""
        return self.call.dtype

    def shape(self, argument: int) -> tuple[int, ...]:
        """Of one of the host's arguments."""
        shape: tuple[int, ...] = np.shape(self.values[argument])
        return shape

    def argument_dtype(self, argument: int) -> np.dtype[Any]:
        """Of the gradient of one of the host's arguments."""
        value = self.values[argument]
        return (
            borders.host_dtype(value.dtype, self.call.dtype) if borders.is_inexact(value) else self.call.dtype
        )

    def assemble(self, leaves: Sequence[Any]) -> Any:
        """Output leaves, concrete or traced → the tree that the model returned."""
        return leaves[0] if self.structure is None else trees.unflatten(self.structure, leaves)

    def assemble_derivatives(self, leaves: Sequence[Any]) -> Any:
        """`assemble`, of what belongs to arrays alone: None in place of the rest."""
        if self.structure is None:
            return leaves[0]
        return trees.unflatten(trees.without_beside(self.structure), leaves)

    @property
    def merges(self) -> bool:
        """Whether `pull` is to take what `pull_to_boundary` of its recorded derivative left."""
        least = getattr(self.residuals, "merges_from", None)
        return self.call.order == 0 and least is not None and self.adapter.layout.size >= least

    def pull(
        self,
        cotangents: Sequence[Any],
        wrt: tuple[int, ...],
        left: Sequence[Any] = (),
        views: bool = False,
    ) -> list[Array]:
        """Steps zero and backward: one guest backward for all arguments together.

        Args:
            cotangents: one per output leaf, of its shape.
            wrt: arguments to pull back to.
            left: what `pull_to_boundary` of derivatives of this evaluation left to do here.
            views: whether gradients may share the guest's memory, as a caller may have it that copies them itself.

        Returns:
            A gradient per argument in the host's dtype, new arrays but for `views`.
        """
        call, outputs = self.call, self.outputs
        adapter, arguments = call.adapter, call.arguments
        if len(outputs) == len(cotangents) == 1 and call.results is None and not left:
            one, output = cotangents[0], outputs[0]
            if (
                type(one) is np.ndarray
                and one.dtype.kind == output.dtype.kind == "f"
                and one.shape == output.shape
                and arguments.first_only
                and wrt == (0,)
                and arguments.known.get(wrt)
                and not call.settings.observers.observed
                and one.size
                and (one.item(0) or one.any())
                and type(adapter).zero is Adapter.zero
                and adapter.results_are_typed
            ):  # nearly every pull
                natives = adapter.backward(self.residuals, cotangents, arguments.known[wrt])
                shapes = (self.values[0].shape,) if call.spec.packed else adapter.layout.shapes
                try:
                    fit = isinstance(natives, (list, tuple)) and tuple(map(_shape_of, natives)) == shapes
                except AttributeError:
                    fit = False
                if fit:
                    gradient = adapter.border.join(natives)
                    return [gradient if call.dtype is _FLOAT64 else gradient.astype(call.dtype)]
                return self.to_arguments(natives, wrt)  # says what is wrong
        if outputs[0].dtype.kind not in borders.INEXACT:
            self.require_inexact_output()
        arrays = cotangents_to_guest(cotangents, outputs, adapter.label)
        for array in () if left else arrays:
            # Most that are not zero show it in their first number, and a full look costs ten times as much.
            if array.size and (array.item(0) or array.any()):
                break
        else:
            if left:
                return self.to_arguments(steps.pulled(self, arrays, wrt, left), wrt)
            # Linear in the cotangents, so the guest need not be asked: what autograd's jacobian
            # pulls back is mostly zeros, wherever a program calls its model more than once.
            return [np.zeros(self.shape(i), self.argument_dtype(i)) for i in wrt]
        return self.to_arguments(steps.pulled(self, arrays, wrt), wrt, (), views)

    def differentiated(self, wrt: tuple[int, ...], products: bool = True) -> Any:
        """The pullback of this evaluation, a `Call`: ``(*arguments, *cotangents) ↦ gradients``, for the host to lift.

        It starts from what was recorded here, so it is to be called at the same arguments.

        Args:
            wrt: the arguments whose gradients it computes.
            products: whether it will be pulled back to the arguments, rather than to the cotangents alone.

        Raises:
            HigherOrderError: the guest cannot differentiate its derivative.
        """
        self.require_inexact_output()
        derivative: Call = derivation.derivative(self, wrt)
        orders.refuse_wrong(self, derivative, wrt, products)
        return derivative

    def zero_cotangents(self) -> list[Array]:
        """One array of zeros per output leaf."""
        return [np.zeros(y.shape, y.dtype if y.dtype.kind == "c" else self.dtype) for y in self.outputs]

    def require_inexact_output(self) -> None:
        """Raise if no output is floating.

        Raises:
            NotDifferentiableError
        """
        if all(y.dtype.kind not in borders.INEXACT for y in self.outputs):
            dtypes = ", ".join(str(y.dtype) for y in self.outputs)
            raise NotDifferentiableError(
                f"{self.adapter.label} returned only {dtypes}, which has no derivative; return a floating "
                f"array (probabilities rather than a class, say)"
            )

    def to_arguments(
        self, natives: Sequence[Any], wrt: tuple[int, ...], lead: tuple[int, ...] = (), views: bool = False
    ) -> list[Array]:
        """Natives, one per leaf of the arguments → a gradient per argument in the host's dtype, checked."""
        call = self.call
        arguments = call.arguments
        shapes = call.leaf_shapes(self.values, wrt)
        expected = [(*lead, *shape) for shape in shapes] if lead else shapes
        kinds: list[str] = []
        for i in () if call.adapter.results_are_typed else wrt:
            is_complex = self.values[i].dtype.kind == "c"  # admitted: an array
            kinds += ["fc" if is_complex else "f"] * len(arguments.leaves((i,)))
        steps.check_results(call.adapter, natives, arguments.leaves(wrt), expected, kinds=kinds)
        return arguments.to_host(natives, wrt, call.adapter.border, call.dtype, lead, views)

    def with_own_outputs(self) -> Evaluation:
        """The same with outputs that the caller may write to."""
        return replace(self, outputs=tuple(y.copy() for y in self.outputs))
