"""Bridges over Keras models as users write them, on the backend that Keras runs on: closed forms, in float64.

`test_keras_elsewhere` runs this file in processes of Keras' other backends.
"""

import copy
import threading

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb

keras = pytest.importorskip("keras")
pytest.importorskip(keras.backend.backend())
layers, ops = keras.layers, keras.ops

from keras_programs import X, arrays, held, is_closed_form, summed, tensor  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


# -- everything that hangs on a model follows -------------------------------------------------------


class Scaled(layers.Layer):
    """Has a number that is set later, and constants that are no weights."""

    def __init__(self):
        super().__init__()
        self.slope, self.table = 1.0, {"shift": ops.convert_to_tensor([0.1, 0.2], "float32")}
        self.squash = lambda x: ops.tanh(x) * self.slope

    def call(self, x):
        return self.squash(x + self.table["shift"])


def test_attributes_lambdas_and_constants_follow():
    dense, scaled = layers.Dense(2), Scaled()
    inputs = keras.Input((3,))
    hidden = layers.Dropout(0.4)(dense(inputs))
    output = layers.Lambda(lambda t: t @ ops.transpose(dense.kernel) + 0.1)(scaled(hidden)) - 2.0 * inputs
    model = keras.Model(inputs, output)
    scaled.slope = 0.7

    def closed(p, x):
        kernel, bias = p[:6].reshape(3, 2), p[6:]
        hidden = 0.7 * anp.tanh(anp.dot(x, kernel) + bias + np.array([0.1, 0.2], "float32").astype(float))
        return anp.dot(hidden, kernel.T) + 0.1 - 2.0 * x

    is_closed_form(gb.bridge(model, dtype="float64"), closed, X)
    f = gb.bridge(model, dtype="model")
    np.testing.assert_allclose(f(f.params, X), held(model, X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(held(f.model(2 * f.params), X), f(2 * f.params, X), rtol=1e-5, atol=1e-6)


class Guarded:
    """Cannot be copied, nor pickled."""

    def __init__(self, thing):
        self.thing, self.lock = thing, threading.Lock()

    def __reduce__(self):
        return Guarded, (self.thing, self.lock)


def test_what_is_shared_with_something_that_cannot_be_copied_is_whole():
    class Thing:
        def __init__(self):
            self.lock, self.slope = threading.Lock(), 2.0

    class Sloped(layers.Layer):
        def __init__(self):
            super().__init__()
            thing = Thing()
            self.guarded, self.thing = Guarded(thing), thing

        def call(self, x):
            return x * self.thing.slope

    model = Sloped()
    held(model, X)
    is_closed_form(gb.bridge(model, dtype="float64"), lambda p, x: x * 2.0, X)


def test_adapted_statistics_follow():
    normalization, dense = layers.Normalization(), layers.Dense(2, "softplus")
    normalization.adapt(50 + 10 * X)
    model = keras.Sequential([keras.Input((3,)), normalization, dense, layers.GaussianNoise(0.3)])
    mean, variance = arrays(normalization.mean, normalization.variance)

    def closed(p, x):
        return anp.log(1 + anp.exp(anp.dot((x - mean) / anp.sqrt(variance), p[:6].reshape(3, 2)) + p[6:]))

    f = gb.bridge(model, dtype="float64")
    is_closed_form(f, closed, 40 + 20 * X, rtol=1e-6)  # as Keras itself adapts, in float32
    np.testing.assert_allclose(held(f.model(f.params), 50 + X), f(f.params, 50 + X), rtol=1e-4)


def test_narrow_policies_and_casts_widen():
    narrow = layers.Dense(3, "tanh", dtype="mixed_bfloat16")
    inputs = keras.Input((3,))
    model = keras.Model(
        inputs, ops.cast(layers.Dense(1, use_bias=False, dtype="float32")(narrow(inputs)), "float32")
    )

    def closed(p, x):
        return anp.dot(anp.tanh(anp.dot(x, p[:9].reshape(3, 3)) + p[9:12]), p[12:].reshape(3, 1))

    is_closed_form(gb.bridge(model, dtype="float64"), closed, X)


def test_recurrent_and_attending_layers_compute_in_double():
    inputs = keras.Input((4, 3))
    attended = layers.MultiHeadAttention(2, 3, dropout=0.1)(inputs, inputs, use_causal_mask=True)
    hidden = layers.Bidirectional(layers.LSTM(2, return_sequences=True))(
        layers.LayerNormalization()(attended)
    )
    model = keras.Model(
        inputs, layers.TimeDistributed(layers.Dense(1))(layers.GRU(2, return_sequences=True)(hidden))
    )
    f = gb.bridge(model, dtype="float64")
    x = np.random.default_rng(2).normal(size=(2, 4, 3))
    np.testing.assert_allclose(f(f.params, x), held(model, x), atol=1e-5)
    loss, step = summed(f, x), 1e-6
    gradient = autograd.grad(loss)(f.params)
    u = np.random.default_rng(3).normal(size=f.params.size)
    numeric = (loss(f.params + step * u) - loss(f.params - step * u)) / (2 * step)
    assert abs(gradient @ u - numeric) < 1e-8 * np.abs(gradient).max() * u.size


# -- how models are called --------------------------------------------------------------------------


class Residual(keras.Model):
    """Without `training` in its call, and without a config."""

    def __init__(self, width):
        super().__init__()
        self.parts = {"in": layers.Dense(width, "sigmoid"), "out": [layers.Dense(3)]}

    def call(self, x):
        return x + self.parts["out"][0](self.parts["in"](x))


def test_subclassed_models_need_no_training_argument_and_no_config():
    model = Residual(2)
    held(model, X)

    def closed(p, x):
        hidden = 1 / (1 + anp.exp(-anp.dot(x, p[:6].reshape(3, 2)) - p[6:8]))
        return x + anp.dot(hidden, p[8:14].reshape(2, 3)) + p[14:]

    f = gb.bridge(model, dtype="float64")
    is_closed_form(f, closed, X)
    twin = f.model(3 * f.params)
    assert type(twin) is Residual
    np.testing.assert_allclose(held(twin, X), f(3 * f.params, X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gb.bridge(twin).params, 3 * f.params, rtol=1e-6)


def test_inputs_of_functional_models_come_apart_or_as_a_list():
    a, b = keras.Input((3,)), keras.Input((2,))
    model = keras.Model([a, b], layers.Dense(2, use_bias=False)(a) * b)

    def closed(p, x, y):
        return anp.dot(x, p.reshape(3, 2)) * y

    y = np.random.default_rng(4).normal(size=(4, 2))
    f = gb.bridge(model, dtype="float64")
    is_closed_form(f, closed, X, y)
    np.testing.assert_array_equal(f(f.params, [X, y]), f(f.params, X, y))


# -- law 5: the user's model is read, and what happens to it later is not seen ------------------------


def test_freezing_a_layer_later_changes_nothing():
    for option in ("float64", "model"):
        first, last = layers.Dense(4, "tanh"), layers.Dense(1)
        model = keras.Sequential([keras.Input((3,)), first, layers.BatchNormalization(), last])
        f = gb.bridge(model, dtype=option)
        p = f.params
        y, gradient = f(p, X), autograd.grad(summed(f, X))(p)
        first.trainable = False
        np.testing.assert_array_equal(f.params, p)
        np.testing.assert_array_equal(f(p, X), y)
        np.testing.assert_array_equal(autograd.grad(summed(f, X))(p), gradient)
        more = np.concatenate([X, X])  # another shape, which may be traced anew
        np.testing.assert_allclose(f(p, more)[:4], y, rtol=1e-5)
        assert f.model(p).layers[0].trainable
        assert gb.bridge(model).params.size == p.size - 16


class Counting(layers.Layer):
    """Keeps what it must not: a count, a memo, a list."""

    def __init__(self):
        super().__init__()
        self.calls, self.memo, self.seen = 0, None, []

    def build(self, shape):
        self.scale = self.add_weight(shape=(3,), initializer="ones")

    def call(self, x):
        self.calls += 1
        self.seen.append(self.calls)
        if self.memo is None:
            self.memo = ops.exp(self.scale)
        return x * self.memo


def test_calls_leave_nothing_in_the_users_model():
    counting = Counting()
    counting.build((None, 3))
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, activity_regularizer="l1"), counting])
    counting.calls, counting.memo, counting.seen = 0, None, []
    f = gb.bridge(model, dtype="float64")

    def closed(p, x):
        return (anp.dot(x, p[:9].reshape(3, 3)) + p[9:12]) * anp.exp(p[12:])

    is_closed_form(f, closed, X)
    np.testing.assert_allclose(f(2 * f.params, X), closed(2 * f.params, X), rtol=1e-10)
    assert (counting.calls, counting.memo, list(counting.seen)) == (0, None, [])


