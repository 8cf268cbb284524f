"""A model of TensorFlow in a TensorFlow program is a part of it: no call back, TensorFlow's own derivatives and compiler."""

import subprocess
import sys

import numpy as np
import pytest

import gradbridge as gb
from gradbridge.errors import GradbridgeWarning, InputError, ReentryError

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from tensorflow_programs import WAYS, gradient, jacobian, pushed  # noqa: E402

if keras.backend.backend() != "tensorflow":
    pytest.skip("Keras runs on another backend", allow_module_level=True)

X = tf.constant(np.linspace(-1.0, 1.0, 8).reshape(4, 2))


class Module(tf.Module):
    def __init__(self):
        self.w = tf.Variable(np.linspace(-1.0, 1.0, 6).reshape(2, 3))
        self.b = tf.Variable(np.linspace(0.0, 1.0, 3))

    def __call__(self, x):
        return tf.tanh(x @ self.w + self.b)


def function(p, x):
    return tf.tanh(x @ p["w"] + p["b"])


def keras_model():
    layers = [keras.Input((2,), dtype="float64"), keras.layers.Dense(3, "tanh", dtype="float64")]
    return keras.Sequential(layers)


def bridged(kind, **options):
    if kind == "module":
        return gb.bridge(Module(), **options)
    if kind == "keras":
        return gb.bridge(keras_model(), **options)
    params = {"w": np.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": np.linspace(0.0, 1.0, 3)}
    return gb.bridge(function, params=params, backend="tensorflow", **options)


def native(kind):
    """The same of the vector: the layouts have bias and kernel in their own order."""

    def run(p, x):
        w, b = tf.split(p, [6, 3]) if kind == "keras" else tf.split(p, [3, 6])[::-1]
        return tf.tanh(x @ tf.reshape(w, (2, 3)) + b)

    return run


def energy(f):
    return lambda p, x: tf.reduce_sum(tf.sin(f(p, x)) ** 2)


def close(a, b, rtol=1e-12):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1e-300, np.abs(b).max()))


@pytest.fixture(params=WAYS)
def compiled(request):
    return WAYS[request.param]


@pytest.mark.parametrize("kind", ["module", "keras", "function"])
def test_derivatives_are_tensorflows(kind, compiled):
    f, g = bridged(kind, host="tensorflow"), native(kind)
    p = f.params
    f(p, X)

    def programs(f):
        yield gradient(energy(f))
        yield gradient(energy(f), by=1)
        yield gradient(gradient(energy(f)), seed=tf.cos(p))

    with gb.trace() as trace:
        for ours, theirs in zip(programs(f), programs(g)):
            close(compiled(ours)(p, X), theirs(p, X), 1e-10)
    assert not trace.counts["backward"]  # those of the first look at the model are nobody's


def test_derivatives_of_the_third_order_and_jacobians(compiled):
    f, g = bridged("function", host="tensorflow"), native("function")
    p = f.params
    t = tf.cos(p)

    def programs(f):
        yield gradient(gradient(gradient(energy(f)), seed=t), seed=t)
        yield jacobian(f)

    for ours, theirs in zip(programs(f), programs(g)):
        close(compiled(ours)(p, X), theirs(p, X), 1e-8)


def test_accumulators_and_tapes_mix(compiled):
    """Through a `tf.function` TensorFlow itself loses a part of the gradient where the tape is around."""
    f, g = bridged("function", host="tensorflow"), native("function")
    p = f.params
    t = tf.cos(p)

    def programs(f):
        yield pushed(gradient(energy(f)), t)
        yield gradient(pushed(energy(f), t))
        yield gradient(pushed(gradient(energy(f)), t), seed=t)

    for ours, theirs in zip(programs(f), programs(g)):
        close(compiled(ours)(p, X), theirs(p, X), 1e-8)


def test_a_graph_with_it_calls_nobody_back_and_xla_compiles_it():
    f = bridged("keras")
    p = tf.constant(f.params)
    program = tf.function(gradient(energy(f)), jit_compile=True)
    close(program(p, X), gradient(energy(native("keras")))(p, X))
    graph = program.get_concrete_function(p, X).graph.as_graph_def()
    kinds = {node.op for function in graph.library.function for node in function.node_def}
    assert "MatMul" in kinds
    assert not {"PyFunc", "PyFuncStateless", "EagerPyFunc"} & kinds


def test_it_is_saved_with_the_function(tmp_path):
    f = bridged("module", host="tensorflow")
    module = tf.Module()
    module.p = tf.Variable(f.params)
    signature = [tf.TensorSpec([None, 2], tf.float64)]
    module.call = tf.function(lambda x: f(module.p, x), input_signature=signature)
    tf.saved_model.save(module, str(tmp_path / "model"))
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    close(loaded.call(X), f(f.params, X))


