"""Functions of JAX arrays as guests: right to third order, in their own dtype."""

from __future__ import annotations

import copy
import pickle
import threading

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.call_spec import CallSpec  # noqa: E402
from gradbridge.errors import GuestError, InputError, NotDifferentiableError, OptionError, OutputError  # noqa: E402
from gradbridge.protocol import GuestOptions  # noqa: E402
from gradbridge_jax.guest import adapt  # noqa: E402
from gradbridge_jax.isolation import isolated  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3))
TREE = {
    "layers": [
        {"b": RNG.normal(size=4), "w": RNG.normal(size=(3, 4))},
        {"b": RNG.normal(size=2), "w": RNG.normal(size=(4, 2))},
    ]
}


def net(tree, x):
    first, second = tree["layers"]
    return jnp.tanh(x @ first["w"] + first["b"]) @ second["w"] + second["b"]


def squared(f):
    return lambda p, x: anp.sum(f(p, x) ** 2)


def native(order):
    """JAX's own derivative of Σ net², with respect to the flat vector and x, in float64."""
    layout = gb.bridge(net, params=TREE, backend="jax").layout

    def loss(p, x):
        return (
            net(jax.tree.unflatten(jax.tree.structure(TREE), list(layout.unravel(p).values())), x) ** 2
        ).sum()

    return order(loss)


def in_float64(function, *arrays):
    with isolated(True):
        return jax.tree.map(np.asarray, function(*map(jnp.asarray, arrays)))


@pytest.fixture
def f():
    return gb.bridge(net, params=TREE, backend="jax")


def adapted(function, **options):
    return adapt(function, GuestOptions(**options))


def test_parameters_are_named_by_their_paths(f):
    assert f.layout.names == ("layers/0/b", "layers/0/w", "layers/1/b", "layers/1/w")
    assert np.array_equal(f.layout.ravel(TREE), f.params)


def test_values_and_all_gradients_are_jaxs_own_in_float64(f):
    expected = in_float64(native(lambda g: jax.value_and_grad(g, (0, 1))), f.params, X)
    assert squared(f)(f.params, X) == pytest.approx(expected[0], rel=1e-13)
    for argnum in (0, 1):
        gradient = autograd.grad(squared(f), argnum)(f.params, X)
        assert gradient.dtype == np.float64
        np.testing.assert_allclose(gradient, expected[1][argnum], rtol=1e-12)


def test_gradients_of_params_and_inputs_cost_one_forward_and_one_backward(f):
    with gb.trace() as t:
        autograd.grad(lambda both: squared(f)(both[0], both[1]))((f.params, X))
    assert (t.counts["forward"], t.counts["backward"]) == (1, 1)


def test_hessians_of_params_and_inputs_are_jaxs_own(f):
    for argnum in (0, 1):
        expected = in_float64(native(lambda g, n=argnum: jax.hessian(g, n)), f.params, X)
        np.testing.assert_allclose(
            autograd.hessian(squared(f), argnum)(f.params, X), expected, rtol=1e-10, atol=1e-10
        )


def test_mixed_second_derivatives_are_jaxs_own(f):
    expected = in_float64(native(lambda g: jax.jacobian(jax.grad(g, 0), 1)), f.params, X)
    mixed = autograd.jacobian(autograd.grad(squared(f), 0), 1)(f.params, X)
    np.testing.assert_allclose(mixed, expected, rtol=1e-10, atol=1e-10)


def test_third_and_fourth_derivatives_are_the_closed_form():
    f = gb.primitive(lambda x: jnp.sin(x), backend="jax")
    derivative = lambda g, n: g if n == 0 else derivative(autograd.elementwise_grad(g), n - 1)
    x = np.linspace(-1, 1, 5)
    np.testing.assert_allclose(derivative(f, 3)(x), -np.cos(x), rtol=1e-12)
    np.testing.assert_allclose(derivative(f, 4)(x), np.sin(x), rtol=1e-12, atol=1e-15)


def test_a_jvp_is_jaxs_own(f):
    tangent = RNG.normal(size=f.layout.size)
    _, pushed = autograd.make_jvp(lambda p: squared(f)(p, X))(f.params)(tangent)
    expected = in_float64(native(jax.grad), f.params, X) @ tangent
    assert pushed == pytest.approx(expected, rel=1e-12)


def test_two_params_in_flight_and_pullbacks_in_reverse_order_do_not_see_each_other(f):
    alone = [autograd.grad(squared(f))(p, X) for p in (f.params, 2 * f.params)]
    both = autograd.grad(lambda p: squared(f)(p, X) + squared(f)(2 * p, X))(f.params)
    np.testing.assert_allclose(both, alone[0] + 2 * alone[1], rtol=1e-12)
    adapter, spec, weights = f.adapter, CallSpec.of_arrays(1), tuple(range(len(f.layout)))
    v = [RNG.normal(size=(6, 2))]
    flights = [
        adapter.forward(adapter.update_flat(k * f.params, False), [X], spec, weights)[1]
        for k in (1.0, 2.0, 3.0)
    ]
    forwards = [adapter.border.join(adapter.backward(r, v, weights)) for r in flights]
    backwards = [adapter.border.join(adapter.backward(r, v, weights)) for r in reversed(flights)]
    for first, second in zip(forwards, reversed(backwards)):
        assert np.array_equal(first, second)