def test_losses_of_the_users_own_forward_stay():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activity_regularizer="l2", kernel_regularizer="l1"),
            layers.Dense(1),
        ]
    )
    f = gb.bridge(model)
    held(model, X)
    before = [float(ops.convert_to_numpy(loss)) for loss in model.losses]
    f(f.params, 3 * X)
    autograd.grad(summed(f, 2 * X))(f.params)
    f.model(2 * f.params)
    assert [float(ops.convert_to_numpy(loss)) for loss in model.losses] == before
    assert len(before) == 2


def test_state_stays_as_it_was_when_bridged():
    class Tally(layers.Layer):
        def build(self, shape):
            self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)
            self.scale = self.add_weight(shape=(), initializer="ones")

        def call(self, x):
            self.count.assign_add(1.0)
            return x * self.scale * self.count

    tally = Tally()
    model = keras.Sequential([keras.Input((3,)), tally])
    tally.count.assign(4.0)
    f = gb.bridge(model, dtype="float64")
    for _ in range(2):
        is_closed_form(f, lambda p, x: x * p[0] * 5.0, X)
    assert float(ops.convert_to_numpy(tally.count)) == 4.0


def test_deep_copies_keep_their_own_model():
    dense = layers.Dense(2)
    model = keras.Sequential([keras.Input((3,)), dense, layers.Lambda(lambda t: ops.sin(t))])
    f = gb.bridge(model, dtype="float64")
    p, y = f.params, f(f.params, X)
    twin = copy.deepcopy(f)
    dense.kernel.assign(np.zeros((3, 2)))
    np.testing.assert_array_equal(twin(p, X), y)
    np.testing.assert_allclose(y, np.sin(X @ p[:6].reshape(3, 2) + p[6:]), rtol=1e-12)


