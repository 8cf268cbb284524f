"""Derivatives of derivatives that start from the recorded forward, by the protocol itself: to any order, without another one."""

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest

from gradbridge import trees
from gradbridge.call_spec import CallSpec
from gradbridge.errors import Unsupported
from gradbridge.protocol import ArraySpec, GuestOptions

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from gradbridge_tensorflow.guest import adapt  # noqa: E402

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Keras runs on another backend"
)

DRAW = np.random.default_rng(0)
X, IMAGES = DRAW.normal(size=(5, 3)), DRAW.normal(size=(2, 6, 6, 2))
TREE = {"a": np.array(0.4), "b": np.linspace(0.1, 0.9, 3)}
L, D = keras.layers, {"dtype": "float64"}


def adapter_of(model, params=None, mode="eval", dtype=None):
    return adapt(model, GuestOptions(params, dtype, None, mode))


def sequential(shape, *layers):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input(shape, **D), *layers])


def mlp():
    return sequential((3,), L.Dense(4, activation="tanh", **D), L.Dense(2, **D))


class Point:
    """One call of an adapter, and derivatives of it: recorded ones, or computed anew."""

    def __init__(self, adapter, inputs, wrt=None):
        self.adapter, self.inputs = adapter, list(inputs)
        self.weights = list(adapter.weights())
        self.wrt = tuple(range(len(self.weights) + len(inputs))) if wrt is None else wrt
        self.spec = CallSpec.of_arrays(len(inputs), 3)
        output, self.residuals = adapter.forward(adapter.update(self.weights), inputs, self.spec, self.wrt)
        self.outputs = trees.flatten(output)[0]

    def pull(self, cotangents, wrt=None):
        return self.adapter.backward(self.residuals, cotangents, self.wrt if wrt is None else wrt)

    def derivative(self, cotangents, recorded, wrt=None):
        """The point of the gradient by `wrt`, as a function of all arguments and the cotangents."""
        wrt = self.wrt if wrt is None else wrt
        twin = self.adapter.pullback(self.spec, wrt, self.residuals if recorded else None)
        return Point(twin, [*self.inputs, *cotangents], _floating(twin, [*self.inputs, *cotangents]))


def _floating(adapter, inputs):
    count = len(adapter.layout)
    every = [*range(count), *(count + i for i, x in enumerate(inputs) if np.asarray(x).dtype.kind in "fc")]
    return tuple(every)


def random_like(arrays, seed):
    draw = np.random.default_rng(seed)

    def one(x):
        x = np.asarray(x)
        noise = draw.normal(size=x.shape)
        return noise + 1j * draw.normal(size=x.shape) if x.dtype.kind == "c" else noise

    return [one(x) for x in arrays]


def close(ours, theirs, rtol=1e-10):
    assert len(ours) == len(theirs)
    for a, b in zip(map(np.asarray, ours), map(np.asarray, theirs)):
        assert a.shape == b.shape
        assert a.dtype.kind == b.dtype.kind
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1e-300, np.abs(b).max(initial=0)))


@tf.custom_gradient
def cube(x):
    return x**3, lambda g: 3 * g * x**2


