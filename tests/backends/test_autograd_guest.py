"""Functions of autograd.numpy as guests: right to every order, in any thread."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest

autograd = pytest.importorskip("autograd")

import autograd.numpy as anp  # noqa: E402
from autograd import builtins  # noqa: E402
from autograd.extend import primitive  # noqa: E402
from autograd.tracer import trace_stack  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.call_spec import CallSpec  # noqa: E402
from gradbridge.errors import GuestError, NotDifferentiableError, OptionError, OutputError  # noqa: E402
from gradbridge.protocol import GuestOptions  # noqa: E402
from gradbridge_autograd.guest import adapt  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 3))
TREE = {"b": RNG.normal(size=2), "w": RNG.normal(size=(3, 2))}
NO_PARAMS = np.empty(0)


def net(tree, x):
    return anp.tanh(anp.dot(x, tree["w"]) + tree["b"])


def bridged(function, **options):
    return gb.bridge(adapt(function, GuestOptions(**options)))


@pytest.fixture
def f():
    return bridged(net, params=TREE)


def loss(f):
    return lambda p, x: anp.sum(f(p, x) ** 3)


def plain(f):
    return loss(lambda p, x: net(f.layout.unravel(p), x))


@pytest.mark.parametrize("argnum", [0, 1])
@pytest.mark.parametrize("derivative", [autograd.grad, autograd.hessian])
def test_derivatives_are_those_of_the_function_itself(f, derivative, argnum):
    ours, own = derivative(loss(f), argnum)(f.params, X), derivative(plain(f), argnum)(f.params, X)
    np.testing.assert_allclose(ours, own, rtol=1e-12, atol=1e-13)


def test_mixed_second_derivatives_are_those_of_the_function_itself(f):
    ours = autograd.jacobian(autograd.grad(loss(f), 0), 1)(f.params, X)
    own = autograd.jacobian(autograd.grad(plain(f), 0), 1)(f.params, X)
    np.testing.assert_allclose(ours, own, rtol=1e-12, atol=1e-13)


def test_the_fourth_derivative_is_the_closed_form():
    f = bridged(lambda x: anp.sin(x))
    g = lambda x: f(NO_PARAMS, x)
    for _ in range(4):
        g = autograd.elementwise_grad(g)
    x = np.linspace(-1, 1, 5)
    np.testing.assert_allclose(g(x), np.sin(x), rtol=1e-13, atol=1e-15)


def test_gradients_of_params_and_inputs_cost_one_forward_and_one_backward(f):
    with gb.trace() as t:
        autograd.grad(lambda both: loss(f)(both[0], both[1]))((f.params, X))
    assert (t.counts["forward"], t.counts["backward"]) == (1, 1)


def step(f, scale):
    """Forward and backward made by hand, as a host without autograd's tracer makes them."""
    adapter = f.adapter
    arguments = tuple(range(len(f.layout) + 1))
    pullback = adapter.pullback(CallSpec.of_arrays(1), arguments)
    v = np.ones((5, 2))
    every = (*arguments, len(arguments))
    loaded = pullback.update(f.layout.cut(scale * f.params))
    _, residuals = pullback.forward(loaded, [X, v], CallSpec.of_arrays(2), every)
    ones = [np.ones(shape) for shape in f.layout.shapes]
    return np.concatenate([g.ravel() for g in pullback.backward(residuals, [*ones, X], every)])


def test_eight_threads_at_their_own_params_give_what_each_alone_would(f):
    scales = np.linspace(0.5, 2, 8)
    alone = [step(f, scale) for scale in scales]
    wrong = []

    def work(scale, expected):
        for _ in range(30):
            if not np.array_equal(step(f, scale), expected):
                wrong.append(scale)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(scales, alone)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_autograds_counter_of_open_traces_is_not_touched():
    levels = []

    def watched(x):
        levels.append(trace_stack.top)
        return x**2

    f = gb.bridge(adapt(watched, GuestOptions()), audit="off")
    outside = trace_stack.top
    autograd.grad(lambda x: f(NO_PARAMS, x))(1.0)
    assert set(levels) == {outside + 1}  # the host's own, also where the first call is repeated
    assert trace_stack.top == outside


