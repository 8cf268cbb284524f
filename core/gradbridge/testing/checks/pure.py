"""Law 5: the user's model, its mode and the caller's arrays stay as they were."""

from __future__ import annotations

import copy

import numpy as np

from gradbridge.errors import HigherOrderError
from gradbridge.protocol import Signature
from gradbridge.testing.backend import Native, NotOfferedError
from gradbridge.testing.checks.catalogue import PLAIN, check
from gradbridge.testing.compare import expect_close, expect_gradients, expect_outputs, expect_same
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
    for array in (point.params, *point.inputs):
        array[...] = 0 if array.dtype.kind in "iu" else 99.0
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
    """params() is a new array each time, and calls at other params leave the model's own alone."""
    adapter = subject.adapter()
    before = adapter.params()
    subject.start(subject.point(33)).pull()
    expect_same(adapter.params(), before, "params() after a call at other params")
    _overwrite([adapter.params()], "params()")
    expect_same(adapter.params(), before, "params() after the caller wrote to what it had returned")


@check(5, ("mlp", "embedding", "outputs", "tied", "unused"))
def model_holds_params(subject: Subject) -> None:
    """model(params) is a new native model that computes f(params, …); the first one keeps its own."""
    point, adapter = subject.point(34), subject.adapter()
    before = adapter.params()
    native = adapter.model(point.params.copy())
    expect_same(adapter.params(), before, "params() after model(…) was asked for")
    twin = subject.adapt(Native(native), subject.precision)
    params = np.empty(0)
    if twin.layout.size:
        params = twin.params()
        expect_close(params, point.params, "params() of model(params)", _stored(adapter.layout.dtypes))
    loaded = twin.update(params)
    outputs, _ = twin.forward(loaded, point.inputs, Signature.flat(len(point.inputs)), ())
    tolerance = max(subject.tolerance, 10 * _stored(adapter.layout.dtypes))
    expect_outputs(subject.leaves(outputs), subject.outputs_at(point), tolerance, "of model(params)")


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
    try:
        gradient = flight.call.differentiated(flight.call.wrt)
        gradient.run(flight.point.params, (*flight.point.inputs, *flight.point.cotangents))
    except HigherOrderError:
        pass
    assert state(native.model) == before, "the pullback's adapter changed the state"
    adapter.model(flight.point.params)
    assert state(native.model) == before, "model(params) changed the state"


@check(5, ("mlp", "energy"))
def copies_stand_alone(subject: Subject) -> None:
    """A deep copy of an adapter works, and using it changes nothing about the first."""
    adapter = subject.adapter()
    try:
        twin = copy.deepcopy(adapter)
    except Exception as error:
        raise NotOfferedError(
            f"{subject.under_test.name}: adapters cannot be copied ({type(error).__name__}: {error})"
        ) from error
    one, two = subject.point(37), subject.point(38)
    for which, point, used in (("a copy", one, twin), ("the first after its copy", two, adapter)):
        flight = subject.start(point, adapter=used)
        expect_outputs(flight.outputs, subject.outputs_at(point), subject.tolerance, f"of {which}")
        expect_gradients(flight.pull(), subject.gradients_at(point), subject.tolerance, f"of {which}")


def _overwrite(arrays: list[np.ndarray], what: str) -> None:
    for array in arrays:
        assert array.flags.writeable, f"the {what} is read-only; the caller owns it and may write to it"
        array[...] = np.nan if array.dtype.kind == "f" else 0


def _stored(dtypes: tuple[str, ...]) -> float:
    """Relative rounding of a native model that stores its parameters in these dtypes."""
    return 0.0 if set(dtypes) <= {"float64"} else 1e-6