# -- what cannot be right is refused -------------------------------------------------------------------


def test_variables_made_in_a_call_are_refused_by_name():
    class Late(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = layers.Dense(2), layers.Dense(2, name="second")

        def call(self, x):
            return self.first(x) if x.shape[1] == 3 else self.second(x)

    model = Late()
    held(model, X)
    f = gb.bridge(model)
    with pytest.raises(
        gb.errors.GuestError, match="creates the variable .*second/kernel.* is not among the params"
    ):
        f(f.params, X[:, :2])
    f(f.params, X)


def test_what_depends_on_the_dtype_is_refused_with_integer_inputs_as_well():
    class Wider(layers.Layer):
        def call(self, x):
            odd = ops.cast(ops.bitwise_and(x, 1), self.compute_dtype)
            return odd * (2.0 if self.compute_dtype == "float32" else 3.0)

    model, x = Wider(), np.arange(6).reshape(2, 3)
    model(ops.convert_to_tensor(x))
    f = gb.bridge(model, dtype="float64")
    with pytest.raises(gb.errors.GuestError, match="depends on the dtype"):
        f(np.zeros(0), x)


def test_quantized_models_have_one_precision():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    held(model, X)
    model.quantize("int8")
    with pytest.raises(gb.errors.UnknownModelError, match="quantized"):
        gb.bridge(model, dtype="float64")


def test_errors_come_with_the_layers_own_words():
    class Picky(layers.Layer):
        def call(self, x):
            if x.shape[-1] != 3:
                raise ValueError("three columns, please")
            return x

    model = Picky()
    model(tensor(X))
    with pytest.raises(gb.GradbridgeError, match="three columns, please"):
        gb.bridge(model)(np.zeros(0), X[:, :2])
