"""What a model tells about itself, so that a bridge can find out whether it may be trusted (law 10)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Self

from gradbridge.errors import Unsupported
from gradbridge.layout import Array


class Stranger(NamedTuple):
    """An array that took part in a call, could have a gradient, and is none of the call's arguments.

    Attributes:
        name: what it is, in words that its owner finds it by: ``"scale, by way of the attribute act"``.
        is_parameter: whether the layout has it, so that the call was computed with another value than
            the one that was handed in.
    """

    name: str
    is_parameter: bool


class Inspectable:
    """The half of an adapter, and of a model, that an audit asks. Everything has a default that tells nothing."""

    label: str

    #: Whether it is the `in_eval_mode` of one that moves its state, and reads that anew in each call.
    shares_state: bool = False

    #: A block in which no other thread moves the state that it reads, so that its calls can be compared.
    steady: AbstractContextManager[Any] = nullcontext()

    def in_dtype(self, name: str) -> Self:
        """This model as it was when it was bridged, computing in another floating dtype.

        Args:
            name: as NumPy calls it, ``"float64"``.

        Returns:
            Itself where it computes in that dtype already, or in one precision alone, as here.

        Raises:
            UnknownModelError, OptionError: it cannot be computed in that dtype; says why.
        """
        return self

    def in_eval_mode(self) -> Self:
        """This model, which was bridged with ``mode="train"``, in eval mode, with the state that it moves from now on.

        Returns:
            Itself where the mode makes no difference.

        Raises:
            Unsupported: there is no telling, as here.
        """
        raise Unsupported(
            f"{self.label} was bridged with mode='train', and its backend does not say how it is evaluated in eval mode "
            f"(in_eval_mode); bridge it with mode='eval', and call that with the trained params"
        )

    def statistics(self) -> Mapping[str, Array]:
        """What forwards in train mode move, by name, copied; empty of a model that moves nothing, or does not tell."""
        return {}

    def set_statistics(self, arrays: Mapping[str, Array]) -> None:
        """Go on from other statistics; those that are not named stay.

        Args:
            arrays: by the names that `statistics` gives, of the same shapes.
        """

    def fresh(self) -> Self | None:
        """This model as if it had never been called; None where there is no telling, as here.

        A model that keeps something between calls (a memo, a counter, statistics of its first batch)
        shows it in other outputs than a fresh one gives.
        """
        return None

    def isolate_calls(self) -> bool:
        """From now on compute each call with a fresh copy, which keeps nothing for the next one.

        Returns:
            False where that makes no difference, as here, or where it is so already.
        """
        return False

    def renew_pulls(self) -> bool:
        """From now on make a call again before it is pulled back another time.

        Returns:
            False where that makes no difference, as here, or where it is so already.
        """
        return False

    def inlined(
        self, host: str, spec: Any, constants: Mapping[int, Any]
    ) -> Callable[[Sequence[Any]], Any] | None:
        """This guest as a part of a program of its own framework; None where it is called as any other, as here.

        Args:
            host: the backend of the program.
            spec: of the call (`CallSpec`).
            constants: {index of an input leaf: what is not an array}.

        Returns:
            Natives, the weights (one leaf where `spec` has them packed) and the inputs that are arrays → the
            output tree of natives: nothing but operations of the framework, which differentiates, maps and
            compiles them as its own.
        """
        return None

    def strangers(self, residuals: Any) -> Sequence[Stranger]:
        """Arrays with a gradient that took part in a call and are none of its arguments.

        Args:
            residuals: of the call.
        """
        return ()

    def unreached(self, residuals: Any) -> Sequence[int]:
        """Arguments that a call was recorded by and that no derivative of it leads to, as far as that shows; none here.

        Args:
            residuals: of the call.
        """
        return ()

    def operations(self, residuals: Any) -> Hashable:
        """Which operations a call was made of, as far as that shows; None where it does not, as here.

        Python that branches on numbers makes calls of different ones: what was found to be right for some is
        looked at again for others.

        Args:
            residuals: of the call.
        """
        return None
