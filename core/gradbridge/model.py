"""How one kind of native model is called with given weights: what a backend says of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import numpy as np

from gradbridge.call_spec import ArgumentNames, CallSpec
from gradbridge.closures import Surroundings
from gradbridge.errors import GuestError
from gradbridge.inspection import Inspectable, Stranger
from gradbridge.layout import ParameterLayout
from gradbridge.wording import given, in_short, without_params

T = TypeVar("T")


class Model(Inspectable, ABC):
    """How one kind of native model is called with given weights.

    Attributes:
        label: what errors call it.
        layout: of its weights.
        dtypes: of each weight in the computation, the framework's.
        dtype: that floating inputs are cast to, the framework's; None keeps theirs.
        argument_names: what it calls its inputs.
        draws: whether it draws random numbers, or moves state (`Adapter.stochastic`).
        moves: whether a forward leaves another state behind (`move`).
        shares_state: whether it is the `in_eval_mode` of one that moves its state, which it is to `follow`: then it reads
            it anew in each call.
        any_rows: whether it takes any length of its inputs' first axes, so that one trace is for all.
        surroundings: what it reads from outside as it is traced, for a framework that compiles; None where
            that is nothing that could change.
    """

    label: str
    layout: ParameterLayout
    dtypes: Sequence[Any] = ()
    dtype: Any = None
    argument_names: ArgumentNames = ArgumentNames()
    draws: bool = False
    moves: bool = False
    any_rows: bool = False
    surroundings: Surroundings | None = None

    @abstractmethod
    def weights(self) -> Sequence[Any]:
        """Its present weights: arrays that NumPy reads."""

    @abstractmethod
    def native(self, weights: Sequence[np.ndarray[Any, Any]]) -> Any:
        """A new native model that holds these; the user's own is not touched."""

    @abstractmethod
    def call(
        self, weights: Sequence[Any], inputs: list[Any], spec: CallSpec, extras: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        """(output tree of natives, state after it or ()), a pure function of these natives.

        Args:
            weights: one native each.
            inputs: leaves, natives and others; `spec.bind` makes them arguments.
            spec: of the call; its noise is not to be read, it comes with `extras`.
            extras: what `extras()` gave for this call.
        """

    def leaf(self, framework: Any, index: int, array: Any, inputs: Sequence[Any]) -> Any:
        """An input array at its border."""
        return framework.asarray(array, self.dtype)

    def extras(self, noise: int) -> Sequence[Any]:
        """Leaves of its own: bits of a key made from the noise, state as it stands."""
        return ()

    def move(self, after: Sequence[Any]) -> None:
        """Take over the state that a forward left behind."""

    def follow(self, other: Self) -> None:
        """Take over the state of the same model in another precision (`in_dtype`) or mode, in dtypes of its own."""

    def isolated(self, thunk: Callable[[], T], inputs: Sequence[Any], noise: int | None, record: bool) -> T:
        """Run a step so that ambient state is neither changed nor trusted (law 9). It may be run twice.

        Args:
            thunk: the step: loading, a forward, a backward, a map.
            inputs: of the call.
            noise: seed of the random numbers; None where nothing is drawn.
            record: whether gradients are recorded or taken.
        """
        return thunk()

    def inlines(self) -> bool:
        """Whether it computes what it is to compute as a part of a program of its own framework, here and now.

        With the noise of the bridge's own seed, if it draws numbers; no state can move there.
        """
        return not self.draws

    def within(self, compute: Callable[[list[Any]], T], weights: list[Any], others: list[Any]) -> T:
        """Run or trace its computation as a part of a program of its own framework: `isolated`, where that calls.

        What the program decides for all of itself stays (devices, precision); what decides for each operation is the
        model's own.

        Args:
            compute: a `Computation`.
            weights, others: its leaves, which belong to that program and are not to be written to.

        Raises:
            Unsupported: it cannot be a part of that program, as it turns out.
        """
        return compute([*weights, *others])

    def quick_part(
        self, spec: CallSpec, run: Callable[[Sequence[Any]], Any]
    ) -> Callable[[Sequence[Any]], Any]:
        """`within` for calls with which nothing is unusual, and all around it; as it is here.

        Args:
            spec: of the calls.
            run: natives, weights and inputs → what the model returns, in any case.
        """
        return run

    def keep_for_rerun(self) -> bool:
        """Before a call is made again: make this and later calls keep what they are computed with.

        Returns:
            False where that makes no difference, so that there is no use in another try.
        """
        return False

    def stranger(self, native: Any) -> Stranger:
        """What one of `Program.strangers` is to the model.

        Args:
            native: the array.
        """
        return Stranger(f"an array of shape {tuple(native.shape)} from outside of the model", False)

    def explained(self, error: Exception, inputs: Sequence[Any], doing: str = "") -> Exception:
        """`explain`, and what to do where a function lacks its params."""
        try:
            told = self.explain(error, inputs, doing)
        except Exception:  # a layer that is not what it was taken for: the error itself must not get lost
            told = Model.explain(self, error, inputs, doing)
        more = without_params(error, self.layout) if type(told) is GuestError else ""
        return GuestError(f"{told}{more}") if more else told

    def explain(self, error: Exception, inputs: Sequence[Any], doing: str = "") -> Exception:
        """The error of ours for one of the model's, or of its framework; itself where it is not a failure.

        Args:
            error: what was raised.
            inputs: of the call.
            doing: what was done where it was not a forward: ``"the derivative of"``.
        """
        what = f"{doing} {self.label}" if doing else self.label
        return GuestError(f"{what} failed on {given(inputs)}: {in_short(error)}")
