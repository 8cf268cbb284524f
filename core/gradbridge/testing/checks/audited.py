"""Laws 4, 6 and 10: what an adapter tells about itself, so that a bridge can audit it, is so."""

from __future__ import annotations

import numpy as np

from gradbridge.call_spec import CallSpec
from gradbridge.errors import OptionError, UnknownModelError
from gradbridge.layout import Array
from gradbridge.protocol import Adapter
from gradbridge.testing.backend import NotOfferedError
from gradbridge.testing.checks.catalogue import PLAIN, SHAPED, check
from gradbridge.testing.checks.function import in_eval_mode
from gradbridge.testing.compare import expect_close, expect_same
from gradbridge.testing.points import forward, views
from gradbridge.testing.subject import TOLERANCES, Subject, expect_right


@check(6, ("mlp", "energy", "batchnorm", "linear", "convolution"))
def in_dtype(subject: Subject) -> None:
    """in_dtype("float64") of an adapter in any dtype computes in float64, and leaves the adapter as it was."""
    if "float64" not in subject.under_test.dtypes:
        raise NotOfferedError(f"{subject.under_test.name}: does not compute in float64")
    point = subject.point(160)
    for dtype in (None, subject.under_test.dtypes[-1]):  # what `gradbridge.build` makes is in float32
        adapter = subject.adapt(subject.build(subject.initial()), dtype)
        before, weights = _natives(adapter, subject), subject.params_of(adapter)
        try:
            wide = adapter.in_dtype("float64")
        except (UnknownModelError, OptionError) as error:
            raise NotOfferedError(f"{subject.under_test.name}: {error}") from error
        made = "its own dtype" if dtype is None else dtype
        after = _natives(adapter, subject)
        for got, expected in zip(after, before, strict=True):
            expect_same(got, expected, f"output of the adapter in {made}, after another was made of it")
        expect_same(subject.params_of(adapter), weights, "its weights()")
        if wide is adapter and dtype not in (None, "float64"):
            continue  # it was asked for one precision, and has that alone
        when = f"of an adapter made in {made}, brought to float64"
        expect_right(subject, point, when, adapter=wide, tolerance=TOLERANCES["float64"])
        expect_close(subject.params_of(wide), weights, f"weights() {when}", 0.0)
        assert wide.layout.names == adapter.layout.names, f"layout {when}: {wide.layout} is another one"
        after = _natives(adapter, subject)
        for got, expected in zip(after, before, strict=True):
            expect_same(got, expected, f"output of the adapter in {made}, after the other was used")


@check(10, (*PLAIN, *SHAPED))
def fresh_computes_the_same(subject: Subject) -> None:
    """fresh() of an adapter that was used gives an adapter that computes the same, and neither sees the other."""
    adapter, weights = subject.adapter(), subject.params_of(subject.adapter())
    flight = subject.start(subject.point(162))
    new = _fresh(adapter)
    expect_same(subject.params_of(new), weights, "weights() of fresh()")
    point = subject.point(163)
    expect_right(subject, point, "of fresh()", adapter=new)
    expect_right(subject, point, "of the adapter beside its fresh()", adapter=adapter)
    flight.expect_right("in flight while fresh() was made and used")


@check(10, ("batchnorm",), "train")
def fresh_keeps_to_itself(subject: Subject) -> None:
    """fresh() has the statistics of a new model, or the present ones; from then on each moves its own."""
    point, other, used = subject.point(164, rows=6), subject.point(165, rows=6), subject.fresh()
    subject.start(point, adapter=used)
    new = _fresh(used)
    present, own = in_eval_mode(subject, used, point), in_eval_mode(subject, new, point)
    if not np.allclose(own, in_eval_mode(subject, subject.fresh(), point), atol=1e-9):
        expect_close(own, present, "model(weights) of fresh(), which is not a new one's", subject.tolerance)
    subject.start(other, adapter=new).pull()
    got = in_eval_mode(subject, used, point)
    expect_close(got, present, "model(weights), after fresh() was used", subject.tolerance)
    own = in_eval_mode(subject, new, point)
    subject.start(other, adapter=used).pull()
    got = in_eval_mode(subject, new, point)
    expect_close(got, own, "model(weights) of fresh(), after its original was used", subject.tolerance)


@check(10, (*PLAIN, *SHAPED))
def isolated_calls(subject: Subject) -> None:
    """After isolate_calls() each call is right, in flight with others, and one at other params too."""
    adapter = subject.fresh()
    if not adapter.isolate_calls():
        raise NotOfferedError(f"{subject.under_test.name}: isolate_calls() makes no difference")
    flight = subject.start(subject.point(166), adapter=adapter)
    expect_right(subject, subject.point(167, rows=6), "in isolation", adapter=adapter)
    flight.expect_right("in isolation, with another call in flight")


@check(10, (*PLAIN, *SHAPED))
def no_strangers(subject: Subject) -> None:
    """strangers() of a call names arrays that are none of its arguments: here are none, in the call and after it."""
    point, adapter = subject.point(168), subject.adapter()
    leaves = subject.leaves(adapter, point, subject.differentiable(point.inputs))
    _, residuals = forward(adapter, point, leaves)
    for when in ("before its backward", "after its backward"):
        names = [stranger.name for stranger in adapter.strangers(residuals)]
        assert not names, f"expected no strangers in a call of {adapter.label}, {when}, got {names}"
        adapter.pull(residuals, list(point.cotangents), leaves)


def _fresh(adapter: Adapter) -> Adapter:
    new = adapter.fresh()
    if new is None:
        raise NotOfferedError(f"{adapter.label}: fresh() cannot tell")
    assert new is not adapter, "fresh() must give another adapter, or None where there is no telling"
    return new


def _natives(adapter: Adapter, subject: Subject) -> list[Array]:
    """Outputs as they leave the adapter, in the dtype that it computes in."""
    point = subject.point(169)
    loaded = adapter.update(adapter.layout.cut(point.params))
    outputs, _ = adapter.forward(loaded, point.inputs, CallSpec.of_arrays(len(point.inputs)), ())
    return [y.copy() for y in views(adapter, outputs)]