def test_a_function_that_differentiates_inside_is_differentiated():
    f = bridged(lambda x: autograd.grad(lambda y: y**3 * x)(x))  # 3 x³
    g = lambda x: f(NO_PARAMS, x)
    assert g(2.0) == 24.0
    assert autograd.grad(g)(2.0) == 36.0
    assert autograd.grad(autograd.grad(g))(2.0) == 36.0


def test_a_bridge_inside_a_bridged_function_is_differentiated():
    inner = bridged(lambda x: anp.sin(x))
    outer = bridged(lambda x: x * inner(NO_PARAMS, x))
    g = lambda x: outer(NO_PARAMS, x)
    assert autograd.grad(g)(0.7) == pytest.approx(np.sin(0.7) + 0.7 * np.cos(0.7), rel=1e-14)
    assert autograd.grad(autograd.grad(g))(0.7) == pytest.approx(
        2 * np.cos(0.7) - 0.7 * np.sin(0.7), rel=1e-14
    )


def test_two_params_in_flight_and_pullbacks_in_reverse_order_do_not_see_each_other(f):
    both = autograd.grad(lambda p: loss(f)(p, X) + loss(f)(2 * p, X))(f.params)
    alone = [autograd.grad(loss(f))(p, X) for p in (f.params, 2 * f.params)]
    np.testing.assert_allclose(both, alone[0] + 2 * alone[1], rtol=1e-12)


def test_the_callers_arrays_may_change_between_forward_and_backward(f):
    adapter, params, x, v = f.adapter, f.params, X.copy(), np.ones((5, 2))
    wrt = tuple(range(len(f.layout) + 1))
    _, residuals = adapter.forward(adapter.update(f.layout.cut(params)), [x], CallSpec.of_arrays(1), wrt)
    expected = [g.copy() for g in adapter.backward(residuals, [v], wrt)]
    for array in (params, x):
        array[...] = 0
    for gradient, before in zip(adapter.backward(residuals, [v], wrt), expected):
        assert np.array_equal(gradient, before)


def test_outputs_and_gradients_are_the_callers_to_write_to(f):
    x, v = X.copy(), np.ones((5, 2))
    pull, output = autograd.make_vjp(lambda p, x: f(p, x), (0, 1))(f.params, x)
    expected = [g.copy() for g in pull(v)]
    for array in (output, *pull(v)):
        array[...] = 0
    for gradient, before in zip(pull(v), expected):
        assert np.array_equal(gradient, before)


def test_a_cotangent_that_is_handed_on_unchanged_is_not_the_callers_own_array():
    f = bridged(lambda x, y: x + y)
    v = np.ones(3)
    gx, gy = autograd.make_vjp(lambda x, y: f(NO_PARAMS, x, y), (0, 1))(np.ones(3), np.ones(3))[0](v)
    gx[:] = 5
    assert np.array_equal(gy, np.ones(3))
    assert np.array_equal(v, np.ones(3))


def test_containers_come_out_and_what_has_no_influence_is_exactly_zero():
    f = bridged(lambda x, y: {"a": x * 2, "b": (x**2, y)})
    out = f(NO_PARAMS, X, np.arange(3))
    assert np.array_equal(out["b"][1], np.arange(3))
    np.testing.assert_allclose(
        autograd.grad(lambda x: anp.sum(f(NO_PARAMS, x, np.arange(3))["b"][0]))(X), 2 * X, rtol=1e-15
    )
    g = bridged(lambda x, y: anp.sum(x))
    assert not autograd.grad(lambda y: g(NO_PARAMS, X, y))(X).any()
    assert not autograd.hessian(lambda y: g(NO_PARAMS, X, y))(np.ones(2)).any()


