"""Law 5: the user's model, its mode and the caller's arrays stay as they were."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import replace

import numpy as np

from gradbridge.errors import HigherOrderError
from gradbridge.protocol import Adapter
from gradbridge.testing.backend import Native, NotOfferedError
from gradbridge.testing.checks.catalogue import PLAIN, check
from gradbridge.testing.compare import expect_close, expect_gradients, expect_outputs, expect_same
from gradbridge.testing.points import forward, overwrite, views
from gradbridge.testing.subject import Subject


@check(5)
def arrays_intact(subject: Subject) -> None:
    """Params, inputs and cotangents are not written to; read-only ones are accepted."""
    point = subject.point(30)
    arrays = [point.params, *point.inputs, *point.cotangents]
    before = [array.copy() for array in arrays]
    subject.start(point).pull()
    for array, original in zip(arrays, before):
        expect_same(array, original, "an array of the caller after forward and backward")
    for array in arrays:
        array.flags.writeable = False
    flight = subject.start(point)
    expect_gradients(flight.pull(), subject.gradients_at(point), subject.tolerance, "with read-only arrays")


@check(5)
def caller_changes_arrays(subject: Subject) -> None:
    """The caller may overwrite params and inputs between forward and backward; the pullback is unmoved."""
    point = subject.point(31)
    expected = subject.gradients_at(point)
    flight = subject.start(point)
    overwrite((point.params, *point.inputs))
    expect_gradients(
        flight.pull(point.cotangents), expected, subject.tolerance, "after inputs were overwritten"
    )


@check(5)
def caller_owns_results(subject: Subject) -> None:
    """Outputs and gradients are the caller's to write to; nothing of the guest or of other calls moves."""
    point = subject.point(32)
    untouched = [array.copy() for array in (point.params, *point.inputs, *point.cotangents)]
    expected = subject.gradients_at(point)
    flight = subject.start(point)
    _overwrite(flight.outputs, "output")
    first = flight.pull()
    expect_gradients(first, expected, subject.tolerance, "after outputs were overwritten")
    _overwrite(list(first.values()), "gradient")
    expect_gradients(flight.pull(), expected, subject.tolerance, "after gradients were overwritten")
    for array, original in zip((point.params, *point.inputs, *point.cotangents), untouched):
        expect_same(array, original, "an argument, after results were overwritten")
    again = subject.start(point)
    expect_outputs(
        again.outputs, subject.outputs_at(point), subject.tolerance, "after results were overwritten"
    )


@check(5, ("mlp", "embedding", "outputs", "tied", "unused"))
def params_stay(subject: Subject) -> None:
    """weights() are those that the model was built with, also after calls at other params."""
    adapter = subject.adapter()
    before = subject.params_of(adapter)
    subject.start(subject.point(33)).pull()
    expect_same(subject.params_of(adapter), before, "weights() after a call at other params")
    subject.ask_adapter(subject.point(33))
    expect_same(subject.params_of(adapter), before, "weights() after an update with others")


@check(5, ("mlp", "embedding", "outputs", "tied", "unused"))
def model_holds_params(subject: Subject) -> None:
    """model(weights) is a new native model that computes f(weights, …); the first one keeps its own."""
    point, adapter = subject.point(34), subject.adapter()
    before = subject.params_of(adapter)
    native = adapter.model(adapter.layout.cut(point.params.copy()))
    expect_same(subject.params_of(adapter), before, "weights() after model(…) was asked for")
    twin = subject.adapt(Native(native), subject.precision)
    params = subject.params_of(twin)
    if params.size:
        expect_close(params, point.params, "weights() of model(weights)", _stored(adapter.layout.dtypes))
    outputs, _ = forward(twin, replace(point, params=params))
    tolerance = max(subject.tolerance, 10 * _stored(adapter.layout.dtypes))
    expect_outputs(views(twin, outputs), subject.outputs_at(point), tolerance, "of model(weights)")


@check(5, (*PLAIN, "dropout", "batchnorm"), "train")
def state_stays(subject: Subject) -> None:
    """What `BackendUnderTest.state` tells of the model and the framework is the same after all steps."""
    native, state = subject.build(subject.initial()), subject.under_test.state
    before = state(native.model)
    if before is None:
        raise NotOfferedError(f"{subject.under_test.name}: state() is not given")
    adapter = subject.adapt(native, subject.precision)
    assert state(native.model) == before, "making an adapter changed the state"
    for seed in (35, 36):
        flight = subject.start(subject.point(seed), adapter=adapter, noise=seed)
        assert state(native.model) == before, "update and forward changed the state"
        flight.pull()
        assert state(native.model) == before, "zero and backward changed the state"
    with suppress(HigherOrderError):
        flight.differentiated().evaluate(
            [*flight.point.arguments, *flight.point.cotangents], flight.evaluation.wrt
        )
    assert state(native.model) == before, "the pullback's adapter changed the state"
    adapter.model(adapter.layout.cut(flight.point.params))
    assert state(native.model) == before, "model(weights) changed the state"


@check(5, ("mlp", "energy"))
def copies_stand_alone(subject: Subject) -> None:
    """A deep copy of an adapter works, and using it changes nothing about the first."""
    adapter = subject.adapter()
    twin = copied(adapter, subject)
    one, two = subject.point(37), subject.point(38)
    for which, point, used in (("a copy", one, twin), ("the first after its copy", two, adapter)):
        flight = subject.start(point, adapter=used)
        expect_outputs(flight.outputs, subject.outputs_at(point), subject.tolerance, f"of {which}")
        expect_gradients(flight.pull(), subject.gradients_at(point), subject.tolerance, f"of {which}")


def copied(adapter: Adapter, subject: Subject) -> Adapter:
    """A deep copy.

    Raises:
        NotOfferedError: there is none.
    """
    try:
        return copy.deepcopy(adapter)
    except Exception as error:
        raise NotOfferedError(
            f"{subject.under_test.name}: adapters cannot be copied ({type(error).__name__}: {error})"
        ) from error


def _overwrite(arrays: list[np.ndarray], what: str) -> None:
    for array in arrays:
        assert array.flags.writeable, f"the {what} is read-only; the caller owns it and may write to it"
        array[...] = np.nan if array.dtype.kind == "f" else 0


def _stored(dtypes: tuple[str, ...]) -> float:
    """Relative rounding of a native model that stores its parameters in these dtypes."""
    return 0.0 if set(dtypes) <= {"float64"} else 1e-6