def test_rows_of_any_number_are_one_trace():
    traced = []

    def counted(p, x):
        traced.append(x.shape)
        return tf.tanh(x @ p)

    f = gb.bridge(counted, params=np.ones((2, 3)), backend="tensorflow", host="tensorflow", audit="off")
    p = f.params
    for count in (4, 3, 2, 1):
        assert f(p, X[:count]).shape == (count, 3)
    assert len(traced) == 2  # of the first number, and of any
    program = tf.function(lambda x: f(p, x), input_signature=[tf.TensorSpec([None, 2], tf.float64)])
    assert program(X).shape == (4, 3)
    assert len(traced) == 2


def test_the_users_model_is_left_alone_and_is_as_it_was_bridged():
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
        ]
    )
    before = [w.copy() for w in model.get_weights()]
    f = gb.bridge(model, host="tensorflow")
    p = f.params
    y, by_params = f(p, X), tf.function(gradient(energy(f)))(p, X)
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)
    model.set_weights([0 * w for w in before])
    np.testing.assert_array_equal(f(p, X), y)
    np.testing.assert_array_equal(gradient(energy(f))(p, X), by_params)


def test_second_derivatives_of_normalized_layers_are_right(compiled):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4), keras.layers.LayerNormalization()])
    f = gb.bridge(model, host="tensorflow")
    p, step = f.params, 1e-6
    t = tf.cos(p)
    product = compiled(gradient(gradient(energy(f)), seed=t))(p, X)
    first = gradient(energy(f))
    close(product, (first(p + step * t, X) - first(p - step * t, X)) / (2 * step), 1e-6)


def test_a_model_of_one_precision_keeps_it_and_says_so(compiled):
    f = gb.bridge(
        lambda p, x: x @ p * tf.constant(2.0), params=np.ones((2, 1), "float32"), backend="tensorflow"
    )
    p = tf.ones(2, tf.float64)
    with pytest.warns(GradbridgeWarning, match="cannot be computed in float64"):
        y = compiled(f)(p, X)
    assert y.dtype == tf.float64
    close(y, 2 * tf.reduce_sum(X, 1, keepdims=True), 1e-6)


def test_what_it_refuses_is_said_by_us(compiled):
    f = bridged("module", host="tensorflow")
    with pytest.raises(InputError, match="the bridge over Module: the model was given"):
        compiled(f)(f.params, X[:, :1])


def test_what_moves_or_draws_runs_eagerly_and_is_refused_in_a_graph():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(64), keras.layers.Dropout(0.5)])
    f = gb.bridge(model, mode="train", noise="per_call", host="tensorflow")
    p = f.params
    assert gradient(energy(f))(p, X).shape == p.shape
    assert tf.reduce_any(f(p, X) != f(p, X))
    chunked = bridged("function", rows_per_chunk=2, host="tensorflow")
    assert gradient(energy(chunked))(chunked.params, X).shape == chunked.params.shape
    for bridge in (f, chunked):
        with pytest.raises(ReentryError, match=r"Call it outside of tf\.function"):
            tf.function(bridge)(bridge.params, X)


HANGS = """
import numpy as np, tensorflow as tf
tf.config.threading.set_inter_op_parallelism_threads(1)
tf.config.threading.set_intra_op_parallelism_threads(1)
import gradbridge as gb

x = tf.constant(np.random.default_rng(0).normal(size=(60, 60)) / 60)

def eight(f):
    @tf.function
    def program(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.add_n([tf.reduce_sum(f(tf.sin(x + float(i))) ** 2) for i in range(8)])
        return tape.gradient(y, x)
    return program

def body(x):
    return tf.tanh(x @ x) @ x

inner = gb.primitive(backend="tensorflow")(body)
native = eight(body)(x)
for _ in range(3):
    assert np.allclose(eight(inner)(x), native)
plain = gb.primitive(lambda x: np.tanh(x), outputs=lambda x: (x.shape, x.dtype))
plain.defvjp(lambda ans, x: lambda v: v * (1 - ans**2))
assert np.allclose(eight(plain)(x), eight(tf.tanh)(x))
print("inlined")
around = gb.primitive(lambda x: inner(x), outputs=lambda x: (x.shape, x.dtype))
around.defvjp(lambda ans, x: lambda v: v)
try:
    eight(around)(x)
except tf.errors.OpError as error:
    print("ReentryError: TensorFlow was called within a callback" in str(error))
"""


def test_guests_that_run_at_once_on_one_thread_end_or_are_refused():
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["inlined", "True"], done.stderr
