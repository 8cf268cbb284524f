"""Numeric gradients of plain functions: they state their order and error, and push forward."""

import ctypes
import math
import threading
import warnings

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian, jacobian, make_jvp
from hypothesis import given, settings
from hypothesis import strategies as st

import gradbridge as gb
from gradbridge.errors import GradbridgeWarning, HigherOrderError, NotDifferentiableError, OptionError

pytest.importorskip("numdifftools")
X, U = onp.array([0.5, -1.0, 2.0]), onp.array([1.0, 0.3, -0.7])


def waves(**options):
    return gb.primitive(gradient="numeric", **options)(lambda x, k: onp.sin(k * x))


def test_forward_mode_is_the_numeric_jacobian_times_the_tangent():
    f = waves()
    onp.testing.assert_allclose(make_jvp(f)(X, 2.0)(U)[1], 2 * onp.cos(2 * X) * U, rtol=1e-9)
    onp.testing.assert_allclose(make_jvp(f, 1)(X, 2.0)(3.0)[1], 3 * X * onp.cos(2 * X), rtol=1e-9)
    p = gb.bridge(lambda p, x: onp.exp(p["a"] * x), params={"a": X}, backend="numpy", gradient="numeric")
    onp.testing.assert_allclose(p.jvp(p.params, 2.0, tangent=U), 2 * onp.exp(2 * X) * U, rtol=1e-9)


def test_numbers_that_do_not_move_and_keywords():
    f = gb.primitive(gradient="numeric")(lambda x, k=1.0: {"y": k * x**2, "n": onp.arange(2)})
    pushed = f.bridge.jvp(onp.empty(0), X, tangent=U, wrt=1)
    onp.testing.assert_allclose(pushed["y"], 2 * X * U, rtol=1e-9)
    assert onp.array_equal(pushed["n"], [0, 0])
    assert onp.isclose(grad(lambda k: np.sum(f(X, k=k)["y"]))(2.0), onp.sum(X**2))


def test_the_gradient_can_be_differentiated_by_its_cotangent_alone():
    f = waves()
    by_scale = jacobian(lambda a: grad(lambda x: a * np.sum(f(x, 2.0)))(X))(3.0)
    onp.testing.assert_allclose(by_scale, 2 * onp.cos(2 * X), rtol=1e-9)


def test_second_order_is_refused_with_its_reason():
    f = waves()
    words = "derivative of the numeric gradient of .* differences of differences would lose most"
    with pytest.raises(HigherOrderError, match=words):
        hessian(lambda x: np.sum(f(x, 2.0)))(X)
    assert "differences of differences" in f.bridge.adapter.refusal("pullback")
    with pytest.raises(OptionError, match="leave that out to write its JVP"):
        f.defjvp(lambda t, ans, x, k: t)


def test_the_error_is_estimated_and_covers_the_true_one():
    f = waves()
    assert f.gradient_error is None
    assert "no error estimated yet" in f.bridge.adapter.gradient_note
    found = grad(lambda x: np.sum(f(x, 2.0)))(X)
    first = f.gradient_error
    assert onp.max(onp.abs(found - 2 * onp.cos(2 * X))) <= max(first, 1e-15)
    assert 0 <= first < 1e-10


def test_the_largest_error_of_all_calls_is_kept_beside_that_of_the_latest():
    f = waves()
    grad(lambda x: np.sum(f(x, 1e4)))(X)  # it turns ten thousand times as fast
    rough = f.gradient_error
    grad(lambda x: np.sum(f(x, 1.0)))(X)
    numeric = f.bridge.adapter.numeric
    assert numeric.latest_error < rough == numeric.estimated_error == f.gradient_error
    assert numeric.method == "central"


def test_it_prints_as_one_sentence():
    f = waves(order=4, step=1e-3)
    grad(lambda x: np.sum(f(x, 2.0)))(X)
    numeric = f.bridge.adapter.numeric
    assert (numeric.order, numeric.step) == (4, 1e-3)
    assert str(numeric) == f.bridge.adapter.gradient_note
    assert str(numeric).startswith(
        "numeric: central differences of order 4 with Richardson extrapolation, step 0.001; largest "
        "estimated error so far "
    )


def test_written_gradients_say_so_and_have_no_error():
    f = gb.primitive(lambda x: x**2)
    assert f.bridge.adapter.gradient_note == "not written down yet"
    f.defvjp(lambda ans, x: lambda v: 2 * x * v)
    assert (f.gradient_error, f.bridge.adapter.numeric) == (None, None)
    assert f.bridge.adapter.gradient_note == "written down"


