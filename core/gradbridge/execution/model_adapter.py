"""What an adapter of a `Framework` and a `Model` tells of the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.errors import GradbridgeError, GuestError, NotDifferentiableError, Unsupported
from gradbridge.forks import fork_safe_lock
from gradbridge.framework import Computation, Framework, Model, Program
from gradbridge.inspection import Stranger
from gradbridge.layout import Array
from gradbridge.protocol import Adapter

T = TypeVar("T")


@dataclass
class Moved:
    """Which of the precisions and modes of one model has moved its state last; they share it.

    Attributes:
        times: how often one has.
        by: which.
        lock: of the state. Whoever moves it reads, computes and moves under this, or a move by another thread is lost.
        copying: held by who takes over the state of another one. Not `lock`: a framework may have another thread
            evaluate what an audit, which holds that, waits for.
    """

    times: int = 0
    by: Model | None = None
    lock: Any = field(default_factory=fork_safe_lock, repr=False)
    copying: Any = field(default_factory=fork_safe_lock, repr=False)

    def alone(self, step: Callable[[], T]) -> T:
        """Run a step that moves the state."""
        with self.lock:
            return step()

    def __reduce__(self) -> tuple[Any, ...]:
        return Moved, (self.times, self.by)  # locks are of a process


class ModelAdapter(Adapter):
    """The half of `FunctionalAdapter` that tells of its model.

    Args:
        framework: the autodiff primitives.
        source: the model.
    """

    results_are_typed = True
    refusals_met: dict[str, str]

    #: Whether each call is made again before it is pulled back another time.
    renews: bool

    #: Whether arrays of others were seen to take part, which are constants here: within a program of theirs they would
    #: be differentiated.
    has_strangers = False

    def __init__(self, framework: Framework, source: Model) -> None:
        self.traits = framework.traits  # first, and so first in a pickle: see `Runtime.__reduce__`
        self.framework, self.source = framework, source
        self._moved, self._seen = Moved(), 0

    def _move(self, after: Sequence[Any]) -> None:
        """Take over the state that a forward left behind."""
        self.source.move(after)
        self._has_moved()

    def _has_moved(self) -> None:
        """From now on the others of this model follow this one."""
        self._moved.by = self.source
        self._moved.times += 1
        self._seen = self._moved.times

    def _follow(self) -> None:
        """Take over the state that a forward in another precision, or in train mode, left behind."""
        with self._moved.copying:
            times, other = self._moved.times, self._moved.by
            if other is not None and other is not self.source:
                self.source.follow(other)
            self._seen = times

    def _require_runtime(self) -> None:
        """Before the framework is used, in a forked child.

        Raises:
            ForkError: it cannot be used there.
        """
        if self.traits.runtime is not None:
            self.traits.runtime.require()

    @abstractmethod
    def _computation(self, constants: dict[int, Any], spec: CallSpec) -> Computation:
        """leaves ↦ (floats, others, form, after): pure, and without an array of its own."""

    @abstractmethod
    def _program(self, spec: CallSpec, constants: dict[int, Any], wrt: tuple[int, ...]) -> Program:
        """The computation as it is run, the same one for the same arguments."""

    @abstractmethod
    def _loaded(self, weights: Any, flat: bool, packed: bool, lent: bool = False) -> list[Any]:
        """The weights, or the vector of them, as natives."""

    @abstractmethod
    def _isolated(
        self,
        step: Callable[[], T],
        inputs: Sequence[Any],
        noise: int | None,
        record: bool,
        doing: str = "",
        residuals: Any = None,
    ) -> T:
        """Run a step in the model's isolation, its errors explained."""

    def update(self, weights: Sequence[Any]) -> list[Any]:
        return self._isolated(partial(self._loaded, weights, False, False), (), None, False)

    def update_flat(self, vector: Any, packed: bool) -> list[Any]:
        return self._isolated(partial(self._loaded, vector, True, packed), (), None, False)

    def backward_many(self, residuals: Any, cotangents: Sequence[Any], wrt: tuple[int, ...]) -> list[Any]:
        if self.refusal("backward_many"):
            raise Unsupported(self.refusal("backward_many"))
        if not residuals.dtypes:
            self._refuse_no_output()
        step = partial(residuals.pull, self.framework, cotangents, wrt, True)
        try:
            return self._isolated(step, residuals.inputs, None, True, "the derivative of", residuals)
        except (Unsupported, GuestError) as error:
            reason = str(error)
            if isinstance(error, GuestError):
                reason = f"{self.label} cannot be pulled back for many at once: {error}"
            self.refusals_met["backward_many"] = reason
            raise Unsupported(reason) from error

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether the model draws random numbers or moves state."""
        return self.source.draws

    @property
    def moves(self) -> bool:  # type: ignore[override]
        """Whether a forward of the model leaves another state behind."""
        return self.source.moves

    @property
    def shares_state(self) -> bool:  # type: ignore[override]
        """As the model."""
        return self.source.shares_state

    @property
    def steady(self) -> AbstractContextManager[Any]:  # type: ignore[override]
        """Where it moves state, or reads what is moved in another mode."""
        reads = self.source.moves or self.source.shares_state
        return self._moved.lock if reads else nullcontext()

    def weights(self) -> Sequence[Any]:
        self._require_runtime()
        return self.source.weights()

    def model(self, weights: Sequence[Any]) -> Any:
        self._require_runtime()
        if self._moved.times != self._seen:
            self._follow()
        return self.source.native(weights)

    def in_dtype(self, name: str) -> Self:
        self._require_runtime()
        return self._beside(self.source.in_dtype(name))

    def in_eval_mode(self) -> Self:
        self._require_runtime()
        return self._beside(self.source.in_eval_mode())

    def _beside(self, model: Model) -> Self:
        """An adapter of the same model in another precision or mode, with the same state."""
        if model is self.source:
            return self
        twin = type(self)(self.framework, model)
        twin._moved = self._moved
        return twin

    def statistics(self) -> Mapping[str, Array]:
        with self._moved.lock:
            if self._moved.times != self._seen:
                self._follow()
            return self.source.statistics()

    def set_statistics(self, arrays: Mapping[str, Array]) -> None:
        with self._moved.lock:
            if self._moved.times != self._seen:
                self._follow()
            self.source.set_statistics(arrays)
            self._has_moved()

    def fresh(self) -> Self | None:
        self._require_runtime()
        if self._moved.times != self._seen:
            self._follow()
        model = self.source.fresh()
        return None if model is None else type(self)(self.framework, model)

    def renew_pulls(self) -> bool:
        changes, self.renews = not (self.renews or self.traits.compiles), True
        return changes

    def isolate_calls(self) -> bool:
        return self.source.isolate_calls()

    def inlined(
        self, host: str, spec: CallSpec, constants: Mapping[int, Any]
    ) -> Callable[[Sequence[Any]], Any] | None:
        framework, model = self.framework, self.source
        # A part of a compiled program would keep the state as it was then.
        if framework.host != host or not model.inlines() or self.has_strangers or model.shares_state:
            return None
        first = 1 if spec.packed else len(self.layout)
        compute = framework.part(
            self._computation(dict(constants), spec), lambda: self._program(spec, dict(constants), ())
        )

        def run(leaves: Sequence[Any]) -> Any:
            if self.has_strangers or not model.inlines():
                raise Unsupported(f"{self.label} cannot be part of a program")  # as a call since has shown
            try:
                weights = [framework.native(w, d) for w, d in zip(leaves[:first], model.dtypes)]
                weights = [
                    w if framework.is_inexact(w) else self._floating(w, d)
                    for w, d in zip(weights, model.dtypes)
                ]
                inputs = [framework.native(x, model.dtype) for x in leaves[first:]]
                inputs += model.extras(spec.noise)
                floats, others, form, _ = model.within(compute, weights, inputs)
            except GradbridgeError:
                raise
            except Exception as error:
                explained = model.explained(error, leaves[first:])
                if explained is error:
                    raise
                raise explained from error
            return form.assemble(form.merge(floats, others))

        return run if constants else model.quick_part(spec, run)

    def _floating(self, integers: Any, dtype: Any) -> Any:
        framework = self.framework
        return framework.cast(integers, framework.asarray(np.zeros(()), dtype))

    def strangers(self, residuals: Any) -> Sequence[Stranger]:
        if residuals is None:
            return ()
        recorded = [self.source.stranger(native) for native in residuals.program.strangers(residuals.kept)]
        strangers = [*recorded, *self.source.strangers(residuals)]
        self.has_strangers = self.has_strangers or bool(strangers)
        return strangers

    def unreached(self, residuals: Any) -> Sequence[int]:
        if residuals is None:
            return ()
        return [residuals.wrt[place] for place in residuals.program.unreached(residuals.kept)]

    def operations(self, residuals: Any) -> Hashable:
        return None if residuals is None else residuals.program.operations(residuals.kept)

    def _refuse_no_output(self) -> None:
        raise NotDifferentiableError(
            f"{self.label} returned no floating array, so it has no derivative; return probabilities rather than a "
            f"class, say"
        )

    def refusal(self, operation: str) -> str:
        traits = self.framework.traits
        if operation.startswith("pushforward") and not traits.has_forward_mode:
            return f"the framework of {self.label} has no forward mode"
        if operation == "pullback" and not traits.has_higher_orders:
            return f"the framework of {self.label} cannot differentiate a gradient again"
        if operation in ("pushforward_many", "row_jacobians", "backward_many") and not traits.has_vmap:
            return f"the framework of {self.label} maps no function over a leading axis"
        return ""
