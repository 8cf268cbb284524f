"""tf.Modules and functions of tensors as guests."""

import copy
import pickle

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb
from gradbridge import errors

tf = pytest.importorskip("tensorflow")

X = np.random.default_rng(0).normal(size=(5, 3))
W = np.random.default_rng(1).normal(size=(3, 2))


class Affine(tf.Module):
    """Variables in a list and in a dict, one of them frozen, and a constant."""

    def __init__(self, dtype=tf.float64):
        super().__init__()
        self.weights = [tf.Variable(W, dtype=dtype)]
        self.rest = {"bias": tf.Variable([1.0, 2.0], dtype=dtype)}
        self.shift = tf.Variable([0.5, 0.5], dtype=dtype, trainable=False)
        self.scale = tf.constant(2.0, dtype)

    @tf.function
    def __call__(self, x):
        return self.scale * tf.tanh(x @ self.weights[0] + self.rest["bias"]) + self.shift


def affine(p, x):
    weights, bias = p[2:].reshape(3, 2), p[:2]
    return 2 * anp.tanh(x @ weights + bias) + 0.5


class Counter(tf.Module):
    """Moves a variable on every call."""

    def __init__(self):
        super().__init__()
        self.w, self.calls = tf.Variable(2.0), tf.Variable(0.0, trainable=False)

    def __call__(self, x, training=False):
        if training:
            self.calls.assign_add(1.0)
        return self.w * x + self.calls


@pytest.mark.parametrize("dtype", [tf.float64, tf.float32])
def test_modules_have_the_gradient_of_the_closed_form(dtype):
    f = gb.bridge(Affine(dtype), dtype="float64")
    assert set(f.layout.names) == {"weights/0", "rest/bias"}
    p = f.params
    ours = lambda p, x: anp.sum(f(p, x) ** 3)
    order = [f.layout.names.index("rest/bias"), f.layout.names.index("weights/0")]
    cut = lambda q: anp.concatenate([q[f.layout.slices[i]] for i in order])
    closed = lambda p, x: anp.sum(affine(cut(p), x) ** 3)
    for argnum in (0, 1):
        np.testing.assert_allclose(
            autograd.grad(ours, argnum)(p, X), autograd.grad(closed, argnum)(p, X), rtol=1e-11, atol=1e-13
        )
    np.testing.assert_allclose(
        autograd.hessian(ours)(p, X), autograd.hessian(closed)(p, X), rtol=1e-9, atol=1e-11
    )


def test_float32_modules_compute_in_the_precision_of_the_params_unless_told():
    module = Affine(tf.float32)
    own = gb.bridge(module, dtype="model")
    np.testing.assert_array_equal(own(own.params, X), module(X.astype("float32")))
    f, wide = gb.bridge(module), gb.bridge(module, dtype="float64")
    np.testing.assert_array_equal(f(f.params, X), wide(f.params, X))
    np.testing.assert_array_equal(f(f.params.astype("float32"), X), own(own.params, X).astype("float32"))


def test_the_users_variables_stay_and_models_are_new():
    module = Affine()
    f = gb.bridge(module)
    before = [v.numpy().tobytes() for v in module.variables]
    p = f.params
    autograd.grad(lambda p: anp.sum(f(p, X)))(3 * p)
    twin = f.model(2 * p)
    assert [v.numpy().tobytes() for v in module.variables] == before
    assert not {id(v) for v in twin.variables} & {id(v) for v in module.variables}
    np.testing.assert_allclose(twin(X), f(2 * p, X), rtol=1e-12)
    module.shift.assign([9.0, 9.0])  # kept as it was when bridged
    np.testing.assert_allclose(twin(X), f(2 * p, X), rtol=1e-12)


def test_moving_variables_move_in_train_mode_once_per_forward_and_in_the_bridge():
    module = Counter()
    f = gb.bridge(module, mode="train")
    p, one = f.params, np.ones(1)
    assert [float(f(p, one)[0]) for _ in range(3)] == [3.0, 4.0, 5.0]
    autograd.grad(autograd.grad(lambda p: anp.sum(f(p, one) ** 2)))(p)  # one forward, then replays
    assert float(f.model(p).calls.numpy()) == 4.0
    assert float(module.calls.numpy()) == 0.0
    quiet = gb.bridge(module)
    assert [float(quiet(p, one)[0]) for _ in range(2)] == [2.0, 2.0]


