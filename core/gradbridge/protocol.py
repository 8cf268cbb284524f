"""The protocol: what every guest model speaks and every host lifts.

An adapter is a function closed under differentiation::

    (params, *inputs)  ↦  outputs

with the four steps update, forward, zero and backward, and `pullback`, which returns
*another adapter*: the VJP of this one, computed by the guest. A host half turns any adapter
into a differentiable function of that host; where the host differentiates the derivative
itself, it lifts ``adapter.pullback(...)``. So every order follows by recursion.

Arguments are counted from the parameters: position 0 is the flat vector, position i ≥ 1 is
the i-th leaf of the inputs. A function without parameters has a layout of size 0 and simply
never gets asked for position 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, NoReturn

import numpy as np
import numpy.typing as npt
import optree

from gradbridge.errors import HigherOrderError, OptionError
from gradbridge.layout import ParameterLayout
from gradbridge.signatures import ArgumentNames

PROTOCOL_VERSION = 1

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Signature:
    """How one call's flat inputs fit together, and where its noise comes from.

    Attributes:
        structure: the pytree of ``(args, kwargs)`` that the input leaves came from.
        noise: seed of the guest's random numbers in this call. Always the same for the same
            seed; a replay of the call uses the same one, so it draws the same masks.
        replay: True where the call repeats one that was already made (a derivative of a
            derivative). State that moves once per forward (BatchNorm statistics) stays put.
    """

    structure: optree.PyTreeSpec
    noise: int = 0
    replay: bool = False

    @classmethod
    def flat(cls, count: int, noise: int = 0) -> Signature:
        """The signature of a function of `count` positional arrays."""
        return cls(_flat_structure(count), noise)

    @property
    def count(self) -> int:
        """Number of input leaves."""
        return self.structure.num_leaves

    def bind(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Leaves → ``(args, kwargs)`` as the user passed them."""
        bound: Any = optree.tree_unflatten(self.structure, leaves)
        args, kwargs = bound
        return args, kwargs

    def replayed(self) -> Signature:
        """The same call again, leaving moving state alone."""
        return self if self.replay else replace(self, replay=True)


@cache
def _flat_structure(count: int) -> optree.PyTreeSpec:
    call: Any = ((0,) * count, {})
    return optree.tree_structure(call, namespace="gradbridge")


