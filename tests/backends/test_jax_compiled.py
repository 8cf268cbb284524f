"""What is compiled for a JAX guest: what and how often, shared by copies, freed with the bridge; second order from the record."""

from __future__ import annotations

import copy
import gc
import weakref

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import GuestError  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 3))
TREE = {"v": RNG.normal(size=4), "w": RNG.normal(size=(3, 4))}


class Something:
    pass


def net(tree, x):
    return jnp.tanh(x @ tree["w"]) @ tree["v"]


def counted(function):
    traces = []

    def inner(*args, **kwargs):
        traces.append(args)
        return function(*args, **kwargs)

    return inner, traces


def loss(f, *rest):
    return lambda p: anp.sum(f(p, X, *rest) ** 2)


def squared(f):
    return lambda p, x: anp.sum(f(p, x) ** 2)


def test_a_dropped_bridge_frees_what_its_function_held():
    def bridged():
        held = Something()

        def function(tree, x):
            assert held is not None
            return net(tree, x)

        f = gb.bridge(function, params=TREE, backend="jax")
        value, gradient = autograd.value_and_grad(loss(f))(f.params)
        product = autograd.hessian_vector_product(loss(f))(f.params, gradient)
        assert np.isfinite([value, *product]).all()
        return weakref.ref(held)

    references = [bridged() for _ in range(2)]
    gc.collect()
    assert [r() for r in references] == [None, None]


def test_a_deep_copy_compiles_nothing_anew():
    function, traces = counted(net)
    f = gb.bridge(function, params=TREE, backend="jax")
    expected = autograd.grad(loss(f))(f.params)
    twin = copy.deepcopy(f)
    assert np.array_equal(autograd.grad(loss(twin))(twin.params), expected)
    assert len(traces) == 1


def test_a_deep_copys_state_is_its_own():
    eqx = pytest.importorskip("equinox")

    class Model(eqx.Module):
        norm: eqx.nn.BatchNorm

        def __call__(self, x, state):
            return self.norm(x, state)

    model, state = eqx.nn.make_with_state(lambda: Model(eqx.nn.BatchNorm(3, "batch", mode="batch")))()
    f = gb.bridge(model, mode="train", vmap=True, state=state)
    f(f.params, X)
    twin = copy.deepcopy(f)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(f.model(f.params)[1])]
    twin(twin.params, X + 5)
    for was, now in zip(before, jax.tree.leaves(f.model(f.params)[1])):
        assert np.array_equal(was, now)
    changed = jax.tree.leaves(twin.model(f.params)[1])
    assert any(not np.array_equal(was, now) for was, now in zip(before, changed))


@pytest.mark.parametrize("packed", [True, False])
def test_a_hessian_vector_product_makes_one_forward_and_traces_the_model_once(packed):
    tree = TREE if packed else {"v": RNG.normal(size=6000), "w": RNG.normal(size=(3, 6000)) / 50}
    function, traces = counted(net)
    f = gb.bridge(function, params=tree, backend="jax")
    v = RNG.normal(size=f.layout.size)
    for _ in range(2):
        with gb.trace() as t:
            product = autograd.hessian_vector_product(loss(f))(f.params, v)
        assert t.counts["forward"] == 1
    assert len(traces) == 1

    def native(flat):
        return (net(f.layout.unravel(flat), jnp.asarray(X)) ** 2).sum()

    with jax.enable_x64(True):
        weights = jnp.asarray(f.params)
        expected = jax.jvp(jax.grad(native), (weights,), (jnp.asarray(v),))[1]
    np.testing.assert_allclose(product, expected, rtol=1e-11, atol=1e-13)


def test_one_program_serves_for_all_values_of_a_python_integer():
    function, traces = counted(lambda tree, x, n: net(tree, x)[n] * n / (n + 1))
    f = gb.bridge(function, params=TREE, backend="jax")
    plain = np.tanh(X @ TREE["w"]) @ TREE["v"]
    for n in range(5):
        assert float(f(f.params, X, n)) == pytest.approx(plain[n] * n / (n + 1), rel=1e-12)
    assert len(traces) == 1
    for n in range(5):
        gradient = autograd.grad(lambda p, n=n: f(p, X, n))(f.params)
        with jax.enable_x64(True):
            expected = jax.grad(lambda t, n=n: net(t, X)[n] * n / (n + 1))(jax.tree.map(jnp.asarray, TREE))
        np.testing.assert_allclose(f.layout.unravel(gradient)["w"], expected["w"], rtol=1e-11)
    assert len(traces) == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda x, n: x[:n].sum() * jnp.ones(n).sum(),
        lambda x, n: x.sum() if n > 2 else x.prod(),
        lambda x, n: sum(x[i] ** i for i in range(n)),
        lambda x, n: jax.lax.fori_loop(0, n, lambda i, y: y * 0.5, x).sum(),
        lambda x, n: (x * 10**n * 10**n * 1000).sum(),
    ],
    ids=["shape", "if", "range", "a loop that only a fixed length can pull back", "Python's own precision"],
)
def test_a_python_integer_that_must_be_static_is(function):
    f = gb.primitive(function, backend="jax")
    x = np.linspace(0.5, 1.5, 6)
    for n in (1, 3, 4, 3, 1):
        with jax.enable_x64(True):
            value, gradient = jax.value_and_grad(function)(jnp.asarray(x), n)
        assert f(x, n) == pytest.approx(float(value), rel=1e-12)
        np.testing.assert_allclose(autograd.grad(f)(x, n), gradient, rtol=1e-12)