def test_variables_behind_a_closure_are_refused():
    class Closure(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(2.0)
            self.body = lambda x: self.w * x

        def __call__(self, x):
            return self.body(x)

    f = gb.bridge(Closure())
    with pytest.raises(errors.GuestError, match="reads its variable 'w' through a closure"):
        f(f.params, X)


def test_modules_that_cannot_be_bridged_say_why():
    with pytest.raises(errors.UnknownModelError, match="without __call__"):
        gb.bridge(tf.Module())

    keras = pytest.importorskip("keras")

    class Holder(tf.Module):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def __call__(self, x):
            return self.dense(x)

    with pytest.raises(errors.UnknownModelError, match=r"make it a keras\.Model"):
        gb.bridge(Holder())


def test_module_adapters_are_copied_and_pickled():
    f = gb.bridge(Affine())
    y = f(f.params, X)
    for twin in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        np.testing.assert_array_equal(twin(f.params, X), y)


def test_functions_of_arrays_derive_their_gradient():
    @gb.primitive(backend="tensorflow")
    def energy(x, y):
        return tf.reduce_sum(x**2 * y)

    x, y = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    assert float(energy(x, y)) == 19.0
    np.testing.assert_allclose(autograd.grad(energy, 1)(x, y), x**2)
    np.testing.assert_allclose(autograd.hessian(energy)(x, y), np.diag(2 * y))
    third = autograd.grad(lambda t: anp.sum(autograd.grad(autograd.grad(lambda s: energy(s * x, y)))(t)))
    assert abs(third(1.5)) < 1e-12


def test_functions_of_a_params_tree_take_it_first():
    tree = {"b": np.zeros(2), "w": tf.constant(W)}
    f = gb.bridge(lambda p, x: {"y": x @ p["w"] + p["b"]}, params=tree, backend="tensorflow")
    assert f.layout.names == ("b", "w")
    gradient = autograd.grad(lambda p: anp.sum(f(p, X)["y"]))(f.params)
    np.testing.assert_allclose(gradient, [5, 5, *np.repeat(X.sum(0), 2)])
    np.testing.assert_allclose(f.model(f.params)(X)["y"], X @ W)
    with pytest.raises(errors.OptionError, match="parameters are real"):
        gb.bridge(lambda p: p, params=[np.arange(3)], backend="tensorflow")


def test_functions_may_look_at_shapes_and_branch_on_values():
    @gb.primitive(backend="tensorflow")
    def mean(x):
        if tf.reduce_sum(x) > 0:
            return tf.reduce_sum(x) / x.shape[0]
        return -2.0 * tf.reduce_sum(x)

    for rows in (1, 2, 3, 4):
        np.testing.assert_allclose(autograd.grad(mean)(np.ones(rows)), np.ones(rows) / rows)
        np.testing.assert_allclose(autograd.grad(mean)(-np.ones(rows)), -2 * np.ones(rows))


def test_functions_are_traced_for_two_batch_sizes_and_no_more():
    seen = []

    @gb.primitive(backend="tensorflow")
    def square(x):
        seen.append(x.shape)
        return tf.reduce_sum(x**2)

    for rows in (3, 4, 5, 6):
        autograd.grad(square)(np.ones(rows))
    assert len(seen) == 2


def test_python_arguments_are_compiled_in():
    @gb.primitive(backend="tensorflow")
    def power(x, n, kind="sum"):
        return getattr(tf, f"reduce_{kind}")(x**n)

    x = np.array([1.0, 2.0])
    np.testing.assert_allclose(autograd.grad(power)(x, 3), 3 * x**2)
    np.testing.assert_allclose(autograd.grad(power)(x, 2, kind="mean"), x)


def test_inputs_without_influence_get_exact_zeros():
    @gb.primitive(backend="tensorflow")
    def first(x, y):
        return x * 1.0

    gradient = autograd.grad(lambda y: anp.sum(first(X, y)))(X)
    assert gradient.shape == X.shape
    assert not gradient.any()


def test_large_arrays_are_copied_in():
    x = np.ones(100_000)
    f = gb.primitive(lambda x: tf.reduce_sum(x**2), backend="tensorflow")
    pull, _ = autograd.make_vjp(f)(x)
    x[:] = 7.0
    np.testing.assert_array_equal(pull(1.0), np.full(100_000, 2.0))


def test_what_tensorflow_cannot_differentiate_raises():
    @gb.primitive(backend="tensorflow")
    def outside(x):
        return tf.numpy_function(np.sin, [x], tf.float64)

    np.testing.assert_allclose(outside(X), np.sin(X))
    with pytest.raises(errors.NotDifferentiableError, match="numpy_function"):
        autograd.grad(lambda x: anp.sum(outside(x)))(X)


def test_a_failing_function_says_on_what():
    @gb.primitive(backend="tensorflow")
    def broken(x):
        raise RuntimeError("no")

    with pytest.raises(
        errors.GuestError, match=r"broken failed on input 0 of shape \(5, 3\) float64: RuntimeError: no"
    ):
        broken(X)

    @gb.primitive(backend="tensorflow")
    def numpys(x):
        return np.sin(x)

    with pytest.raises(errors.GuestError, match="use TensorFlow's operations"):
        numpys(X)


def test_low_precision_widens_on_the_way_out():
    f = gb.bridge(lambda p, x: p * x, params=tf.constant([2.0], tf.bfloat16), backend="tensorflow")
    y = f(f.params, np.ones(1))
    assert y.dtype == np.float64
    assert autograd.grad(lambda p: anp.sum(f(p, np.ones(1))))(f.params)[0] == 1.0


def test_the_answer_is_the_same_while_a_graph_is_traced_or_tapes_are_stopped():
    f = gb.bridge(Affine())
    expected = autograd.grad(lambda p: anp.sum(f(p, X) ** 2))(f.params)
    found, fresh = [], [gb.bridge(Affine()), gb.bridge(Affine())]

    def gradient(g):
        found.append(autograd.grad(lambda p: anp.sum(g(p, X) ** 2))(f.params))

    @tf.function(autograph=False)
    def traced():
        gradient(fresh[0])
        return tf.constant(0.0)

    traced()
    with tf.GradientTape() as tape, tape.stop_recording():
        gradient(fresh[1])
    for one in found:
        np.testing.assert_array_equal(one, expected)
