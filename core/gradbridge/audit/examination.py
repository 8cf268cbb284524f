"""`f.audit(params, *inputs)`: all that can be found out about a model at one point, as a table."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge.audit import first_call
from gradbridge.audit.comparison import agree, difference, tolerance_of
from gradbridge.audit.derivative_checks import DerivativeChecks
from gradbridge.audit.findings import Audit
from gradbridge.audit.precision import coarse_steps
from gradbridge.audit.report import AuditReport, Finding
from gradbridge.borders import INEXACT
from gradbridge.derivatives.independence import seem_independent
from gradbridge.derivatives.strategies import NAMES
from gradbridge.errors import GradbridgeError, GradbridgeWarning
from gradbridge.execution import steps
from gradbridge.layout import Array
from gradbridge.wording import in_short

_THREADS = 8


def audited(
    point: Any, fingerprint: Callable[[], bytes], title: str, told: Callable[[Finding], None] | None = None
) -> AuditReport:
    """Audit a bridge at a point.

    Args:
        point: an `EvaluationPoint`; its arguments are not changed.
        fingerprint: of the user's own model.
        title: first line of the table.
        told: is handed each row when it is known.
    """
    examination, findings = _Examination(point, fingerprint), list[Finding]()
    for finding in _each(point, examination):
        findings.append(finding)
        if told is not None:
            told(finding)
    return AuditReport(title, findings)


def _each(point: Any, examination: _Examination) -> Iterator[Finding]:
    yield from _mended(point)
    yield from examination.findings()


def _mended(point: Any) -> Iterator[Finding]:
    """What the first call of the bridge mends, if it was not made yet; what it refuses shows in the rows."""
    audit = point.call.settings.audit
    if audit.awaits_call(point.call.dtype.name):
        with suppress(GradbridgeError), warnings.catch_warnings():
            warnings.simplefilter("ignore", GradbridgeWarning)
            point.call.evaluate(point.values, tuple(point.arguments(0)) if point.call.first_input else ())
    if "state" in audit.notes:
        yield Finding("mended", "note", "", audit.notes["state"])


class _Examination(DerivativeChecks):
    """The checks at one point, each on calls that nobody observes and that move no state."""

    def __init__(self, point: Any, fingerprint: Callable[[], bytes]) -> None:
        call, values = replace(point.call, settings=point.call.settings.quiet).prepared(point.values, ())
        self._call = replace(call, spec=call.spec.replayed())
        self._values, self._adapter = values, call.adapter
        self._point = replace(point, call=self._call, values=values)
        self._fingerprint, self._before = fingerprint, fingerprint()
        first = call.first_input
        self._wrt = tuple(
            i
            for i, v in enumerate(values)
            if isinstance(v, np.ndarray)
            and v.dtype.kind in INEXACT
            and v.size
            and i not in point.constants
            and (i >= first or call.adapter.layout.size)
        )
        self._draw = np.random.default_rng(0)

    def findings(self) -> Iterator[Finding]:
        """All rows, each as soon as it is known."""
        try:
            evaluation = self._call.evaluate_at(self._values, self._wrt)
        except GradbridgeError as error:
            self._wrt = ()
            yield Finding("gradient", "WRONG", "", in_short(error))
            try:
                evaluation = self._call.evaluate_at(self._values, ())
            except GradbridgeError as failed:
                yield Finding("value", "WRONG", "", in_short(failed))
                return
        self._steps = coarse_steps(self._call, self._values, evaluation.outputs, self._wrt)
        if self._steps is not None:  # all that follows is held to what it computes in
            audit = Audit(is_on=False, precision=self._steps)
            self._call = replace(self._call, settings=replace(self._call.settings, audit=audit))
            self._point = replace(self._point, call=self._call)
        self._evaluation = evaluation = replace(evaluation, call=self._call)
        self._tolerance = tolerance_of(evaluation)
        self._cotangents = [
            self._draw.normal(size=y.shape) * (y.dtype.kind in INEXACT) for y in evaluation.outputs
        ]
        checks: list[tuple[str, Callable[[], Finding | None]]] = [
            ("parameters are those of the call", self._strangers),
            ("parameters with influence", self._unused),
            ("the same call again", self._repeats),
            ("after calls at other arguments", self._remembers),
            ("precision", self._precision),
            ("gradient against differences", self.differences),
            ("JVP against VJP", self.forward_mode),
            ("second derivative", lambda: self.order(0)),
            ("third derivative", lambda: self.order(1)),
            *((f"Jacobian, {NAMES[s]}", lambda s=s: self.jacobian(s)) for s in ("rows", "vjp", "jvp")),
            ("rows of the batch", self._rows),
            ("other batch sizes in between", self._sizes),
            ("float32 against float64", self._narrow),
            (f"{_THREADS} threads at once", self._threads),
            ("your model as it was", self._pure),
        ]
        for name, check in checks:
            try:
                finding = check()
            except GradbridgeError as error:
                finding = Finding(name, "-", "", f"cannot be asked: {in_short(error)}")
            if finding is not None:
                yield replace(finding, check=name)

    # -- what a call is made of ---------------------------------------------------------------

    def _strangers(self) -> Finding:
        strangers = self._adapter.strangers(self._evaluation.residuals)
        stale = [s.name for s in strangers if s.is_parameter]
        if stale:
            return Finding("", "WRONG", str(len(stale)), f"computed with its own: {'; '.join(stale)}")
        if strangers:
            names = "; ".join(s.name for s in strangers)
            return Finding("", "note", str(len(strangers)), f"held constant, and none of the params: {names}")
        return Finding(
            "", "right", "0", "no array of the model's own takes the place of one that was handed in"
        )

    def _unused(self) -> Finding | None:
        call = self._call
        if self._wrt[:1] != (0,) or call.arguments.vectors[:1] != (True,):
            return None
        gradient = self._evaluation.pull(self._cotangents, self._wrt)[0]
        layout = call.adapter.layout
        unused = [n for n, g in zip(layout.names, layout.cut(gradient)) if not np.any(g)]
        used = f"{len(layout) - len(unused)} of {len(layout)}"
        if unused:
            return Finding("", "note", used, f"the outputs do not depend here on {', '.join(unused)}")
        return Finding("", "right", used, "the outputs depend on each of them")

    # -- whether it is a function -------------------------------------------------------------

    def _first(self) -> first_call.FirstCall:
        return first_call.FirstCall(self._call, self._evaluation, first_call.Surroundings())

    def _repeats(self) -> Finding:
        first = self._first()
        reason = first.repeats(first.gradients())
        if reason:
            return Finding("", "WRONG", "", f"it {reason}")
        return Finding("", "right", "0", "whatever Python's and NumPy's random states are")

    def _remembers(self) -> Finding:
        if self._adapter.fresh() is None:
            return Finding("", "-", "", "it cannot be checked for this kind of model")
        reason = self._first().remembers()
        if reason:
            return Finding("", "WRONG", "", f"it {reason}")
        return Finding("", "right", "0", "a used model gives what one gives that was never called")

    # -- numbers ------------------------------------------------------------------------------

    def _precision(self) -> Finding:
        dtypes = sorted({d.name for d in self._evaluation.guest_dtypes if d.kind in INEXACT})
        if self._steps is not None:
            return Finding(
                "",
                "note",
                f"{self._steps:.0e}",
                "its outputs change in steps: something in it computes in a coarser dtype",
            )
        return Finding(
            "", "right", ", ".join(dtypes) or "integers", "of the outputs as the model returned them"
        )

    # -- batches, dtypes, threads -------------------------------------------------------------

    def _inputs(self) -> list[Any]:
        return list(self._values[self._call.first_input :])

    def _has_rows(self) -> tuple[bool, ...] | None:
        arrays = [x for x in self._inputs() if isinstance(x, np.ndarray) and x.ndim]
        if not arrays or len(arrays[0]) < 2:
            return None
        return tuple(
            isinstance(x, np.ndarray) and x.ndim > 0 and len(x) == len(arrays[0]) for x in self._inputs()
        )

    def _rows(self) -> Finding | None:
        has_rows = self._has_rows()
        if has_rows is None:
            return None
        count = next(len(x) for x, yes in zip(self._inputs(), has_rows) if yes)
        some = [x[: min(count, 8)] if yes else x for x, yes in zip(self._inputs(), has_rows)]
        plain = self._call.by(self._adapter)  # weights one by one
        weights, flat, _ = steps.arguments_of(plain, self._values)
        loaded = self._adapter.update_flat(weights, False) if flat else self._adapter.update(weights)
        independent = seem_independent(self._adapter, loaded, some, has_rows, plain.spec)
        if independent is None:
            return Finding("", "-", "", "nothing can be determined here: gradients are not finite")
        told = "independent of each other" if independent else "they depend on each other"
        return Finding("", "note", str(count), f"{told}: {'' if independent else 'no '}rows_per_chunk=")

    def _sizes(self) -> Finding | None:
        has_rows = self._has_rows()
        if has_rows is None:
            return None
        count = next(len(x) for x, yes in zip(self._inputs(), has_rows) if yes)
        sizes, first = sorted({1, max(1, count // 2), count, 2 * count}), self._call.first_input
        worked = []
        for size in sizes:
            rows = np.arange(size) % count
            some = [x[rows] if yes else x for x, yes in zip(self._inputs(), has_rows)]
            try:
                self._call.evaluate_at([*self._values[:first], *some], ())
                worked.append(size)
            except GradbridgeError:
                continue  # it takes this number of rows alone, say
        again = self._call.evaluate_at(self._values, self._wrt).outputs
        if not agree(self._evaluation.outputs, again, self._tolerance):
            apart = difference(self._evaluation.outputs, again)
            return Finding(
                "", "WRONG", f"{apart:.1e}", "calls of other batch sizes change what this one gives"
            )
        return Finding("", "right", ", ".join(map(str, worked)), "rows, and then the same as before")

    def _narrow(self) -> Finding | None:
        settings = self._call.settings
        if settings.precisions is None or not settings.follows or self._call.dtype != np.float64:
            return None
        other = settings.precisions.of(np.dtype(np.float32)).adapter
        values = [
            v.astype(np.float32)
            if isinstance(v, np.ndarray) and v.dtype == np.float64 and i >= self._call.first_input
            else v
            for i, v in enumerate(self._values)
        ]
        outputs = replace(self._call.by(other), dtype=np.dtype(np.float32)).evaluate_at(values, ()).outputs
        apart = difference(self._evaluation.outputs, outputs)
        if apart > 1e-2:
            return Finding(
                "", "note", f"{apart:.1e}", "the model is ill-conditioned here: float32 is not enough"
            )
        return Finding("", "right", f"{apart:.1e}", "relative: rounding")

    def _threads(self) -> Finding:
        points = [self._moved(seed) for seed in range(_THREADS)]
        expected = [self._value_and_gradient(v) for v in points]
        found: list[Sequence[Array] | None] = [None] * _THREADS
        failed: list[str] = []
        start = threading.Barrier(_THREADS)

        def work(index: int) -> None:
            try:
                start.wait(60)
                for _ in range(3):
                    found[index] = self._value_and_gradient(points[index])
            except (GradbridgeError, threading.BrokenBarrierError) as error:
                failed.append(in_short(error))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            return Finding("", "WRONG", "", failed[0])
        for ours, theirs in zip(found, expected):
            if ours is None or not agree(ours, theirs, self._tolerance):
                apart = difference(ours or (), theirs)
                return Finding("", "WRONG", f"{apart:.1e}", "calls in other threads change what one gives")
        return Finding("", "right", "0", "each gives what it gives alone")

    def _pure(self) -> Finding:
        if self._fingerprint() != self._before:
            return Finding("", "WRONG", "", "its parameters are not what they were")
        return Finding("", "right", f"{len(self._before)} B", "its parameters, bit for bit")

    def _moved(self, seed: int) -> list[Any]:
        values = list(self._values)
        draw = np.random.default_rng(seed)
        for i in self._wrt[:1]:
            values[i] = (values[i] * (1 + 0.01 * draw.uniform(size=np.shape(values[i])))).astype(
                values[i].dtype
            )
        return values

    def _value_and_gradient(self, values: Sequence[Any]) -> list[Array]:
        evaluation = self._call.evaluate_at(values, self._wrt)
        return [*evaluation.outputs, *(evaluation.pull(self._cotangents, self._wrt) if self._wrt else ())]