class Adapter(ABC):
    """One guest model as a function of arrays, with its derivative.

    Subclasses are final: vary an adapter by wrapping it. All methods may be called from any
    number of threads at once. The laws, by the names that `gradbridge.testing` checks them:

    1. right       backward agrees with a float64 reference to the guest's own rounding
    2. linear      backward is linear in the cotangent, and repeatable
    3. re-entrant  calls in flight do not see each other; pull back in any order, any thread
    4. fresh       a call at new params never sees old ones
    5. pure        the user's model, its mode and the caller's arrays stay as they were
    6. borders     inputs come as NumPy arrays, outputs and gradients leave as NumPy arrays
    7. never silently wrong: what has no derivative raises; no influence is exact zeros
    8. one forward per gradient, and one backward for all arguments together
    9. a function  the same params, inputs and noise give the same outputs
    """

    #: Version of this protocol that the adapter was written for.
    protocol_version: ClassVar[int] = PROTOCOL_VERSION

    #: What errors call the model, e.g. ``Net``.
    label: str

    #: Where each parameter lies in the flat vector; size 0 for a function of arrays alone.
    layout: ParameterLayout

    #: What the model calls its inputs, where that is known, so that users may name them.
    argument_names: ArgumentNames = ArgumentNames()

    #: How its gradient comes about, where that is worth telling users: ``"numeric: …"``.
    gradient_note: str = ""

    #: Why this model has no derivative of its derivative although `pullback` returns an adapter: what
    #: users of `capabilities` are told. "" where it has one, or `pullback` itself refuses.
    second_order_refusal: str = ""

    #: Whether `pushforward` may answer, in a class that has one.
    has_forward_mode: bool = True

    #: Whether a bridge compares its first `pushforward` with `backward`, to be sure that one is the
    #: transposed of the other. Not where users write both, or where a backward is dear.
    is_forward_mode_checked: bool = True

    #: Whether `mode="train"` makes this model random or moves state of its own.
    stochastic: bool = False

    #: Whether inputs and outputs may be complex. Law 1 for them: a cotangent c of a complex array y
    #: pairs with a tangent dy as Re Σ c dy, so that a gradient is ∂/∂x - i ∂/∂y (autograd, JAX), not
    #: its conjugate (PyTorch, TensorFlow); gradients are complex for complex arguments and real for
    #: real ones. A guest that says False is never handed any.
    takes_complex: bool = False

    @abstractmethod
    def params(self) -> Array:
        """The model's present parameters.

        Returns:
            (layout.size,) float64, a new array.
        """

    @abstractmethod
    def model(self, params: Array) -> Any:
        """A native model of the guest's framework that holds these parameters.

        Law 5: a new object; the user's own is not touched.
        """

    @abstractmethod
    def update(self, params: Array) -> Any:
        """Step 1, load parameters: bring the flat vector into the guest's form.

        Law 4: the result depends on `params` alone. Law 3: it is a value that travels with the
        call, not state on the adapter; a later update changes nothing about it.

        Args:
            params: (layout.size,) float64; not kept, not written to.

        Returns:
            The loaded parameters, opaque; handed to `forward`.
        """

    @abstractmethod
    def forward(
        self, loaded: Any, inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """Step 2, compute the outputs and keep what their pullback will need.

        Law 5: the inputs are not written to. Law 3: residuals hold no reference to arrays that
        the caller may change in place. Law 9: noise comes from `signature.noise` only.

        Args:
            loaded: what `update` returned for this call.
            inputs: flat leaves. Floating arrays, integer and boolean arrays, and whatever
                else the user passed (strings, Python integers …), which goes through as it is.
            signature: how the leaves fit together, and the call's noise.
            wrt: positions that `backward` may be asked for; empty when nobody differentiates.

        Returns:
            (outputs, residuals): a pytree of NumPy arrays as the model returned it, new
            arrays that the caller owns; and the opaque residuals, None if `wrt` is empty.

        Raises:
            GuestError: the model raised.
            InputError: an input does not fit the model.
            OutputError: the model returned something that is not an array.
        """

    def zero(self, residuals: Any) -> None:  # noqa: B027, most frameworks have nothing to clear
        """Step 3, clear whatever the framework accumulates, so that backward starts at zero.

        Law 2. Frameworks that return gradients rather than add them up have nothing to do.
        """

    @abstractmethod
    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """Step 4, pull output cotangents back to the chosen arguments: v ↦ vᵀ ∂f/∂argument.

        Law 2: linear in the cotangents; calling twice gives equal results. Law 3: a later
        update or forward leaves this result unchanged.

        Args:
            residuals: exactly what `forward` returned with these outputs; opaque.
            cotangents: one per output leaf, of that output's shape, floating.
            wrt: positions to pull back to, a subset of those that `forward` was told.

        Returns:
            One array per position, shape of that argument, floating; position 0 gives
            (layout.size,). The caller owns them. Exact zeros where there is no influence.

        Raises:
            NotDifferentiableError: the outputs cannot be differentiated.

        Source:
            Griewank & Walther (2008), Evaluating Derivatives, ch. 3.
        """

    def backward_many(
        self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]
    ) -> list[Array] | None:
        """Step 4 for many cotangents at once; a guest that can do it in one computation should.

        Law 1: equal to `backward` of each.

        Args:
            residuals: as for `backward`.
            cotangents: one per output leaf, shape (many, *output shape), floating.
            wrt: as for `backward`.

        Returns:
            One array per position, shape (many, *argument shape). None where the guest cannot, as
            here; `backward` is then called for each.
        """
        return None

    def row_jacobians(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        rowed: tuple[bool, ...],
    ) -> list[list[Array]] | None:
        """Jacobians of each row as if it were alone, with respect to arguments that all rows share.

        Whether the rows are independent in truth is not asked here; the caller compares the result
        with what `backward` gives. No state moves.

        Args:
            loaded: what `update` returned.
            inputs: as for `forward`; the first axis of some of them are the rows.
            signature: as for `forward`.
            wrt: positions of shared arguments: 0, and inputs without rows.
            rowed: for each input leaf, whether its first axis are the rows.

        Returns:
            For each floating output leaf, in order, one array per position: (rows, *shape of the
            output for one row, *argument shape), the params' being (layout.size,). None where the
            guest cannot, as here.
        """
        return None

    def pushforward(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        """Push tangents of the chosen arguments to the outputs: t ↦ ∂f/∂argument · t, in one forward.

        For guests with a forward mode of their own. Law 1: equal to what the pullback's pullback
        gives, which is used in its place where this returns None. Law 9: noise comes from
        `signature.noise`, and no state moves.

        Args:
            loaded: what `update` returned.
            inputs, signature: as for `forward`.
            wrt: positions that move.
            tangents: one per position, of that argument's shape, floating; (layout.size,) for 0.

        Returns:
            One array per output leaf, of that output's shape, the sum over the positions; zeros for
            outputs that are not floating. None where the guest cannot, as here.

        Source:
            Griewank & Walther (2008), Evaluating Derivatives, section 3.1.
        """
        return None

    def pushforward_many(
        self,
        loaded: Any,
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        """`pushforward` of many tangents in one computation.

        Args:
            loaded, inputs, signature, wrt: as for `pushforward`.
            tangents: one per position, shape (many, *argument shape), floating.

        Returns:
            One array per output leaf, shape (many, *output shape). None where the guest cannot, as here.
        """
        return None

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> Adapter:
        """The VJP of this adapter, as an adapter.

        The result is the function ``(params, *inputs, *cotangents) ↦ (gradient for each of
        wrt, in order)``, computed by the guest, so that it can be differentiated again.

        Args:
            signature: of the call to differentiate; its noise is used again.
            wrt: positions whose gradients the new adapter returns.

        Raises:
            HigherOrderError: this guest cannot differentiate its derivative.
        """
        self.refuse_higher_order()

    def refuse_higher_order(self) -> NoReturn:
        """Raise the error that says why there is no derivative of the derivative."""
        raise HigherOrderError(
            f"a derivative of the derivative of {self.label} was asked for, and its backend cannot "
            f"differentiate a gradient again; use first-order derivatives only, or a guest that "
            f"has higher orders"
        )


def refuse_unknown_options(backend: str, options: dict[str, Any], known: Sequence[str]) -> None:
    """Raise for options that a guest half does not know.

    Raises:
        OptionError: names the option and those that exist.
    """
    unknown = [name for name in options if name not in known]
    if unknown:
        has = f"it has {', '.join(known)}" if known else "it has none of its own"
        raise OptionError(f"backend {backend!r} has no option {', '.join(map(repr, unknown))}; {has}")


@dataclass(frozen=True)
class GuestOptions:
    """What a guest half is told besides the model: the keyword arguments of `gradbridge.bridge`.

    Attributes:
        params: the parameter pytree of a function model, else None.
        dtype: the dtype to compute in, e.g. ``"float64"``; None keeps the model's own.
        device: the device to compute on; None keeps the model's own.
        mode: ``"eval"`` or ``"train"``.
        extra: options of this backend alone.
    """

    params: Any = None
    dtype: str | None = None
    device: Any = None
    mode: str = "eval"
    extra: dict[str, Any] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.extra is None:
            object.__setattr__(self, "extra", {})
        if self.dtype is not None and not isinstance(self.dtype, str):
            object.__setattr__(self, "dtype", _named_dtype(self.dtype))


def _named_dtype(dtype: Any) -> str:
    name = getattr(dtype, "name", None)
    if isinstance(name, str):
        return name
    if isinstance(dtype, type) and issubclass(dtype, (np.generic, float)):
        return np.dtype(dtype).name
    return str(dtype).rsplit(".", 1)[-1]