def test_eight_threads_at_their_own_params_give_what_each_alone_would(f):
    scales = np.linspace(0.5, 2, 8)
    alone = [autograd_free_gradient(f, s) for s in scales]
    wrong = []

    def work(scale, expected):
        for _ in range(20):
            if not np.array_equal(autograd_free_gradient(f, scale), expected):
                wrong.append(scale)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(scales, alone)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def autograd_free_gradient(f, scale):
    """Steps made by hand: autograd's own tracer is not for threads."""
    adapter = f.adapter
    wrt = tuple(range(len(f.layout) + 1))
    loaded = adapter.update_flat(scale * f.params, False)
    _, residuals = adapter.forward(loaded, [X], CallSpec.of_arrays(1), wrt)
    return np.concatenate([np.ravel(g) for g in adapter.backward(residuals, [np.ones((6, 2))], wrt)])


def test_the_global_x64_flag_is_neither_changed_nor_trusted(f):
    before = jax.config.jax_enable_x64
    expected = autograd.grad(squared(f))(f.params, X)
    assert jax.config.jax_enable_x64 == before
    for wide in (True, False):
        with isolated(wide):
            assert np.array_equal(autograd.grad(squared(f))(f.params, X), expected)


def test_float32_parameters_compute_in_the_hosts_precision_and_dtype_overrides_it():
    small = jax.tree.map(lambda a: a.astype(np.float32), TREE)
    seen = []

    def watched(tree, x):
        seen.append((str(x.dtype), str(tree["layers"][0]["w"].dtype)))
        return net(tree, x)

    for dtype in (None, "model", "float64", "float32", "bfloat16"):
        f = gb.bridge(watched, params=small, backend="jax", dtype=dtype)
        value = f(f.params, X)
        assert seen[-1] == ({None: "float64", "model": "float32"}.get(dtype, dtype),) * 2
        assert value.dtype == np.float64
        tolerance = {None: 1e-6, "float64": 1e-6, "bfloat16": 0.1}.get(dtype, 1e-5)
        np.testing.assert_allclose(value, value_of(X), atol=tolerance)
        assert np.isfinite(autograd.grad(squared(f))(f.params, X)).all()


def value_of(x):
    first, second = TREE["layers"]
    return np.tanh(x @ first["w"] + first["b"]) @ second["w"] + second["b"]


def test_a_function_without_parameters_computes_in_the_dtype_of_its_inputs():
    seen = []

    @gb.primitive(backend="jax")
    def cube(x):
        seen.append(str(x.dtype))
        return x**3

    for dtype in (np.float64, np.float32, np.float16):
        x = np.array([2.0, 3.0], dtype)
        assert cube(x).dtype == dtype
        assert seen[-1] == np.dtype(dtype).name
    assert autograd.grad(autograd.grad(cube))(2.0) == 12.0


def test_integer_inputs_go_through_untouched_and_have_no_gradient():
    table = RNG.normal(size=(5, 2))
    f = gb.bridge(lambda t, i: t[i], params=table.astype(np.float32), backend="jax", dtype="model")
    indices = np.array([0, 3, 3])
    gradient = autograd.grad(lambda p: anp.sum(f(p, indices)))(f.params).reshape(5, 2)
    assert np.array_equal(gradient, np.array([[1, 1], [0, 0], [0, 0], [2, 2], [0, 0]]))
    with pytest.raises(NotDifferentiableError):
        autograd.grad(lambda i: anp.sum(f(f.params, i)))(indices)
    with pytest.raises(InputError, match="64-bit integers"):
        f(f.params, np.array([2**40]))


def test_trees_go_in_and_come_out_and_untouched_outputs_cost_nothing():
    def both(inputs, *, scale):
        a, b = inputs["a"], inputs["b"]
        return {"sum": a + b, "rest": (a * scale, jnp.argmax(b))}

    f = gb.primitive(both, backend="jax")
    a, b = np.arange(3.0), np.ones(3)
    out = f({"a": a, "b": b}, scale=np.array(2.0))
    assert np.array_equal(out["sum"], a + b)
    assert out["rest"][1].dtype.kind == "i"
    gradient = autograd.grad(lambda a: anp.sum(f({"a": a, "b": b}, scale=np.array(2.0))["rest"][0]))(a)
    assert np.array_equal(gradient, 2 * np.ones(3))
    exact_zero = autograd.grad(lambda b: anp.sum(f({"a": a, "b": b}, scale=np.array(2.0))["rest"][0]))(b)
    assert not exact_zero.any()


