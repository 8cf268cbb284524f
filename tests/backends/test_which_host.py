"""``host="auto"``: the arrays of a call say whose it is, and one bridge serves all hosts."""

import copy
import pickle

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")

X = np.linspace(-1.0, 1.0, 6).reshape(3, 2)


@pytest.fixture
def f():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    return gb.bridge(network, dtype="float64")


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def test_one_bridge_serves_all_hosts_in_turn(f):
    expected = autograd.grad(lambda p: anp.sum(f(p, X) ** 2))(f.params)
    for _ in range(2):
        p = torch.tensor(f.params, requires_grad=True)
        (f(p, torch.tensor(X)) ** 2).sum().backward()
        np.testing.assert_allclose(p.grad.numpy(), expected, rtol=1e-12)
        traced = jax.jit(jax.grad(lambda p: jnp.sum(f(p, X) ** 2)))(f.params)
        np.testing.assert_allclose(traced, expected, rtol=1e-12)
        np.testing.assert_allclose(autograd.grad(lambda p: anp.sum(f(p, X) ** 2))(f.params), expected, rtol=0)


def test_the_params_decide_where_nothing_is_differentiated(f):
    assert type(f(f.params, X)) is np.ndarray
    assert type(f(f.params, torch.tensor(X))) is np.ndarray
    assert type(f(f.params, jnp.asarray(X))) is np.ndarray
    assert type(f(torch.tensor(f.params), X)) is torch.Tensor
    assert isinstance(f(jnp.asarray(f.params), X), jax.Array)
    tree = f.layout.unravel(torch.tensor(f.params))
    assert type(f(tree, X)) is torch.Tensor
    assert type(f(f.layout.unravel(f.params), torch.tensor(X))) is np.ndarray


def test_what_is_differentiated_decides_whatever_the_params_are(f):
    x = torch.tensor(X, requires_grad=True)
    y = f(f.params, x)
    assert y.requires_grad
    (gradient,) = torch.autograd.grad(y.sum(), x)
    expected = autograd.grad(lambda x: anp.sum(f(f.params, x)))(X)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(f(f.params, x)))(X), expected, rtol=1e-12)


def test_constants_of_another_library_are_data(f):
    expected = autograd.grad(lambda p: anp.sum(f(p, X)))(f.params)
    for x in (torch.tensor(X), jnp.asarray(X)):
        np.testing.assert_allclose(
            autograd.grad(lambda p, x=x: anp.sum(f(p, x)))(f.params), expected, rtol=1e-12
        )
    p = torch.tensor(f.params, requires_grad=True)
    (gradient,) = torch.autograd.grad(f(p, jnp.asarray(X)).sum(), p)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)
    np.testing.assert_allclose(
        jax.grad(lambda p: jnp.sum(f(p, torch.tensor(X))))(jnp.asarray(f.params)), expected, rtol=1e-12
    )


def test_two_hosts_that_both_differentiate_are_refused_and_named(f):
    x = torch.tensor(X, requires_grad=True)
    with pytest.raises(gb.errors.HostError, match="autograd.*torch|torch.*autograd"):
        autograd.grad(lambda p: anp.sum(f(p, x)))(f.params)
    with pytest.raises(gb.errors.HostError, match="jax.*torch"):
        jax.grad(lambda p: jnp.sum(f(p, x)))(jnp.asarray(f.params))
    with pytest.raises(gb.errors.HostError, match="autograd.*jax|jax.*autograd"):
        autograd.grad(lambda p: float(jax.grad(lambda x: jnp.sum(f(p, x)))(jnp.asarray(X))[0, 0]))(f.params)


def test_a_primitive_goes_by_its_first_array():
    @gb.primitive
    def square(x, y):
        return x**2 + y

    square.defvjp(lambda ans, x, y: lambda v: 2 * x * v, lambda ans, x, y: lambda v: v)
    assert type(square(X, torch.tensor(X))) is np.ndarray
    assert type(square(torch.tensor(X), X)) is torch.Tensor
    assert isinstance(square(jnp.asarray(X), X), jax.Array)
    assert type(square(2.0, 3.0)) in (np.ndarray, np.float64)


def test_a_host_that_is_named_takes_numpys_arrays_for_its_own(f):
    network = f.model(f.params)
    pinned = gb.bridge(network, host="torch", dtype="float64")
    assert type(pinned.params) is torch.Tensor
    assert type(pinned(pinned.params, X)) is torch.Tensor
    assert type(pinned(f.params, X)) is torch.Tensor
    pinned = gb.bridge(network, host="jax", dtype="float64")
    assert isinstance(pinned.params, jax.Array)
    assert isinstance(pinned(f.params, X), jax.Array)
    again = pickle.loads(pickle.dumps(pinned))
    assert isinstance(again(f.params, X), jax.Array)
    assert isinstance(copy.deepcopy(pinned)(f.params, X), jax.Array)