def test_float32_is_computed_in_when_asked_for():
    seen = []

    def watched(tree, x):
        seen.append(x._value.dtype if hasattr(x, "_value") else x.dtype)
        return net(tree, x)

    f = bridged(watched, params=TREE, dtype="float32")
    gradient = autograd.grad(loss(f), 1)(f.params, X)
    assert seen[-1] == np.float32
    np.testing.assert_allclose(gradient, autograd.grad(plain(f), 1)(f.params, X), rtol=1e-4, atol=1e-5)


def test_a_primitive_without_a_vjp_is_refused_with_the_reason():
    opaque = primitive(lambda x: x * 2)
    f = bridged(lambda x: opaque(x))
    assert f(NO_PARAMS, 1.5) == 3.0
    with pytest.raises(NotDifferentiableError, match="declare its VJP with autograd.extend.defvjp"):
        autograd.grad(lambda x: f(NO_PARAMS, x))(1.5)


def test_failures_are_named_with_shapes_and_outputs_must_be_arrays(f):
    with pytest.raises(GuestError, match=r"net failed on input 0 of shape \(5, 2\) float64"):
        f(f.params, X[:, :2])
    with pytest.raises(OutputError, match="output 1 of .* is a str"):
        bridged(lambda x: (x, "label"))(NO_PARAMS, 1.0)


def test_unusable_options_are_refused():
    with pytest.raises(OptionError, match="no option 'jit'"):
        bridged(net, extra={"jit": True})
    with pytest.raises(OptionError, match="has no device"):
        bridged(net, device="cpu")
    with pytest.raises(OptionError, match="dtype must be one of"):
        bridged(net, dtype="bfloat16")
    with pytest.raises(OptionError, match="parameter 'n' of params= has dtype int64"):
        bridged(net, params={"n": np.arange(3)})


def test_the_model_of_new_params_and_a_copy_of_the_adapter_compute_the_same(f):
    assert np.array_equal(f.model(2 * f.params)(X), f(2 * f.params, X))
    twin = gb.bridge(copy.deepcopy(f.adapter))
    assert np.array_equal(autograd.grad(loss(twin))(f.params, X), autograd.grad(loss(f))(f.params, X))


@pytest.mark.parametrize("kinds", [(builtins.tuple, tuple), (builtins.list, list)])
def test_containers_of_autograds_own_come_apart_under_any_number_of_traces(kinds):
    make, kind = kinds
    V, U = np.array([0.5, -1.0, 2.0]), np.array([1.0, 0.3, -0.7])
    f = gb.bridge(lambda p, x: make((p * x, anp.sin(p))), params=V, backend="autograd")
    assert type(f(V, U)) is kind

    def loss(p):
        scaled, waves = f(p, U)
        return anp.sum(scaled**2) + anp.sum(waves)

    np.testing.assert_allclose(autograd.grad(loss)(V), 2 * U**2 * V + np.cos(V))
    np.testing.assert_allclose(autograd.hessian(loss)(V), np.diag(2 * U**2 - np.sin(V)))


def test_it_computes_in_the_dtype_that_is_asked_for_later():
    V = np.array([0.5, -1.0, 2.0])
    f = gb.bridge(lambda p, x: p * x, params=V.astype("float32"), backend="autograd")
    third = np.full(3, 1 / 3)
    assert np.array_equal(gb.bridge(f.adapter.in_dtype("float64"))(third, V), third * V)
    for wrong in ("int8", "bfloat16"):
        with pytest.raises(OptionError, match="dtype must be one of float64, float32, float16"):
            f.adapter.in_dtype(wrong)
        with pytest.raises(OptionError, match="dtype must be one of float64, float32, float16"):
            gb.bridge(lambda p: p, params=V, backend="autograd", dtype=wrong)
