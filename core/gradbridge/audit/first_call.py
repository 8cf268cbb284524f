"""The first differentiated call of a bridge, looked at before its result is handed out (law 10).

A model may be something else than a function of its params and inputs: it reads a parameter by another
way than its slot, keeps something of an earlier call, draws numbers that nobody gave it, or computes in
less than it was asked to. All of that gives numbers that look right. So the call is made again, in
other surroundings, after a call at other arguments and by a model that was never called, and what
differs is mended, where the model can be called by a fresh copy each time, or refused by name.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge.audit.comparison import agree, difference, tolerance_of
from gradbridge.audit.precision import coarse_steps
from gradbridge.audit.unused import moved, note_unused
from gradbridge.borders import INEXACT, is_inexact
from gradbridge.errors import (
    AuditError,
    GradbridgeError,
    GuestError,
    InputError,
    OutputError,
)
from gradbridge.layout import Array
from gradbridge.notices import notice


def evaluated(call: Any, values: Sequence[Any], wrt: tuple[int, ...]) -> Any:
    """Evaluate a call of a bridge whose guest was not looked at yet.

    Args:
        call: prepared.
        values: its arguments, likewise.
        wrt: which of them may be pulled back to; where there are none, no gradient is looked at.

    Returns:
        The evaluation.

    Raises:
        AuditError: the model is not a function of its arguments; the message says why, and what to do.
    """
    # The program's own forward is the last: what a function keeps for its rule, and state that moves, are of it.
    return looked_at(call, values, wrt).remembered(values, wrt)


def looked_at(call: Any, values: Sequence[Any], wrt: tuple[int, ...]) -> Any:
    """The call, by the adapter that serves it, after all of it was looked at.

    Raises:
        AuditError
    """
    surroundings = Surroundings()
    # Else it would be compared with itself as other threads have trained it meanwhile.
    with call.adapter.steady:
        call, evaluation = _in_its_precision(call, values, wrt)
        FirstCall(call, evaluation, surroundings).look()
    call.settings.audit.called(call.dtype.name, bool(wrt))
    call.settings.refresh()
    return call


def _in_its_precision(call: Any, values: Sequence[Any], wrt: tuple[int, ...]) -> tuple[Any, Any]:
    """(The call in the host's precision, or where that fails in the model's own, an evaluation to look at)."""
    try:
        return call, _quiet(call).evaluate_at(values, wrt)
    except (GuestError, InputError, OutputError) as error:
        precisions = call.settings.precisions
        own = None if precisions is None else precisions.fall_back(call.dtype, call.adapter)
        if own is None:
            raise
        again = call.by(own)
        evaluation = _quiet(again).evaluate_at(
            values, wrt
        )  # where this fails, too, it is no matter of precision
        precisions.settle(call.dtype, str(error))
        return again, evaluation


def _quiet(call: Any) -> Any:
    """The same call with nobody who observes it, and no state that moves."""
    return replace(call, settings=call.settings.quiet, spec=call.spec.replayed())


class FirstCall:
    """A first differentiated call, and the calls that are compared with it.

    Args:
        call: what is to be evaluated.
        evaluation: of it, which nobody observed.
        surroundings: as they were before.
    """

    def __init__(self, call: Any, evaluation: Any, surroundings: Surroundings) -> None:
        self._call, self._evaluation, self._before = call, evaluation, surroundings
        self._quiet = _quiet(call)
        self._values, self._wrt = evaluation.values, evaluation.wrt
        self._adapter, self._notes = call.adapter, call.settings.audit.notes
        self._tolerance = tolerance_of(evaluation)
        draw = np.random.default_rng(0)
        self._cotangents = [
            draw.normal(size=y.shape) if y.dtype.kind in INEXACT else np.zeros(y.shape)
            for y in evaluation.outputs
        ]

    def look(self) -> None:
        """Compare it; make the guest compute each call with a fresh copy where that mends what is found.

        Raises:
            AuditError
        """
        self._refuse_strangers()
        gradients = self.gradients()
        reason = self.pulls_once(gradients)
        if reason and self._adapter.renew_pulls():
            self._evaluation = self._quiet.evaluate_at(self._values, self._wrt)
            gradients = self.gradients()
            reason = self.pulls_once(gradients)
            if not reason:
                self._notes["pulls"] = (
                    "each call again for a further pull: its backward does not work from its own call alone"
                )
        reason = reason or self.repeats(gradients) or self.remembers()
        if reason and self._adapter.isolate_calls():
            self._evaluation = self._quiet.evaluate_at(self._values, self._wrt)
            gradients = self.gradients()
            reason = self.repeats(gradients) or self.remembers()
            if not reason:
                self._notes["state"] = "each call by a fresh copy: the model keeps something between calls"
        if not reason and self._wrt:
            note_unused(self._quiet, self._evaluation, gradients, self._tolerance, self._notes)
            self._note_precision()
            reason = self.in_other_modes()
        if reason:
            raise AuditError(f"{self._adapter.label} {reason}; audit='off' takes it as it is")

    def gradients(self) -> Sequence[Array] | None:
        """Those of a random cotangent; None where there are none, or where they cost too much."""
        try:
            # Where it is numeric a gradient costs as many evaluations as there are numbers.
            pulls = self._wrt and self._adapter.traits.is_gradient_cheap
            return self._pulled(self._evaluation) if pulls else None
        except GradbridgeError:
            return None  # the host's own pull tells of it, if it comes to that

    def _refuse_strangers(self) -> None:
        strangers = self._adapter.strangers(self._evaluation.residuals)
        stale = [s.name for s in strangers if s.is_parameter]
        if stale:
            raise AuditError(
                f"{self._adapter.label} computes with a parameter of its own instead of the one that the bridge hands in: "
                f"{'; '.join(stale)}. Read it from the module itself in forward (self.name), or make what keeps it a "
                f"submodule; audit='off' takes it as it is"
            )
        others = [s.name for s in strangers]
        if others and self._adapter.layout.size:
            notice(
                f"{self._adapter.label} computes with {'; '.join(others)}, which could be trained and is none of its "
                f"params: it is held constant"
            )

    def pulls_once(self, gradients: Sequence[Array] | None) -> str:
        """Why the same evaluation does not pull back to the same again; "" where it does."""
        if gradients is None:
            return ""
        with suppress(GradbridgeError):  # another call in between, which nobody pulls back
            self._quiet.evaluate_at(self._elsewhere(), self._wrt)
        again = self.gradients()
        if again is not None and agree(gradients, again, self._tolerance):
            return ""
        return (
            "gives another gradient when the same call is pulled back again after another call: its backward reads "
            "or changes something that is not of its own call (what the forward has kept in a global or an attribute, a "
            "hook that removes itself); let it work with its arguments alone, any number of times"
        )

    def in_other_modes(self) -> str:
        """Why it gives other outputs where nothing is recorded, or more; "" where it does not."""
        adapter, call = self._adapter, self._call
        if not self._wrt or adapter.traits.compiles or not adapter.results_are_typed:
            return ""  # nothing in it can ask
        wider = tuple(
            i
            for i, v in enumerate(self._values)
            if is_inexact(v) and (i >= call.first_input or adapter.layout.size)
        )
        # Without a record frameworks have other kernels, which round otherwise where the model computes in less.
        tolerance = max(self._tolerance, call.settings.audit.precision**0.5)
        for wrt in ((), wider):
            try:
                outputs = self._quiet.evaluate_at(self._values, wrt).outputs
            except GradbridgeError:
                continue
            if not agree(self._evaluation.outputs, outputs, tolerance):
                apart = difference(self._evaluation.outputs, outputs)
                return (
                    f"gives outputs that differ by up to {apart:.1e} (relative) where other gradients are recorded, or "
                    f"none: its forward asks for requires_grad or is_grad_enabled(); make it a function of its inputs"
                )
        return ""

    def repeats(self, gradients: Sequence[Array] | None) -> str:
        """Why the same call does not give the same numbers; "" where it does."""
        with self._before.kept(), _others():
            outputs, again = self._again(gradients is not None)
        if self._same(outputs, again, gradients):
            return ""
        with self._before.kept(), self._before.restored():
            third, once_more = self._again(gradients is not None)
        if self._same(third, once_more, gradients):
            return (
                "draws random numbers from Python's or NumPy's global generator, and so gives other numbers at each call; "
                "draw them from a generator that the framework seeds, or hand them in as an input"
            )
        apart = difference(self._evaluation.outputs, outputs)
        what = f"outputs that differ by up to {apart:.1e} (relative)" if apart else "another gradient"
        return (
            f"gives {what} when it is called again at the same params and inputs: it keeps something between calls "
            f"(a counter, a memo, statistics) or draws random numbers of its own; make it a function of its inputs"
        )

    def _again(self, pulls: bool) -> tuple[Sequence[Array], Sequence[Array] | None]:
        evaluation = self._quiet.evaluate_at(self._values, self._wrt)
        return evaluation.outputs, self._pulled(evaluation) if pulls else None

    def _same(
        self, outputs: Sequence[Array], again: Sequence[Array] | None, gradients: Sequence[Array] | None
    ) -> bool:
        if not agree(self._evaluation.outputs, outputs, self._tolerance):
            return False
        return gradients is None or again is None or agree(gradients, again, self._tolerance)

    def remembers(self) -> str:
        """What tells a used model from one that was never called, at other arguments; "" where nothing does."""
        fresh = self._adapter.fresh()
        if fresh is None or (self._call.settings.mode == "train" and self._adapter.stochastic):
            return ""
        moved = self._elsewhere()
        try:
            used, new = [
                replace(self._quiet, adapter=a).evaluate_at(moved, ()).outputs for a in (self._adapter, fresh)
            ]
        except GradbridgeError:
            return ""  # such arguments are not for it: there is nothing to compare
        if agree(used, new, self._tolerance):
            return ""
        return (
            f"gives outputs that depend on earlier calls: at other params and inputs a copy that was never called "
            f"differs by up to {difference(used, new):.1e} (relative), so it keeps something that it computed from "
            f"them (a cache, statistics of its first batch); compute it anew in each call"
        )

    def _elsewhere(self) -> list[Any]:
        return [moved(v, i, i < self._call.first_input) for i, v in enumerate(self._values)]

    def _note_precision(self) -> None:
        precisions = self._call.settings.precisions
        if self._call.dtype != np.float64 or not self._call.settings.follows or precisions is None:
            return
        own = precisions.own.adapter
        if self._adapter is own and {*own.layout.dtypes} - {"float64"}:
            return  # said when it was found that it cannot follow
        dtypes = [d for d in self._evaluation.guest_dtypes if d.kind in INEXACT]
        coarse = [d for d in dtypes if d.itemsize < (16 if d.kind == "c" else 8)]
        if coarse:
            precision, told = float(np.finfo(coarse[0]).eps), f"returns {coarse[0].name}"
        else:
            steps = coarse_steps(self._quiet, self._values, self._evaluation.outputs, self._wrt)
            if steps is None:
                return
            precision = steps
            told = f"its outputs change in steps of about {steps:.0e} (relative), as in a coarser dtype"
        self._call.settings.audit.precision = precision
        self._notes["precision"] = f"asked for float64, and {told}"
        notice(
            f"{self._adapter.label} was asked to compute in float64, the precision of the params, and {told}: something "
            f"in it has a dtype of its own (a cast, a constant, a layer fixed to float32). Values and gradients "
            f"have that precision; dtype='model' asks for the model's own and is silent"
        )

    def _pulled(self, evaluation: Any) -> Sequence[Array]:
        gradients: Sequence[Array] = evaluation.pull(self._cotangents, self._wrt)
        return gradients


class Surroundings:
    """The random states of the process, which are neither trusted nor changed."""

    def __init__(self) -> None:
        self._python, self._numpy = random.getstate(), np.random.get_state()  # noqa: NPY002

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put back in the end what they are now."""
        now = Surroundings()
        try:
            yield
        finally:
            now._put()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """As they were then."""
        self._put()
        yield

    def _put(self) -> None:
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002


@contextmanager
def _others() -> Iterator[None]:
    random.seed(0x5EED)
    np.random.seed(0x5EED)  # noqa: NPY002, what user code may draw from
    yield