def test_python_integers_beyond_jaxs_own_are_no_less_right():
    f = gb.primitive(lambda x, n: x * n, backend="jax", dtype="float32")
    assert f(np.ones(2), 3).dtype == np.float64
    for n in (3, 2**30, -(2**29), 7):
        np.testing.assert_allclose(f(np.ones(2), n), float(n), rtol=1e-6)


def test_integers_are_weak_as_they_are_in_jax():
    seen = []

    def function(x, n):
        seen.append((x * n).dtype)
        return x * n

    f = gb.primitive(function, backend="jax", dtype="float32")
    f(np.ones(2), 3)
    assert set(seen) == {np.dtype(np.float32)}


def test_a_function_is_traced_once_for_each_shape_however_often_it_is_called():
    traces = []

    def counted(tree, x):
        traces.append(x.shape)
        return net(tree, x)

    f = gb.bridge(counted, params=TREE, backend="jax")
    for scale in (1.0, 2.0, 3.0):
        autograd.grad(squared(f))(scale * f.params, X)
    assert len(traces) == 1
    for scale in (1.0, 2.0, 3.0):
        autograd.hessian_vector_product(squared(f))(scale * f.params, X, f.params)
    after_first_order_of_the_derivative = len(traces)
    autograd.hessian_vector_product(squared(f))(f.params, X, 2 * f.params)
    assert len(traces) == after_first_order_of_the_derivative
    autograd.grad(squared(f))(f.params, X[:2])
    assert traces[-1] == (2, 3)


def test_python_numbers_and_strings_are_static_and_kept_apart():
    f = gb.primitive(lambda x, n, how: x**n if how == "power" else x * n, backend="jax")
    assert f(3.0, 2, "power") == 9.0
    assert f(3.0, 3, "power") == 27.0
    assert f(3.0, 3, "times") == 9.0
    assert f(3.0, True, "times") == 3.0
    assert autograd.grad(f)(3.0, 3, "power") == 27.0


def test_an_object_that_may_change_is_looked_at_in_every_call():
    class Settings:
        scale = 2.0

    settings = Settings()
    f = gb.primitive(lambda x, s: x * s.scale, backend="jax")
    assert autograd.grad(f)(1.0, settings) == 2.0
    settings.scale = 5.0
    assert autograd.grad(f)(1.0, settings) == 5.0


def branching(x):
    total = 0.0 * x.sum()
    while total < 3:
        total = total + (x**2).sum()
    return total if x[0] > 0 else -total


def test_python_control_flow_on_values_runs_step_by_step_and_is_differentiated_right():
    f = gb.primitive(branching, backend="jax")
    x = np.array([1.0, 0.5])
    np.testing.assert_allclose(autograd.grad(f)(x), 6 * x)
    np.testing.assert_allclose(autograd.grad(f)(-x), 6 * x)
    np.testing.assert_allclose(autograd.hessian(f)(x), 6 * np.eye(2))


def test_with_jit_true_control_flow_on_values_is_refused_with_advice():
    f = gb.primitive(branching, backend="jax", jit=True)
    with pytest.raises(GuestError, match=r"leave jit= out"):
        f(np.ones(2))


def test_with_jit_false_variables_that_change_are_seen():
    factor = [1.0]
    f = gb.primitive(lambda x: x * factor[0], backend="jax", jit=False)
    assert f(2.0) == 2.0
    factor[0] = 3.0
    assert autograd.grad(f)(2.0) == 3.0


def test_a_function_over_variables_that_change_is_not_compiled_in():
    def scaled_by(c):
        return lambda x: x * c["rate"]

    settings = {"rate": 1.0}
    f = gb.primitive(lambda x, scale: scale(x), backend="jax")
    scale = scaled_by(settings)
    before = f(np.ones(2), scale)
    settings["rate"] = 3.0
    np.testing.assert_array_equal(f(np.ones(2), scale), 3 * before)
