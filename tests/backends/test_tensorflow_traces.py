"""How often a TensorFlow guest is traced and called, and how long what a call keeps lives."""

import copy
import gc
import pickle
import threading
import weakref

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from gradbridge.protocol import GuestOptions  # noqa: E402
from gradbridge_tensorflow.guest import adapt  # noqa: E402

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Keras runs on another backend"
)

X = np.random.default_rng(0).normal(size=(5, 3))
TREE = {"a": np.array(0.4), "b": np.linspace(0.1, 0.9, 3)}
layers = L = keras.layers
D = {"dtype": "float64"}


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


def adapter_of(model, params=None, mode="eval", dtype=None):
    return adapt(model, GuestOptions(params, dtype, None, mode))


def sequential(shape, *layers):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input(shape, **D), *layers])


def mlp():
    return sequential((3,), L.Dense(4, activation="tanh", **D), L.Dense(2, **D))


def cubed(f, *inputs):
    return lambda p, *xs: anp.sum(f(p, *(xs or inputs)) ** 3)


def test_only_the_first_call_of_an_order_is_made_again(Point, random_like):
    calls = []

    def counted(p, x):
        tf.py_function(lambda: calls.append(1), [], [])
        return tf.sin(x * p["b"]) * p["a"]

    adapter = adapter_of(lambda p, x: counted(p, x), TREE)
    expected = [1, 2, 3]  # the call and, once, its repetition; then every call keeps enough
    for count in expected:
        point = Point(adapter, [X])
        inner = point.derivative(random_like(point.outputs, 1), True)
        inner.pull(random_like(inner.outputs, 2))
        assert len(calls) == count + 1


def test_calls_in_flight_and_in_threads_do_not_meet(Point, random_like, close):
    adapter = adapter_of(mlp())
    inputs = [X + 0.1 * i for i in range(6)]

    def product(x):
        point = Point(adapter, [x])
        inner = point.derivative(random_like(point.outputs, 1), True)
        return inner, random_like(inner.outputs, 2)

    alone = [inner.pull(tangents) for inner, tangents in map(product, inputs)]
    flying = list(map(product, inputs))
    for index in reversed(range(6)):
        close(flying[index][0].pull(flying[index][1]), alone[index], 1e-12)
    results = {}

    def work(index):
        for _ in range(5):
            inner, tangents = product(inputs[index])
            results[index] = inner.pull(tangents)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for index in range(6):
        close(results[index], alone[index], 1e-12)


def test_arrays_changed_in_place_after_the_call_change_nothing(Point, random_like, close):
    adapter, x = adapter_of(mlp()), X.copy()
    point = Point(adapter, [x])
    cotangents = random_like(point.outputs, 1)
    inner = point.derivative(cotangents, True)
    tangents = random_like(inner.outputs, 2)
    expected = [np.array(g) for g in inner.pull(tangents)]
    x[:], cotangents[0][:] = 0, 0
    close(inner.pull(tangents), expected, 0)


def test_many_sizes_are_few_traces(Point, random_like, close):
    traces = []

    def counted(p, x):
        traces.append(x.shape)
        return tf.sin(x * p["b"])

    for model, expected in (
        (lambda p, x: counted(p, x), 2),
        (lambda p, x: counted(p, x) / int(x.shape[0]), 5),
    ):
        adapter = adapter_of(model, TREE)
        traces.clear()
        for rows in (4, 5, 6, 7, 4, 5, 6, 7):
            point = Point(adapter, [np.ones((rows, 3))])
            close(
                point.pull(random_like(point.outputs, 1), (2,)),
                point.pull(random_like(point.outputs, 1), (2,)),
            )
        assert len(traces) == expected


def test_copies_share_what_is_traced_and_pickles_do_not(Point, close):
    traces = []

    class Counted(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(np.ones(3))

        def __call__(self, x):
            traces.append(1)
            return tf.sin(x * self.w)

    adapter = adapter_of(Counted())
    Point(adapter, [X])
    twin = copy.deepcopy(adapter)
    close(Point(twin, [X]).outputs, Point(adapter, [X]).outputs)
    assert len(traces) == 1
    adapter = adapter_of(mlp())
    point = Point(adapter, [X])
    loaded = pickle.loads(pickle.dumps(adapter))
    close(Point(loaded, [X]).outputs, point.outputs)


def test_dropped_adapters_free_their_graphs(Point, random_like):
    adapter = adapter_of(mlp())
    point = Point(adapter, [X])
    inner = point.derivative(random_like(point.outputs, 1), True)
    inner.pull(random_like(inner.outputs, 2))
    graph = weakref.ref(point.residuals.kept.stage._whole.graph)
    del adapter, point, inner
    gc.collect()
    assert graph() is None


class Counted(layers.Layer):
    """A layer that counts how often it is traced."""

    traces = 0

    def call(self, x):
        Counted.traces += 1
        return x


def counted(*others, shape=(3,)):
    model = keras.Sequential([keras.Input(shape), Counted(), *others])
    f = gb.bridge(model, dtype="float64")
    loss = cubed(f)
    autograd.grad(loss)(f.params, np.ones([2, *(n or 4 for n in shape)]))
    Counted.traces = 0
    return f, loss


def test_another_batch_size_is_not_traced_anew():
    f, loss = counted(layers.Dense(2))
    for rows in (1, 2, 7, 5, 0):
        assert autograd.grad(loss)(f.params, np.ones((rows, 3))).shape == f.params.shape
    assert Counted.traces == 0


def test_other_lengths_are_left_open_when_a_second_one_comes():
    f, loss = counted(layers.GRU(2), shape=(None, 3))
    for length in (4, 2, 7, 3):
        autograd.grad(loss)(f.params, np.ones((2, length, 3)))
    assert Counted.traces == 1


def test_hessians_are_traced_once():
    f, loss = counted(layers.Dense(2))
    for scale in (1.0, 2.0):
        autograd.hessian_vector_product(lambda p: loss(p, X))(scale * f.params, f.params)
        assert Counted.traces == 1  # with what its second derivative needs