def test_errors_are_counted_in_any_number_of_threads():
    f = waves()

    def work():
        for k in (1.0, 100.0, 1e4):
            grad(lambda x, k=k: np.sum(f(x, k)))(X)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = waves()
    grad(lambda x: np.sum(alone(x, 1e4)))(X)
    assert f.gradient_error == alone.gradient_error


#: {name: (function, derivative, where)}
SLOPES = {
    "a line": (lambda x: 2 * x, lambda x: 2.0, [1e-300, 1e-8, 1e8, 1e14, 1e16, 1e300]),
    "log": (onp.log, lambda x: 1 / x, [1e-200, 1e-6, 1e-3, 7.0, 1e30]),
    "1/x": (lambda x: 1 / x, lambda x: -1 / x**2, [1e-10, -1e-4, 3.0, 1e10]),
    "sqrt": (onp.sqrt, lambda x: 0.5 / onp.sqrt(x), [1e-20, 1e-4, 2.0, 1e12]),
    "a rate": (lambda x: -onp.expm1(-x * 1e4), lambda x: 1e4 * onp.exp(-x * 1e4), [0.0, 1e-9, 1e-4]),
    "a narrow bell": (
        lambda x: onp.exp(-((x - 1e6) ** 2)),
        lambda x: -2 * (x - 1e6) * onp.exp(-((x - 1e6) ** 2)),
        [1e6 + 0.3, 1e6 - 1],
    ),
    "an offset": (lambda x: 1 + onp.sin(x), onp.cos, [0.0, 1e-20, 1.0]),
    "an edge": (onp.arcsin, lambda x: 1 / onp.sqrt(1 - x * x), [0.999999, -0.9999]),
    "math.log": (math.log, lambda x: 1 / x, [1e-5, 1.0]),
    "one side": (lambda x: x**1.5 if x >= 0 else onp.nan, lambda x: 1.5 * onp.sqrt(x), [0.0, 1e-9]),
    "float32 inside": (lambda x: float(onp.sin(onp.float32(x))), onp.cos, [0.1, 1.0, 1e-5]),
    "float32 arguments": (lambda x: math.sin(onp.float32(x)), onp.cos, [0.1, 1.0, 1e-5]),
}

#: Of which fewer digits are to be had.
VAGUE = ("an edge", "one side", "float32 inside", "float32 arguments")


@pytest.mark.parametrize(
    ("name", "at"), [(name, float(at)) for name, (_, _, places) in SLOPES.items() for at in places]
)
def test_steps_fit_the_argument_and_the_error_covers_the_true_one(name, at):
    function, slope, _ = SLOPES[name]
    f = gb.primitive(gradient="numeric")(function)
    found = grad(f)(at)
    assert abs(found - slope(at)) <= f.gradient_error
    assert f.gradient_error <= (1e-5 if name not in VAGUE else 1e-3) * max(abs(slope(at)), 1e-2)


def test_each_number_of_a_vector_has_steps_of_its_own():
    x = onp.array([1e-8, 3.0, 1e12, -1e-3, 0.0])
    f = gb.primitive(gradient="numeric")(lambda x: onp.log1p(x**2) * 1e3)
    found = f.jacobian(x)
    onp.testing.assert_allclose(onp.diag(found), 2e3 * x / (1 + x**2), rtol=1e-7, atol=1e-9)
    assert onp.max(onp.abs(found - onp.diag(2e3 * x / (1 + x**2)))) <= f.gradient_error


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["sin", "tanh", "exp", "arctan", "square"]),
    st.floats(-3, 3),
    st.floats(-9, 9),
    st.sampled_from([-1.0, 1.0]),
    st.floats(-5, 5),
)
def test_errors_of_drawn_functions_cover_the_true_ones(kind, frequency, size, sign, offset):
    scale, x = 10.0**frequency, sign * 10.0**size
    outer = {"exp": lambda z: np.exp(-z * z), "square": np.square}.get(kind) or getattr(np, kind)
    function = lambda x: outer(scale * x) + offset
    f = gb.primitive(gradient="numeric")(function)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = grad(f)(x)
    true = grad(function)(x)
    if abs(scale * x) < 1e3:  # more turns than that are beyond sampling
        # What is too small to be seen beside the offset, and the closed form's own rounding.
        unseen = 4e-16 * (abs(offset) + 1) / min(abs(x), 1 / scale)
        assert abs(found - true) <= f.gradient_error + unseen + 1e-12 * abs(true)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ([onp.nan, 3.0], r"argument 0 \(x\) is not finite, nan at \[0\]"),
        ([3.0, onp.inf], r"argument 0 \(x\) is not finite, inf at \[1\]"),
        ([3.0, -1.0], r"what it returns is not finite, nan at \[1\]; no finite difference exists there"),
    ],
)
def test_nan_and_infinity_are_refused_by_name(x, words):
    f = gb.primitive(gradient="numeric")(lambda x: onp.sqrt(x))
    with onp.errstate(invalid="ignore"), pytest.raises(NotDifferentiableError, match=words):
        grad(lambda x: np.sum(f(x)))(onp.array(x))