def test_the_callers_arrays_may_change_between_forward_and_backward(f):
    params, x = f.params, X.copy()
    expected = autograd.grad(squared(f), 1)(params, x)
    adapter, of_x = f.adapter, (len(f.layout),)
    loaded = adapter.update_flat(params, False)
    output, residuals = adapter.forward(loaded, [x], CallSpec.of_arrays(1), of_x)
    v = 2 * np.asarray(output)
    params[:] = 0
    x[:] = 0
    (gradient,) = adapter.backward(residuals, [v], of_x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)
    v[:] = 0  # ours to write to
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)
    np.testing.assert_allclose(
        adapter.backward(residuals, [2 * np.asarray(output)], of_x)[0], expected, rtol=1e-12
    )


def test_inside_a_trace_of_the_callers_a_bridge_on_constants_still_computes(f):
    @jax.jit
    def program(y):
        return y + autograd.grad(squared(f))(f.params, X)[0]

    expected = autograd.grad(squared(f))(f.params, X)[0]
    assert float(program(1.0)) == pytest.approx(1 + expected, rel=1e-5)


def test_mixed_dtypes_and_large_trees_keep_the_order_of_the_layout():
    tree = {"a": np.float32(RNG.normal(size=(200, 100))), "b": RNG.normal(size=3)}
    f = gb.bridge(lambda t, x: (t["a"].sum() * x + t["b"]) ** 2, params=tree, backend="jax")
    gradient = f.layout.unravel(autograd.grad(lambda p: anp.sum(f(p, np.ones(3))))(f.params))
    inner = tree["a"].astype(float).sum() + tree["b"]
    np.testing.assert_allclose(gradient["b"], 2 * inner, rtol=1e-4)
    np.testing.assert_allclose(gradient["a"], np.full((200, 100), 2 * inner.sum()), rtol=1e-4)


def test_the_model_of_new_params_is_a_plain_jax_function(f):
    model = f.model(2 * f.params)
    with isolated(True):
        np.testing.assert_allclose(model(jnp.asarray(X)), f(2 * f.params, X), rtol=1e-13)


def test_the_trees_arrays_may_change_after_bridging():
    tree = {"w": np.ones(3)}
    f = gb.bridge(lambda t, x: t["w"] * x, params=tree, backend="jax")
    tree["w"][:] = 7
    assert np.array_equal(f.params, np.ones(3))


def test_vmap_maps_over_the_rows_of_every_input():
    f = gb.primitive(lambda x, y: x @ y, backend="jax", vmap=True)
    np.testing.assert_allclose(f(X, X), (X * X).sum(1))
    np.testing.assert_allclose(autograd.grad(lambda x: anp.sum(f(x, X)))(X), X)


def test_a_copy_and_a_pickle_of_the_adapter_compute_the_same(f):
    adapter = adapted(net, params=TREE)
    adapter.forward(adapter.update(adapter.weights()), [X], CallSpec.of_arrays(1), (0,))
    for twin in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        again = gb.bridge(twin)
        assert np.array_equal(
            autograd.hessian(squared(again))(f.params, X), autograd.hessian(squared(f))(f.params, X)
        )


def test_a_failing_function_is_named_with_the_shapes_it_was_given(f):
    with pytest.raises(
        GuestError, match=r"net failed on input 0 of shape \(6, 2\) float64: TypeError: dot_general"
    ):
        f(f.params, X[:, :2])


def test_what_is_no_array_is_refused_as_an_output():
    with pytest.raises(OutputError, match="output 1 of .* is a str"):
        gb.primitive(lambda x: (x, "label"), backend="jax")(1.0)


def test_unusable_options_are_refused_with_those_that_exist():
    with pytest.raises(OptionError, match="no option 'compile'; it has jit, key, vmap, state"):
        gb.bridge(net, params=TREE, backend="jax", compile=True)
    with pytest.raises(OptionError, match="dtype must be one of"):
        gb.bridge(net, params=TREE, backend="jax", dtype="int32")
    with pytest.raises(OptionError, match="device 'tpu' cannot be used here"):
        gb.bridge(net, params=TREE, backend="jax", device="tpu")
    with pytest.raises(OptionError, match="jit must be"):
        gb.bridge(net, params=TREE, backend="jax", jit="never")
    with pytest.raises(OptionError, match="'n' of params= of <lambda> has type int"):
        gb.bridge(lambda t, x: x, params={"n": 3, "w": np.ones(2)}, backend="jax")
    with pytest.raises(NotDifferentiableError, match="is complex"):
        gb.bridge(lambda t, x: x, params={"w": np.ones(2) * 1j}, backend="jax")


def test_on_a_named_device_the_result_is_the_same(f):
    there = gb.bridge(net, params=TREE, backend="jax", device="cpu:0")
    assert np.array_equal(autograd.grad(squared(there))(f.params, X), autograd.grad(squared(f))(f.params, X))
