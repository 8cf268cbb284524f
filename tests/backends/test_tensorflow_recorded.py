"""Derivatives of derivatives that start from the recorded forward, by the protocol itself: to any order, without another one."""

import numpy as np
import pytest

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
def test_recorded_derivatives_are_those_computed_anew(name, Point, random_like, close):
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
def test_one_walk_gives_what_two_give(name, Point, random_like, close):
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


def test_a_fourth_order(Point, close):
    adapter = adapter_of(lambda p, x: tf.exp(p["a"] * x), TREE)
    x = np.array([0.3, -1.0])
    point, value = Point(adapter, [x], (2,)), np.exp(0.4 * x)
    cotangents, scale = [np.ones(2)], 1.0
    for _ in range(4):
        scale *= 0.4
        close(point.pull(cotangents, (2,)), [scale * value])
        point = point.derivative(cotangents, True, (2,))


def test_many_at_once_of_a_recorded_gradient(Point, random_like, close):
    point = Point(adapter_of(mlp()), [X])
    inner = point.derivative(random_like(point.outputs, 1), True)
    one, two = random_like(inner.outputs, 2), random_like(inner.outputs, 3)
    many = inner.adapter.backward_many(inner.residuals, [np.stack(pair) for pair in zip(one, two)], inner.wrt)
    for index, tangents in enumerate((one, two)):
        close([g[index] for g in map(np.asarray, many)], inner.pull(tangents))


def test_a_gradient_beside_an_integer_output(Point, random_like, close):
    adapter = adapter_of(lambda p, x: (tf.sin(x * p["b"]), tf.argmax(x, 1)), TREE)
    point = Point(adapter, [X])
    cotangents = [np.random.default_rng(1).normal(size=X.shape), np.zeros(5)]
    points = [point.derivative(cotangents, recorded) for recorded in (True, False)]
    tangents = random_like(points[0].outputs, 2)
    close(*[p.pull(tangents) for p in points])


def test_packed_weights(random_like, close):
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


def test_shapes_before_anything_is_computed():
    adapter = adapter_of(mlp(), dtype="float32")
    spec = CallSpec.of_arrays(1)
    assert adapter.output_spec([ArraySpec((7, 3), np.dtype("f8"))], spec) == ArraySpec((7, 2), np.dtype("f4"))
    adapter = adapter_of(lambda p, x: {"y": x * p["b"], "n": tf.argmax(x, 1)}, TREE)
    assert adapter.output_spec([ArraySpec((7, 3), np.dtype("f8"))], spec) == {
        "y": ArraySpec((7, 3), np.dtype("f8")),
        "n": ArraySpec((7,), np.dtype("i8")),
    }
