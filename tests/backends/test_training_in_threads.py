"""Bridges in train mode that are called in several threads: no move of the state is lost, and none disturbs an audit."""

import sys
import threading
from contextlib import contextmanager

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from threads import at_once

import gradbridge as gb

X = np.array([0.5, -1.0, 2.0])

# Each is w * x + count, where each forward in training counts one up; with how the count is read, and what evaluation
# needs to be told.


def torch_module():
    torch = pytest.importorskip("torch")

    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
            self.register_buffer("count", torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            if self.training:
                self.count += 1
            return self.w * x + self.count

    return {"model": Counts()}, lambda model: model.count, {}


def nnx_module():
    nnx = pytest.importorskip("flax.nnx")
    import jax.numpy as jnp

    class Counts(nnx.Module):
        def __init__(self):
            self.w, self.count = nnx.Param(jnp.ones(3)), nnx.BatchStat(jnp.zeros(()))
            self.deterministic = False

        def __call__(self, x):
            norm = self.count[...]
            if not self.deterministic:
                self.count[...] = norm + 1
            return self.w[...] * x + norm

    return {"model": Counts()}, lambda model: model.count[...], {}


def linen_module():
    linen = pytest.importorskip("flax.linen")
    import jax
    import jax.numpy as jnp

    class Counts(linen.Module):
        @linen.compact
        def __call__(self, x, train=True):
            w = self.param("w", lambda key: jnp.ones(3))
            count = self.variable("batch_stats", "count", lambda: jnp.zeros(()))
            if train and not self.is_initializing():
                count.value = count.value + 1
            return w * x + count.value

    variables = Counts().init(jax.random.key(0), X)
    counted = lambda model: model.variables["batch_stats"]["count"]
    return {"model": Counts(), "params": variables}, counted, {"train": False}


def equinox_module():
    eqx = pytest.importorskip("equinox")
    import jax.numpy as jnp

    class Counts(eqx.Module):
        w: object
        count: eqx.nn.StateIndex
        inference: bool

        def __init__(self):
            self.w, self.count, self.inference = jnp.ones(3), eqx.nn.StateIndex(jnp.zeros(())), False

        def __call__(self, x, state):
            count = state.get(self.count)
            if not self.inference:
                count = count + 1
                state = state.set(self.count, count)
            return self.w * x + count, state

    net, state = eqx.nn.make_with_state(Counts)()
    return {"model": net, "state": state}, lambda pair: pair[1].get(pair[0].count), {}


def keras_model():
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras' other backends have no train mode here")

    class Counts(keras.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(3,), initializer="ones")
            self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x, training=False):
            if training:
                self.count.assign(self.count + 1)
            return self.w * x + self.count

    model = keras.Sequential([keras.Input((3,)), Counts()])
    return {"model": model}, lambda model: model.layers[-1].count, {}


def tensorflow_module():
    tf = pytest.importorskip("tensorflow")

    class Counts(tf.Module):
        def __init__(self):
            self.w = tf.Variable(np.ones(3))
            self.count = tf.Variable(np.zeros(()), trainable=False)

        def __call__(self, x, training):
            if training:
                self.count.assign(self.count + 1)
            return self.w * x + self.count

    return {"model": Counts()}, lambda model: model.count, {}


GUESTS = [torch_module, nnx_module, linen_module, equinox_module, keras_model, tensorflow_module]


def inputs(make):
    return X[None] if make is keras_model else X


@contextmanager
def threads_in_turns():
    """Threads change places every 10 µs, so that what they have in common is met in the middle."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("make", GUESTS)
def test_each_forward_of_each_thread_and_precision_moves_the_state_once(make):
    options, counted, _ = make()
    f, x = gb.bridge(**options, mode="train"), inputs(make)
    vector = {dtype: f.params.astype(dtype) for dtype in ("float64", "float32")}

    def train(index):
        for turn in range(40):
            f(vector["float32" if (index + turn) % 7 == 0 else "float64"], x)

    f(vector["float64"], x), f(vector["float32"], x)
    with threads_in_turns():
        at_once(train, 3)
    assert float(counted(f.model(f.params))) == 122


@pytest.mark.parametrize("make", GUESTS)
def test_what_evaluates_is_looked_at_in_one_state_while_others_train(make):
    options, counted, said = make()
    f, x, over = gb.bridge(**options, mode="train"), inputs(make), threading.Event()
    f(f.params, x)
    g = f.in_eval_mode()
    g(g.params, x, **said)

    def work(index):
        try:
            while index and not over.is_set():
                f(f.params, x)
            if not index:  # the first one that is differentiated, after which nothing is looked at any more
                gradients.append(grad(lambda p: anp.sum(g(p, x, **said)))(g.params))
        finally:
            if not index:
                over.set()

    gradients = []
    with threads_in_turns():
        at_once(work, 3)
    np.testing.assert_allclose(gradients, [X], rtol=1e-12)
    before = counted(f.model(f.params))
    np.testing.assert_allclose(np.ravel(g(g.params, x, **said)), X + np.asarray(before), rtol=1e-12)
