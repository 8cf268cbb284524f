"""Keras 3 models on TensorFlow as guests, held against native tapes in float64."""

import threading

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb
from gradbridge import errors

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
layers = keras.layers

X = np.random.default_rng(0).normal(size=(5, 3))


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


def mlp(dtype=None):
    return keras.Sequential(
        [keras.Input([3], dtype=dtype), layers.Dense(4, "tanh", dtype=dtype), layers.Dense(2, dtype=dtype)]
    )


def cubed(f, *inputs):
    return lambda p, *xs: anp.sum(f(p, *(xs or inputs)) ** 3)


def native(model, f, *inputs):
    """Loss Σ y³, its gradient and those of the inputs, by TensorFlow's own tape in float64."""
    variables = model.trainable_variables
    tensors = [tf.constant(x) for x in inputs]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss = tf.reduce_sum(model(*tensors, training=False) ** 3)
    found = tape.gradient(loss, [*(v.value for v in variables), *tensors])
    flat = np.concatenate([np.ravel(tf.convert_to_tensor(g)) for g in found[: len(variables)]])
    return float(loss), flat, [g.numpy() for g in found[len(variables) :]]


class Residual(keras.Model):
    """A subclassed model, without a get_config of its own."""

    def __init__(self, width=4, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = layers.Dense(width, "gelu"), layers.Dense(3)

    def call(self, x):
        return x + self.second(self.first(x))


def functional():
    a, b = keras.Input([3], name="a"), keras.Input([2], name="b")
    hidden = layers.Dense(4, "tanh")(layers.Concatenate()([a, b]))
    return keras.Model([a, b], {"sum": layers.Dense(1)(hidden), "parts": [layers.Dense(2)(hidden), a * 2.0]})


def built(model, *shape):
    model(np.zeros((2, *shape), "float32"))
    return model


def convolutional():
    return keras.Sequential(
        [keras.Input([6, 6, 2]), layers.Conv2D(3, 3, activation="tanh"), layers.Flatten(), layers.Dense(2)]
    )


def recurrent():
    return keras.Sequential([keras.Input([4, 3]), layers.LSTM(3), layers.Dense(1)])


@pytest.mark.parametrize("make", [mlp, lambda: built(Residual(), 3)], ids=["sequential", "subclassed"])
def test_value_and_gradients_are_tensorflows_own_in_float64(make):
    model = make()
    f = gb.bridge(model, dtype="float64")
    doubled = f.model(f.params)
    loss, flat, (wrt_x,) = native(doubled, f, X)
    found = autograd.grad(cubed(f), (0, 1))(f.params, X)
    assert abs(cubed(f, X)(f.params) - loss) < 1e-12 * abs(loss)
    np.testing.assert_allclose(found[0], flat, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(found[1], wrt_x, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("make", "shape"), [(convolutional, (6, 6, 2)), (recurrent, (4, 3))])
def test_loops_and_convolutions_have_the_native_gradient(make, shape):
    f = gb.bridge(make(), dtype="float64")
    x = np.random.default_rng(1).normal(size=(3, *shape))
    _, flat, (wrt_x,) = native(f.model(f.params), f, x)
    found = autograd.grad(cubed(f), (0, 1))(f.params, x)
    np.testing.assert_allclose(found[0], flat, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found[1], wrt_x, rtol=1e-10, atol=1e-12)


def test_float32_models_agree_to_float32_rounding_and_answer_in_the_hosts_dtype():
    model = mlp()
    f = gb.bridge(model)
    y = f(f.params, X)
    assert y.dtype == np.float64
    assert y.flags.writeable
    np.testing.assert_allclose(y, model(X.astype("float32")), rtol=1e-6)
    assert autograd.grad(cubed(f, X))(f.params.astype("float32")).dtype == np.float32


def test_all_gradients_cost_one_forward_and_one_backward():
    f = gb.bridge(mlp())
    with gb.trace() as t:
        autograd.grad(cubed(f), (0, 1))(f.params, X)
    assert t.counts == {"update": 1, "forward": 1, "zero": 1, "backward": 1}


def test_dtype_float64_reaches_past_the_input_layer():
    f = gb.bridge(mlp(), dtype="float64")
    step = 1e-9  # below float32's resolution
    assert np.abs(f(f.params, X + step) - f(f.params, X)).max() > step / 100


def test_hessian_and_third_order_are_those_of_the_closed_form():
    model = keras.Sequential([keras.Input([2]), layers.Dense(1, "exponential", use_bias=False)])
    f = gb.bridge(model, dtype="float64")
    x = np.random.default_rng(2).normal(size=(4, 2))
    p = np.array([0.3, -0.2])
    weights = np.exp(x @ p)
    loss = lambda q: anp.sum(f(q, x))
    np.testing.assert_allclose(autograd.hessian(loss)(p), (x.T * weights) @ x, rtol=1e-10)
    u = np.array([0.7, 1.1])
    twice = lambda q: anp.dot(u, autograd.grad(lambda r: anp.dot(u, autograd.grad(loss)(r)))(q))
    np.testing.assert_allclose(autograd.grad(twice)(p), ((x @ u) ** 2 * weights) @ x, rtol=1e-8)


def test_mixed_second_derivatives_are_symmetric():
    f = gb.bridge(mlp(), dtype="float64")
    loss = cubed(f)
    one = autograd.jacobian(autograd.grad(loss, 0), 1)(f.params, X)
    other = autograd.jacobian(autograd.grad(loss, 1), 0)(f.params, X)
    np.testing.assert_allclose(one, np.moveaxis(other, 2, 0), rtol=1e-10, atol=1e-12)


def test_second_derivatives_go_through_loops():
    f = gb.bridge(recurrent(), dtype="float64")
    x = np.random.default_rng(1).normal(size=(2, 4, 3))
    u = np.random.default_rng(2).normal(size=f.params.size)
    gradient = autograd.grad(cubed(f, x))
    product = autograd.hessian_vector_product(cubed(f, x))(f.params, u)
    step = 1e-6
    numeric = (gradient(f.params + step * u) - gradient(f.params - step * u)) / (2 * step)
    np.testing.assert_allclose(product, numeric, rtol=1e-5, atol=1e-8)


def test_several_inputs_and_outputs_come_as_the_model_has_them():
    model = functional()
    f = gb.bridge(model, dtype="float64")
    b = np.random.default_rng(3).normal(size=(5, 2))
    as_list, apart, named = f(f.params, [X, b]), f(f.params, X, b), f(f.params, {"a": X, "b": b})
    assert set(as_list) == {"sum", "parts"}
    for other in (apart, named):
        np.testing.assert_array_equal(as_list["parts"][0], other["parts"][0])
    np.testing.assert_array_equal(as_list["parts"][1], 2 * X)
    with gb.trace() as t:
        wrt = autograd.grad(lambda p, x, y: anp.sum(f(p, x, y)["parts"][1] ** 2), (0, 1, 2))(f.params, X, b)
    assert t.counts["backward"] == 1
    assert not wrt[0].any()  # no influence: exact zeros
    np.testing.assert_allclose(wrt[1], 8 * X, rtol=1e-12)
    assert not wrt[2].any()


def test_integer_inputs_go_through_untouched_and_sparse_gradients_come_dense():
    model = keras.Sequential([keras.Input([3], dtype="int32"), layers.Embedding(6, 2)])
    f = gb.bridge(model, dtype="float64")
    rows = np.array([[0, 1, 1], [5, 0, 1]])
    gradient = autograd.grad(lambda p: anp.sum(f(p, rows)))(f.params).reshape(6, 2)
    np.testing.assert_array_equal(gradient[:, 0], [2, 3, 0, 0, 0, 1])
    with pytest.raises(errors.NotDifferentiableError):
        autograd.grad(lambda x: anp.sum(f(f.params, x)))(rows)


def test_frozen_layers_are_no_params_and_keep_their_values():
    model = mlp()
    model.layers[0].trainable = False
    f = gb.bridge(model)
    assert f.params.size == 4 * 2 + 2
    before = f(f.params, X)
    model.layers[0].kernel.assign_add(np.ones((3, 4)))
    np.testing.assert_array_equal(f(f.params, X), before)
    assert gb.bridge(model, dtype="float64").params.size == 10


def test_params_follow_the_users_model_and_bridges_do_not():
    model = mlp()
    f = gb.bridge(model)
    p, y = f.params, f(f.params, X)
    model.layers[1].bias.assign([5.0, 5.0])
    assert (f.params[-2:] == 5).all()
    np.testing.assert_array_equal(f(p, X), y)


def test_eight_threads_get_their_own_gradients():
    f = gb.bridge(mlp(), dtype="float64")
    gradient = autograd.grad(cubed(f, X))
    points = [f.params * (1 + i / 4) for i in range(8)]
    expected = [gradient(p) for p in points]
    fresh = gb.bridge(mlp(), dtype="float64")
    again = autograd.grad(cubed(fresh, X))
    wrong = []

    def work(i):
        wrong.extend(i for _ in range(20) if not np.allclose(again(points[i]), expected[i], rtol=1e-12))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_two_params_in_flight_and_pullbacks_in_reverse_order():
    f = gb.bridge(mlp(), dtype="float64")
    loss = cubed(f, X)
    both = autograd.grad(lambda p: loss(p) + loss(2 * p))(f.params)
    gradient = autograd.grad(loss)
    np.testing.assert_allclose(both, gradient(f.params) + 2 * gradient(2 * f.params), rtol=1e-12)
    pulls = [autograd.make_vjp(loss)(scale * f.params)[0] for scale in (1.0, 2.0, 3.0)]
    backwards = [pull(1.0) for pull in reversed(pulls)][::-1]
    for scale, found in zip((1.0, 2.0, 3.0), backwards):
        np.testing.assert_array_equal(found, gradient(scale * f.params))


def test_misfits_name_the_model_and_the_shapes():
    f = gb.bridge(mlp())
    with pytest.raises(errors.InputError, match=r"sequential.*shape \(5, 4\).*columns"):
        f(f.params, np.ones((5, 4)))


def test_unbuilt_models_are_refused_with_what_to_do():
    with pytest.raises(errors.UnknownModelError, match="not built; call it once"):
        gb.bridge(keras.Sequential([layers.Dense(2)]))


def test_unknown_options_and_params_are_refused():
    with pytest.raises(errors.OptionError, match="no option 'compil'"):
        gb.bridge(mlp(), compil=True)
    with pytest.raises(errors.OptionError, match="brings its own parameters"):
        gb.bridge(mlp(), params=np.ones(3))
    with pytest.raises(errors.OptionError, match="cannot be used here|is not here"):
        gb.bridge(mlp(), device="GPU:7")
    assert gb.bridge(mlp(), device="/CPU:0").params.size == 26


def test_bare_layers_are_bridged_like_models():
    layer = layers.Dense(2)
    layer.build((None, 3))
    f = gb.bridge(layer, dtype="float64")
    np.testing.assert_allclose(f(f.params, X), X @ layer.kernel.numpy(), rtol=1e-6)


def test_layers_that_branch_on_values_are_refused_as_keras_compiled_refuses_them():
    class Branching(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)

        def call(self, x):
            return self.dense(x) if tf.reduce_sum(x) > 0 else self.dense(2 * x)

    f = gb.bridge(built(Branching(), 3))
    with pytest.raises(errors.GuestError, match=r"use tf.cond, keras.ops.cond"):
        f(f.params, X)
