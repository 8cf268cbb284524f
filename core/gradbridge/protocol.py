"""The protocol: what every guest model speaks and every host lifts.

An adapter is a function closed under differentiation::

    (*weights, *inputs)  ↦  outputs

with the four steps update, forward, zero and backward, and `pullback`, which returns
*another adapter*: the VJP of this one, computed by the guest. A host half turns any adapter
into a differentiable function of that host; where the host differentiates the derivative
itself, it lifts ``adapter.pullback(...)``. So every order follows by recursion.

Arguments are leaves, counted from the weights: one for each entry of the layout, then the leaves
of the inputs. A function without parameters has an empty layout, and its first input is argument
0. Where a host holds one flat vector of all weights, core cuts and joins it
(`gradbridge.execution.arguments`); no adapter is handed it as an argument of its own, but for those
that ask to have small weights packed (`Traits.packs`).

Arrays come in as NumPy's, or as any DLPack producer's, and go out as the guest's own: one border
in core makes them the host's (`gradbridge.borders`).

Nobody need write an adapter by hand: `gradbridge.framework` asks for less, and core derives the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, NoReturn

from gradbridge.borders import Border
from gradbridge.call_spec import ArgumentNames, CallSpec
from gradbridge.errors import NOT_OFFERED, HigherOrderError, Unsupported
from gradbridge.inspection import Inspectable
from gradbridge.layout import Array as Array
from gradbridge.layout import ParameterLayout
from gradbridge.options import GuestOptions as GuestOptions  # to be had here, too
from gradbridge.options import refuse_unknown_options as refuse_unknown_options
from gradbridge.traits import ArraySpec as ArraySpec
from gradbridge.traits import Traits as Traits

PROTOCOL_VERSION = 2


class Adapter(Inspectable, ABC):
    """One guest model as a function of arrays, with its derivative.

    Subclasses are final: vary an adapter by wrapping it. All methods may be called from any
    number of threads at once. The laws, by the names that `gradbridge.testing` checks them:

    1. right       backward agrees with a float64 reference to the guest's own rounding
    2. linear      backward is linear in the cotangent, and repeatable
    3. re-entrant  calls in flight do not see each other; pull back in any order, any thread
    4. fresh       a call at new params never sees old ones
    5. pure        the user's model, its mode and the caller's arrays stay as they were
    6. borders     inputs come as NumPy or DLPack arrays, outputs and gradients leave as the guest's
    7. never silently wrong: what has no derivative raises; no influence is exact zeros
    8. one forward per gradient, one backward for all arguments together; of any order, where it is recorded
    9. a function  the same params, inputs and noise give the same outputs
    10. audited    what it tells about itself is so: `in_dtype`, `fresh`, `isolate_calls`, `strangers`

    What an adapter cannot do it says in one way, by raising `Unsupported` with the reason; core then
    takes another way, and `gradbridge.bridge(...).capabilities` shows the reason.
    """

    #: What errors call the model, e.g. ``Net``.
    label: str
    #: The weights in order; empty for a function of arrays alone.
    layout: ParameterLayout

    #: What is known of it before anything is computed.
    traits: Traits = Traits()

    #: What the model calls its inputs, where that is known, so that users may name them.
    argument_names: ArgumentNames = ArgumentNames()

    #: How its gradient comes about, where that is worth telling users: ``"numeric: …"``.
    gradient_note: str = ""

    #: Whether `mode="train"` makes this model random, and whether a forward moves state of its own there.
    stochastic: bool = False
    moves: bool = False

    #: Whether what it returns is of the right dtypes by its making.
    results_are_typed: bool = False

    #: {optional operation: why it was refused}, for models that showed it when it was tried.
    refusals_met: Mapping[str, str] = MappingProxyType({})

    #: Which step `forward` is: a derivative that starts from a recorded forward makes a backward.
    step: str = "forward"

    @cached_property
    def border(self) -> Border:
        """How its arrays become NumPy's, and a flat vector its weights."""
        return Border(self.layout)

    @abstractmethod
    def weights(self) -> Sequence[Any]:
        """The model's present weights, one array for each entry of the layout; not to be written to."""

    @abstractmethod
    def model(self, weights: Sequence[Array]) -> Any:
        """A native model that holds these weights. Law 5: a new object; the user's own is not touched."""

    @abstractmethod
    def update(self, weights: Sequence[Any]) -> Any:
        """Step 1, load parameters: bring the weights into the guest's form.

        Law 4: the result depends on `weights` alone. Law 3: it is a value that travels with the
        call, not state on the adapter; a later update changes nothing about it.

        Args:
            weights: an array for each entry of the layout; not kept where the caller could change
                them, not written to.

        Returns:
            The loaded weights, opaque; handed to `forward`.
        """

    def update_flat(self, vector: Array, packed: bool) -> Any:
        """`update` of weights in one vector, (layout.size,) float64; with `packed` they are to be one leaf."""
        return self.update(self.layout.cut(vector))

    @abstractmethod
    def forward(
        self, loaded: Any, inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """Step 2, compute the outputs and keep what their pullback will need.

        Law 5: the inputs are not written to. Law 3: residuals hold no reference to arrays that
        the caller may change in place. Law 9: noise comes from `spec.noise` only.

        Args:
            loaded: what `update` returned for this call.
            inputs: leaves. Floating arrays, integer and boolean arrays, and whatever else the
                user passed (strings, Python integers …), which goes through as it is.
            spec: how the leaves fit together, and the call's noise.
            wrt: arguments that `backward` may be asked for; empty when nobody differentiates.

        Returns:
            (outputs, residuals): a pytree of the guest's own arrays as the model returned it,
            and the opaque residuals, None if `wrt` is empty.

        Raises:
            GuestError: the model raised.
            InputError: an input does not fit the model.
            OutputError: the model returned something that is not an array.
        """

    def evaluate(
        self, weights: Any, inputs: Sequence[Any], spec: CallSpec, wrt: tuple[int, ...], flat: bool
    ) -> tuple[Any, Any]:
        """Steps update and forward together: what core calls where nobody observes the steps.

        Args:
            weights: as for `update`; with `flat` the vector, as for `update_flat`.
            inputs, spec, wrt: as for `forward`.
            flat: whether the host holds all weights in one vector.
        """
        loaded = self.update_flat(weights, spec.packed) if flat else self.update(weights)
        return self.forward(loaded, inputs, spec, wrt)

    def zero(self, residuals: Any) -> None:
        """Step 3, clear whatever the framework accumulates, so that backward starts at zero.

        Law 2. Frameworks that return gradients have nothing to do.
        """

    @abstractmethod
    def backward(self, residuals: Any, cotangents: Sequence[Any], wrt: tuple[int, ...]) -> list[Any]:
        """Step 4, pull output cotangents back to the chosen arguments: v ↦ vᵀ ∂f/∂argument.

        Law 2: linear in the cotangents; calling twice gives equal results. Law 3: a later
        update or forward leaves this result unchanged.

        Args:
            residuals: exactly what `forward` returned with these outputs; opaque.
            cotangents: one array per output leaf, of that output's shape, floating.
            wrt: arguments to pull back to, some of those that `forward` was told.

        Returns:
            One array of the guest's own per argument, of its shape, floating. Exact zeros where
            there is no influence.

        Raises:
            NotDifferentiableError: the outputs cannot be differentiated.

        Source:
            Griewank & Walther (2008), Evaluating Derivatives, ch. 3.
        """

    def pull(self, residuals: Any, cotangents: Sequence[Any], wrt: tuple[int, ...]) -> list[Any]:
        """Steps zero and backward together: what core calls where nobody observes the steps."""
        self.zero(residuals)
        return self.backward(residuals, cotangents, wrt)

    def backward_many(self, residuals: Any, cotangents: Sequence[Any], wrt: tuple[int, ...]) -> list[Any]:
        """Step 4 for many cotangents at once; a guest that can do it in one computation should.

        Law 1: equal to `backward` of each.

        Args:
            residuals: as for `backward`.
            cotangents: one per output leaf, shape (many, *output shape), floating.
            wrt: as for `backward`.

        Returns:
            One array per argument, shape (many, *argument shape).

        Raises:
            Unsupported: the guest cannot, as here.
        """
        raise Unsupported(self.refusal("backward_many"))

    def row_jacobians(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        has_rows: tuple[bool, ...],
    ) -> list[list[Any]]:
        """Per-example Jacobians, each row as if it were alone, by arguments that all rows share.

        Whether they are independent is for the caller to compare. No state moves.

        Args:
            loaded: what `update` returned.
            inputs: as for `forward`; the first axis of some of them are the rows.
            spec: as for `forward`.
            wrt: shared arguments: weights, and inputs without rows.
            has_rows: for each input leaf, whether its first axis are the rows.

        Returns:
            For each floating output leaf, in order, one array per argument: (rows, *shape of the
            output for one row, *argument shape).

        Raises:
            Unsupported: the guest cannot, as here.
        """
        raise Unsupported(self.refusal("row_jacobians"))

    def pushforward(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Any],
    ) -> tuple[Any, list[Any]]:
        """Outputs, and tangents of the chosen arguments pushed to them: t ↦ ∂f/∂argument · t, in one forward.

        Law 1: equal to what the pullback's pullback gives, which is used where this is unsupported.
        Law 9: noise comes from `spec.noise`; state moves as in a forward unless `spec.replay`.

        Args:
            loaded: what `update` returned.
            inputs, spec: as for `forward`.
            wrt: arguments that move.
            tangents: one per argument, of its shape, floating.

        Returns:
            (outputs, tangents): the outputs as `forward` gives them; and one array per output leaf,
            of its shape, the sum over the arguments: zeros for outputs that are not floating.

        Raises:
            Unsupported: the guest has no forward mode, or none for this model, as here.

        Source:
            Griewank & Walther (2008), Evaluating Derivatives, section 3.1.
        """
        raise Unsupported(self.refusal("pushforward"))

    def pushforward_many(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        spec: CallSpec,
        wrt: tuple[int, ...],
        tangents: Sequence[Any],
    ) -> list[Any]:
        """The tangents of `pushforward`, for many in one computation. No state moves.

        Args:
            loaded, inputs, spec, wrt: as for `pushforward`.
            tangents: one per argument, shape (many, *argument shape), floating.

        Returns:
            One array per output leaf, shape (many, *output shape).

        Raises:
            Unsupported: the guest cannot, as here.
        """
        raise Unsupported(self.refusal("pushforward_many"))

    def pullback(self, spec: CallSpec, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        """The VJP of this adapter, as an adapter.

        The result is the function ``(*weights, *inputs, *cotangents) ↦ a gradient for each of
        wrt, in order``, computed by the guest, so that it can be differentiated again. Its layout
        is this one's.

        Args:
            spec: of the call to differentiate; its noise is used again.
            wrt: arguments whose gradients the new adapter returns.
            residuals: what `forward` returned for that call, where it was made and the new adapter
                will be called at the same weights and inputs alone: then it may start from there, and
                make no forward of its own.

        Raises:
            HigherOrderError: this guest cannot differentiate its derivative.
        """
        self.refuse_higher_order()

    def output_spec(self, inputs: Sequence[Any], spec: CallSpec) -> Any:
        """Shapes and dtypes of the outputs, without computing them.

        Args:
            inputs: an `ArraySpec` for each input leaf that is an array, and the others as they are.
            spec: how they fit together.

        Returns:
            The output tree, with an `ArraySpec` in place of each array.

        Raises:
            Unsupported: they are not known before the model has run.
            GuestError, InputError: such inputs do not fit the model.
        """
        raise Unsupported(self.refusal("output_spec"))

    def refusal(self, operation: str) -> str:
        """Why this adapter does not offer one of its optional operations; "" where it may.

        Args:
            operation: name of a method that may raise `Unsupported`. ``"pullback"`` asks whether the
                gradient can be differentiated again.
        """
        if getattr(type(self), operation) is not getattr(Adapter, operation):
            return ""
        return f"the backend of {self.label} {NOT_OFFERED[operation]}"

    def refuse_higher_order(self) -> NoReturn:
        """Raise the error that says why there is no derivative of the derivative."""
        raise HigherOrderError(
            f"a derivative of the derivative of {self.label} was asked for, and its backend cannot "
            f"differentiate a gradient again; use first-order derivatives only, or a guest that "
            f"has higher orders"
        )
