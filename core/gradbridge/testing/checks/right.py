"""Laws 1 and 2: the numbers are right, linear in the cotangent, and the same when asked again."""

from __future__ import annotations

import numpy as np

from gradbridge import trees
from gradbridge.testing.checks.catalogue import PLAIN, SHAPED, check
from gradbridge.testing.compare import expect_close, expect_gradients, expect_outputs
from gradbridge.testing.subject import TOLERANCES, Subject


@check(1, (*PLAIN, *SHAPED, "dropout", "batchnorm", "labels"))
def value_is_right(subject: Subject) -> None:
    """The outputs are those of the closed form, in the structure that the model returns."""
    point = subject.point()
    flight = subject.start(point)
    expect_outputs(flight.outputs, subject.outputs_at(point), subject.tolerance)
    got, expected = trees.flatten(flight.tree)[1], trees.flatten(subject.value_at(point))[1]
    assert got == expected, f"expected outputs in the structure {expected}, got {got}"


@check(1, (*PLAIN, *SHAPED, "dropout", "batchnorm", "labels"))
def gradient_is_right(subject: Subject) -> None:
    """One backward gives the closed-form gradients of all arguments together."""
    point = subject.point(1)
    expect_gradients(subject.start(point).pull(), subject.gradients_at(point), subject.tolerance)


@check(1, (*PLAIN, *SHAPED))
def each_argument_alone(subject: Subject) -> None:
    """Pulling back to some of the arguments, in any order, gives the same as to all of them together."""
    point = subject.point(2)
    expected = subject.gradients_at(point)
    flight = subject.start(point)
    for argument in flight.evaluation.wrt:
        expect_gradients(flight.pull(wrt=(argument,)), expected, subject.tolerance, "of all kept, alone")
        alone = subject.start(point, wrt=(argument,))
        expect_gradients(alone.pull(), expected, subject.tolerance, "kept and pulled alone")
    backwards = tuple(reversed(flight.evaluation.wrt))
    expect_gradients(flight.pull(wrt=backwards), expected, subject.tolerance, f"asked for as {backwards}")


@check(1)
def layout_is_sound(subject: Subject) -> None:
    """The layout names each parameter once, and cuts and joins the flat vector without loss."""
    adapter, vector = subject.adapter(), subject.point(3).params
    layout, weights = adapter.layout, [adapter.border.view(w) for w in adapter.weights()]
    shapes = tuple(w.shape for w in weights)
    assert shapes == layout.shapes, f"weights() must have the layout's shapes {layout.shapes}, got {shapes}"
    assert all(w.dtype.kind == "f" for w in weights), f"weights() must be floating, got {weights}"
    assert layout.size == subject.scenario.size, (
        f"expected a layout of size {subject.scenario.size}, got {layout.size}"
    )
    assert all(isinstance(name, str) and name for name in layout.names), f"expected names, got {layout.names}"
    expect_close(layout.ravel(layout.unravel(vector)), vector, "ravel(unravel(params))", 0.0)
    expected = subject.scenario.ravel(subject.initial())[subject.order]
    expect_close(subject.params_of(adapter), expected, "weights() of the model as it was built", 0.0)
    weights = layout.cut(vector)
    expect_close(layout.join(weights), vector, "join(cut(params))", 0.0)


@check(1, ("mlp", "energy", "outputs"))
def float32_is_rounding(subject: Subject) -> None:
    """A guest that computes in float32 differs from the closed form by rounding and no more."""
    point, adapter = subject.point(4), subject.adapter("float32")
    flight, tolerance = subject.start(point, adapter=adapter), TOLERANCES["float32"]
    expect_outputs(flight.outputs, subject.outputs_at(point), tolerance, "in float32")
    expect_gradients(flight.pull(), subject.gradients_at(point), tolerance, "in float32")


@check(1, ("mlp", "energy"))
def own_dtype(subject: Subject) -> None:
    """Without `dtype=` the guest computes in the model's own dtype, and is right to that rounding."""
    point, adapter = subject.point(5), subject.adapt(subject.build(subject.initial()), None)
    flight, tolerance = subject.start(point, adapter=adapter), TOLERANCES["float32"]
    expect_outputs(flight.outputs, subject.outputs_at(point), tolerance, "in the model's dtype")
    expect_gradients(flight.pull(), subject.gradients_at(point), tolerance, "in the model's dtype")


@check(2)
def linear_in_cotangent(subject: Subject) -> None:
    """The pullback of a u + b v is a times that of u plus b times that of v."""
    point = subject.point(6)
    u, v = point.cotangents, subject.with_cotangents(point, 7).cotangents
    flight = subject.start(point)
    of_u, of_v = flight.pull(u), flight.pull(v)
    of_both = flight.pull([3 * a - 2 * b for a, b in zip(u, v)])
    for argument, gradient in of_both.items():
        expected = 3 * of_u[argument] - 2 * of_v[argument]
        what = f"pullback of 3u - 2v to {of_both.name(argument)}"
        expect_close(gradient, expected, what, 4 * subject.tolerance)


@check(2)
def backward_twice(subject: Subject) -> None:
    """Pulling back twice gives the same result; nothing accumulates, and nothing is used up."""
    point = subject.point(8)
    flight = subject.start(point)
    first = {argument: gradient.copy() for argument, gradient in flight.pull().items()}
    expect_gradients(flight.pull(), first, subject.tolerance, "pulled back the second time")
    expect_gradients(flight.pull(), subject.gradients_at(point), subject.tolerance, "the third time")


@check(2)
def zero_cotangent(subject: Subject) -> None:
    """A cotangent of zeros is pulled back to zeros."""
    point = subject.point(9)
    zeros = [np.zeros(v.shape) for v in point.cotangents]
    gradients = subject.ask_adapter(point, zeros)
    for argument, gradient in gradients.items():
        assert not np.any(gradient), f"expected zeros for {gradients.name(argument)}, got {gradient}"