def test_nan_in_what_is_not_differentiated_is_data():
    f = gb.primitive(gradient="numeric")(lambda x, y: onp.nansum(x * y))
    assert onp.isclose(grad(f)(2.0, onp.array([onp.nan, 3.0])), 3.0)


@pytest.mark.parametrize("function", [lambda x: float(x > 0), onp.sqrt, lambda x: onp.cbrt(x)])
def test_a_jump_and_an_infinite_slope_are_refused(function):
    f = gb.primitive(gradient="numeric")(function)
    with onp.errstate(invalid="ignore"), pytest.raises(NotDifferentiableError, match="no step gives a slope"):
        grad(f)(0.0)


def test_a_kink_is_as_wrong_as_its_sides_differ_and_said_once():
    f = gb.primitive(gradient="numeric")(lambda x: onp.maximum(x, 0.0))
    with pytest.warns(GradbridgeWarning, match="no certain digit.*rounding errors dominate") as said:
        found = [grad(f)(0.0), grad(f)(0.0)]
    assert len(said) == 1
    assert (found, f.gradient_error) == ([0.5, 0.5], pytest.approx(0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for at in (-1e-3, 1e-9, 2.0):
            assert grad(gb.primitive(gradient="numeric")(lambda x: onp.maximum(x, 0.0)))(at) == (at > 0)


def test_noise_shows_in_the_error():
    noise = onp.random.default_rng(0)
    differences = gb.primitive(gradient="numeric")(lambda x: x**2).bridge.adapter._differences
    errors, claimed = [], []
    for _ in range(100):
        noisy = lambda x: x**2 + 1e-6 * noise.normal()
        found = differences.jacobian(noisy, onp.ones(1), onp.ones(1), onp.full(1, 2e-16), "x")
        errors.append(abs(found.item() - 2))
        claimed.append(differences.account.latest_error)
    assert onp.mean(onp.array(errors) <= onp.array(claimed)) > 0.95
    assert 1e-6 < onp.median(claimed) < 0.01


def test_a_function_that_reads_the_memory_of_float32_is_given_float32():
    reads = lambda x: onp.array((ctypes.c_float * x.size).from_buffer_copy(x.tobytes()[: 4 * x.size]))

    @gb.primitive(gradient="numeric")
    def cubes(x):
        return reads(x) ** 3

    x = onp.array([0.5, -1.5], "float32")
    found = grad(lambda x: np.sum(cubes(x)))(x)
    assert found.dtype == "float32"
    onp.testing.assert_allclose(found, 3 * x**2, rtol=1e-3)
    assert onp.max(onp.abs(found - 3 * x**2)) <= cubes.gradient_error
    # One that takes double is given double, and gives all the digits that float32 has.
    f = gb.primitive(gradient="numeric")(lambda x: onp.sin(x))
    onp.testing.assert_allclose(grad(lambda x: np.sum(f(x)))(x), onp.cos(x), rtol=1e-7)


def test_outputs_that_change_their_shape_are_refused():
    f = gb.primitive(gradient="numeric")(lambda x: x[x > 1.0])
    with pytest.raises(NotDifferentiableError, match="1 numbers come out of it where a step before 2 did"):
        grad(lambda x: np.sum(f(x)))(onp.array([1.01, 3.0]))


@pytest.mark.parametrize(
    "option", [{"step": 0.0}, {"step": "small"}, {"step": onp.nan}, {"order": 3}, {"order": True}]
)
def test_steps_and_orders_that_there_are_not_are_refused(option):
    with pytest.raises(OptionError, match=f"{next(iter(option))} must be"):
        gb.primitive(gradient="numeric", **option)(lambda x: x)


def test_numeric_gradients_with_respect_to_params():
    f = gb.bridge(lambda p, x: onp.exp(p["k"] * x), params={"k": 0.5}, backend="numpy", gradient="numeric")
    assert onp.allclose(grad(lambda p: f(p, 2.0))(f.params), 2 * onp.exp(1.0), rtol=1e-8)


def test_numeric_and_written_gradients_exclude_each_other():
    f = gb.primitive(gradient="numeric")(lambda x: x)
    with pytest.raises(OptionError, match="leave that out"):
        f.defvjp(lambda ans, x: lambda v: v)


def test_options_of_a_numeric_gradient_without_one_are_refused():
    with pytest.raises(OptionError, match="order belong to gradient='numeric'"):
        gb.primitive(order=4)(lambda x: x)