def test_methods_at_concrete_arrays_answer_in_the_hosts_own(f):
    expected = f.jacobian(f.params, X)
    p, x = torch.tensor(f.params), torch.tensor(X)
    jacobian = f.jacobian(p, x)
    assert type(jacobian) is torch.Tensor
    np.testing.assert_allclose(jacobian, expected, rtol=1e-12)
    assert isinstance(f.jacobian(jnp.asarray(f.params), X), jax.Array)
    assert type(f.vjp(p, x, cotangent=torch.ones(3, 1, dtype=torch.float64))) is torch.Tensor
    assert type(f.jvp(p, x, tangent=p)) is torch.Tensor
    with pytest.raises(gb.errors.NotDifferentiableError, match="torch is differentiating"):
        f.jacobian(p.requires_grad_(), x)
    with pytest.raises(gb.errors.NotDifferentiableError, match="jax is differentiating"):
        jax.jit(lambda p: f.jacobian(p, X))(f.params)


def test_params_of_any_host_are_saved_and_made_a_model(f, tmp_path):
    p = torch.tensor(f.params, requires_grad=True)
    f.save(tmp_path / "p.safetensors", p)
    np.testing.assert_array_equal(f.load(tmp_path / "p.safetensors"), f.params)
    np.testing.assert_array_equal(f.model(jnp.asarray(f.params))(torch.tensor(X)).detach(), f(f.params, X))


def test_a_host_that_there_is_not_is_answered_with_the_nearest(f):
    with pytest.raises(gb.errors.UnknownBackendError, match="'jax'"):
        gb.bridge(f.model(f.params), host="jaxx")


def test_what_another_system_differentiates_is_refused_by_a_bridge_that_has_one(f):
    tf = pytest.importorskip("tensorflow")
    network = f.model(f.params)
    w = tf.Variable(f.params)
    for host in ("torch", "jax", "autograd"):
        pinned = gb.bridge(network, host=host)
        with (
            tf.GradientTape(),
            pytest.raises(gb.errors.HostError, match="that tensorflow is differentiating"),
        ):
            pinned(w, X)
        with (
            tf.GradientTape(),
            pytest.raises(gb.errors.HostError, match="that tensorflow is differentiating"),
        ):
            pinned(pinned.params, tf.Variable(X))
        assert np.asarray(pinned(tf.constant(f.params), X)).shape == (3, 1)  # a constant
    pinned = gb.bridge(network, host="tensorflow")
    with pytest.raises(gb.errors.HostError, match="that torch is differentiating"):
        pinned(torch.tensor(f.params, requires_grad=True), X)
    for grad in (autograd.grad, jax.grad):
        with pytest.raises(gb.errors.HostError, match="is differentiating"):
            grad(lambda p: pinned(p, X))(f.params)


def test_arrays_of_numpy_among_the_weights_are_data():
    f = gb.bridge(
        lambda p, x: x @ p["w"] + p["b"], params={"b": np.zeros(2), "w": np.ones((3, 2))}, backend="jax"
    )
    x = torch.ones(4, 3)
    for tree in (
        {"b": np.zeros(2, np.float32), "w": torch.ones(3, 2)},
        {"b": torch.zeros(2), "w": np.ones((3, 2))},
    ):
        assert type(f(tree, x)) is torch.Tensor
    assert type(f(f.params, x)) is np.ndarray


@pytest.mark.parametrize("kind", ["torch", "jax", "tensorflow"])
def test_a_vector_of_any_system_is_cut_differentiably_and_what_it_differentiates_is_not_joined(f, kind):
    values = np.asarray(f.params)
    if kind == "torch":
        v = torch.tensor(values, requires_grad=True)
        cut = f.layout.unravel(v)
        gradients = torch.autograd.grad(sum((w**2).sum() for w in cut.values()), v)[0]
    elif kind == "jax":
        gradients = jax.grad(lambda v: sum(jnp.sum(w**2) for w in f.layout.unravel(v).values()))(
            jnp.asarray(values)
        )
        with pytest.raises(gb.errors.InputError, match="jax is differentiating"):
            jax.jit(lambda v: f.layout.ravel(f.layout.unravel(v)))(values)
    else:
        tf = pytest.importorskip("tensorflow")
        v = tf.Variable(values)
        with tf.GradientTape() as tape:
            cut = f.layout.unravel(v)
            loss = sum(tf.reduce_sum(w**2) for w in cut.values())
            with pytest.raises(gb.errors.InputError, match="tensorflow is differentiating"):
                f.layout.ravel(cut)
        gradients = tape.gradient(loss, v)
        np.testing.assert_array_equal(f.layout.ravel(f.layout.unravel(tf.constant(values))), values)
    np.testing.assert_allclose(np.asarray(gradients), 2 * values, rtol=1e-12)


@gb.primitive
def cube(x):
    return x**3


@cube.defvjp
def _(ans, x):
    return lambda v: 3 * x**2 * v


def test_a_primitive_is_pickled_by_its_name():
    assert pickle.loads(pickle.dumps(cube)) is cube
    assert pickle.loads(pickle.dumps({"f": cube}))["f"] is cube
    named = gb.primitive(np.sinh)
    assert pickle.loads(pickle.dumps(named))(X).tolist() == np.sinh(X).tolist()