class Nested(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(np.linspace(-1, 1, 12).reshape(3, 4))

    @tf.function
    def __call__(self, x):
        y = x @ self.w
        tf.debugging.assert_all_finite(y, "not finite")
        return tf.scan(lambda a, b: tf.tanh(a * b + 1), y)


def looped(p, x):
    return tf.while_loop(
        lambda i, y: i < 5, lambda i, y: (i + 1, tf.sin(p["a"] * y) + x), [tf.constant(0), x * p["b"]]
    )[1]


CASES = {
    "dense": (mlp, X, {}),
    "layer norm": (
        lambda: sequential(
            (3,), L.Dense(4, activation="tanh", **D), L.LayerNormalization(**D), L.Dense(2, **D)
        ),
        X,
        {},
    ),
    "batch norm, train": (
        lambda: sequential((3,), L.Dense(4, "tanh", **D), L.BatchNormalization(**D), L.Dense(2, **D)),
        X,
        {"mode": "train"},
    ),
    "dropout, train": (
        lambda: sequential((3,), L.Dense(8, "tanh", **D), L.Dropout(0.4, **D), L.Dense(2, **D)),
        X,
        {"mode": "train"},
    ),
    "convolution, resizing, pooling": (
        lambda: sequential(
            (6, 6, 2),
            L.Conv2D(3, 3, activation="gelu", **D),
            L.UpSampling2D(2, interpolation="bilinear", **D),
            L.AveragePooling2D(2, **D),
            L.Flatten(**D),
            L.Dense(2, **D),
        ),
        IMAGES,
        {},
    ),
    "a tf.function with a scan": (Nested, X, {}),
    "custom gradient": (lambda: lambda p, x: cube(x * p["b"]) * p["a"], X, {"params": TREE}),
    "cond": (
        lambda: (
            lambda p, x: (
                tf.cond(tf.reduce_sum(x) > 0, lambda: tf.sin(x * p["b"]), lambda: tf.cos(x * p["b"])) * p["a"]
            )
        ),
        X,
        {"params": TREE},
    ),
    "while": (lambda: looped, X, {"params": TREE}),
    "an unused parameter": (lambda: lambda p, x: tf.sin(x * p["a"]), X, {"params": TREE}),
    "linear": (lambda: lambda p, x: x @ tf.linalg.diag(p["b"]) + p["a"], X, {"params": TREE}),
    "several outputs": (
        lambda: lambda p, x: {"y": tf.sin(x * p["b"]), "z": tf.reduce_sum(x) ** 2 * p["a"]},
        X,
        {"params": TREE},
    ),
    "complex": (
        lambda: lambda p, z: tf.exp(tf.cast(p["a"], z.dtype) * z) * tf.math.conj(z) ** 2,
        X + 1j * DRAW.normal(size=X.shape),
        {"params": TREE},
    ),
}


LOOPS = ("while", "a tf.function with a scan")
TO_THE_THIRD = ("dense", "custom gradient", "while", "complex")


@pytest.mark.parametrize("name", CASES)
def test_recorded_derivatives_are_those_computed_anew(name):
    make, x, options = CASES[name]
    model = make()
    adapter = adapter_of(model, **options)
    points = [Point(adapter, [x])] * 2
    rtol = 1e-5 if "resizing" in name else 1e-10  # that is done in float32
    highest = 3 if name in TO_THE_THIRD else 2
    for order in range(1, highest + 1):
        cotangents = random_like(points[0].outputs, order)
        expected = points[1].pull(cotangents)
        close(points[0].pull(cotangents), expected, rtol)
        if order < highest:
            points = [points[0].derivative(cotangents, True), points[1].derivative(cotangents, False)]
            close(points[0].outputs, expected, rtol)
    # What was deepened still gives the first order, at once and for a new call.
    again = Point(adapter, [x])
    cotangents = random_like(again.outputs, 1)
    close(again.pull(cotangents), Point(adapter_of(model, **options), [x]).pull(cotangents))


@pytest.mark.parametrize("name", ["dense", "batch norm, train", "custom gradient", "complex", "cond", *LOOPS])
def test_one_walk_gives_what_two_give(name):
    make, x, options = CASES[name]
    outer = Point(adapter_of(make(), **options), [x])
    cotangents = random_like(outer.outputs, 1)
    for wrt in (outer.wrt, outer.wrt[:1]):
        inner = outer.derivative(cotangents, True, wrt)
        tangents, also = random_like(inner.outputs, 2), random_like(outer.outputs, 3)
        # By `a` alone, which stands outside of it, the gradient reads nothing that the branch keeps.
        if name in LOOPS or (name == "cond" and wrt == outer.wrt):
            with pytest.raises(Unsupported, match="loop"):
                inner.adapter.pull_to_boundary(inner.residuals, tangents)
            continue
        by_cotangents, left = inner.adapter.pull_to_boundary(inner.residuals, tangents)
        count = len(outer.wrt)
        both = inner.adapter.backward(inner.residuals, tangents, inner.wrt)
        close([by_cotangents[p] for p in inner.wrt[count:]], both[count:])
        first = [np.asarray(g) for g in outer.pull(also)]
        merged = outer.adapter.backward_merged(outer.residuals, also, outer.wrt, [left])
        close(merged, [a + np.asarray(b) for a, b in zip(first, both)])
        merged = outer.adapter.backward_merged(outer.residuals, also, outer.wrt, [left, left])
        close(merged, [a + 2 * np.asarray(b) for a, b in zip(first, both)])


def test_a_fourth_order():
    adapter = adapter_of(lambda p, x: tf.exp(p["a"] * x), TREE)
    x = np.array([0.3, -1.0])
    point, value = Point(adapter, [x], (2,)), np.exp(0.4 * x)
    cotangents, scale = [np.ones(2)], 1.0
    for _ in range(4):
        scale *= 0.4
        close(point.pull(cotangents, (2,)), [scale * value])
        point = point.derivative(cotangents, True, (2,))


def test_only_the_first_call_of_an_order_is_made_again():
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


def test_calls_in_flight_and_in_threads_do_not_meet():
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


def test_many_at_once_of_a_recorded_gradient():
    point = Point(adapter_of(mlp()), [X])
    inner = point.derivative(random_like(point.outputs, 1), True)
    one, two = random_like(inner.outputs, 2), random_like(inner.outputs, 3)
    many = inner.adapter.backward_many(inner.residuals, [np.stack(pair) for pair in zip(one, two)], inner.wrt)
    for index, tangents in enumerate((one, two)):
        close([g[index] for g in map(np.asarray, many)], inner.pull(tangents))


def test_arrays_changed_in_place_after_the_call_change_nothing():
    adapter, x = adapter_of(mlp()), X.copy()
    point = Point(adapter, [x])
    cotangents = random_like(point.outputs, 1)
    inner = point.derivative(cotangents, True)
    tangents = random_like(inner.outputs, 2)
    expected = [np.array(g) for g in inner.pull(tangents)]
    x[:], cotangents[0][:] = 0, 0
    close(inner.pull(tangents), expected, 0)


def test_a_gradient_beside_an_integer_output():
    adapter = adapter_of(lambda p, x: (tf.sin(x * p["b"]), tf.argmax(x, 1)), TREE)
    point = Point(adapter, [X])
    cotangents = [np.random.default_rng(1).normal(size=X.shape), np.zeros(5)]
    points = [point.derivative(cotangents, recorded) for recorded in (True, False)]
    tangents = random_like(points[0].outputs, 2)
    close(*[p.pull(tangents) for p in points])


def test_packed_weights():
    adapter = adapter_of(mlp())
    flat = adapter.layout.ravel(adapter.weights())
    spec = CallSpec.of_arrays(1)
    packed = CallSpec(spec.structure, packed=True)
    outputs, residuals = adapter.forward(adapter.update_flat(flat, True), [X], packed, (0, 1))
    truth, kept = adapter.forward(adapter.update_flat(flat, False), [X], spec, (0, 1, 2, 3, 4))
    close([outputs], [truth])
    cotangent = random_like([truth], 1)
    *gradients, by_x = adapter.backward(kept, cotangent, (0, 1, 2, 3, 4))
    close(
        adapter.backward(residuals, cotangent, (0, 1)),
        [adapter.layout.ravel([np.asarray(g) for g in gradients]), by_x],
    )


def test_many_sizes_are_few_traces():
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


def test_shapes_before_anything_is_computed():
    adapter = adapter_of(mlp(), dtype="float32")
    spec = CallSpec.of_arrays(1)
    assert adapter.output_spec([ArraySpec((7, 3), np.dtype("f8"))], spec) == ArraySpec((7, 2), np.dtype("f4"))
    adapter = adapter_of(lambda p, x: {"y": x * p["b"], "n": tf.argmax(x, 1)}, TREE)
    assert adapter.output_spec([ArraySpec((7, 3), np.dtype("f8"))], spec) == {
        "y": ArraySpec((7, 3), np.dtype("f8")),
        "n": ArraySpec((7,), np.dtype("i8")),
    }


def test_copies_share_what_is_traced_and_pickles_do_not():
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


def test_dropped_adapters_free_their_graphs():
    adapter = adapter_of(mlp())
    point = Point(adapter, [X])
    inner = point.derivative(random_like(point.outputs, 1), True)
    inner.pull(random_like(inner.outputs, 2))
    graph = weakref.ref(point.residuals.kept.stage._whole.graph)
    del adapter, point, inner
    gc.collect()
    assert graph() is None
