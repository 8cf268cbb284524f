"""What is refused of calls in TensorFlow programs, and when; and what calls leave behind."""

import gc
import subprocess
import sys
import weakref

import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb
from gradbridge.errors import (
    GuestError,
    HigherOrderError,
    HostError,
    InputError,
    ParamsDtypeError,
    ParamsShapeError,
)

tf = pytest.importorskip("tensorflow")

from tensorflow_programs import WAYS, gradient, like_input, rows  # noqa: E402
from third_party import ByHand  # noqa: E402

X = tf.constant(np.linspace(-1.0, 1.0, 6).reshape(3, 2))


@pytest.fixture(params=WAYS)
def compiled(request):
    return WAYS[request.param]


@pytest.fixture
def f():
    return gb.bridge(lambda p, x: anp.sin(x) @ p, params=np.ones(2), backend="autograd", outputs=rows)


@pytest.fixture
def sine():
    """A plain function with a first derivative and no second."""
    q = gb.primitive(lambda x: np.sin(x), outputs=like_input)
    q.defvjp(lambda ans, x: lambda v: v * np.cos(x))
    return q


# -- what is refused, and when ----------------------------------------------------------------


def test_what_is_known_when_tracing_is_refused_then_as_ours(f, compiled):
    p = tf.constant(f.params)
    with pytest.raises(ParamsShapeError, match=r"expects params of shape \(2,\), got \(1,\)"):
        compiled(f)(p[1:], X)
    with pytest.raises(ParamsDtypeError, match="complex128"):
        compiled(f)(tf.cast(p, tf.complex128), X)
    with pytest.raises(HostError, match=r"any number of axes"):
        tf.function(f, input_signature=[tf.TensorSpec([2], tf.float64), tf.TensorSpec(None, tf.float64)])(
            p, X
        )


def test_a_tensor_that_has_left_its_function_is_refused_outside_of_it(f):
    left = []
    tf.function(lambda x: left.append(2 * x))(X)
    p = tf.constant(f.params)
    of_tensorflow = gb.bridge(lambda p, x: x @ p, params=tf.ones((2, 1)), backend="tensorflow")
    for call in (lambda: f(p, left[0]), lambda: of_tensorflow(tf.ones((2, 1), tf.float64), left[0])):
        with pytest.raises(InputError, match="was traced with, which has no numbers outside of it"):
            call()
    with pytest.raises(TypeError, match="out of scope"):  # TensorFlow's own word, which is clear
        tf.function(lambda: f(p, left[0]))()


def test_a_misfit_shape_is_refused_when_tracing():
    torch = pytest.importorskip("torch")
    f = gb.bridge(torch.nn.Linear(2, 1))
    p = tf.constant(f.params)
    with pytest.raises(InputError, match=r"expects \(…, 2\), got \(3, 3\)"):
        tf.function(f)(p, tf.ones((3, 3), tf.float64))
    open_sizes = tf.TensorSpec([None, None], tf.float64)
    with pytest.raises(InputError, match="each size that was tried"):
        tf.function(f, input_signature=[tf.TensorSpec([3], tf.float64), open_sizes])(p, X)


def test_a_second_order_that_is_missing_is_refused(sine):
    with pytest.raises(HigherOrderError, match="derivative of the written-down gradient"):
        gradient(gradient(sine))(X)
    for program in (tf.function(gradient(gradient(sine))), gradient(tf.function(gradient(sine)))):
        with pytest.raises(
            tf.errors.OpError, match="HigherOrderError: a derivative of the written-down gradient"
        ):
            program(X)
    first = gb.bridge(ByHand(2), outputs=rows)
    with pytest.raises(HigherOrderError, match="cannot differentiate a gradient again"):
        tf.function(gradient(gradient(first)))(tf.ones(2, tf.float64), X)


def test_outputs_that_are_others_than_was_said_are_refused():
    q = gb.primitive(lambda x: np.sin(x), outputs=((5,), "float64"))
    with pytest.raises(
        tf.errors.OpError, match=r"returned float64 \(3, 2\) in a tf\.function .* float64 \(5,\)"
    ):
        tf.function(q)(X)


def test_a_guest_that_fails_says_so_within_tensorflows_error():
    @gb.primitive(outputs=like_input)
    def broken(x):
        raise ValueError("out of paper")

    with pytest.raises(GuestError, match="out of paper"):
        broken(X)
    with pytest.raises(tf.errors.OpError, match="GuestError: broken .*out of paper"):
        tf.function(broken)(X)


def test_xla_is_refused_when_tracing(f):
    with pytest.raises(HostError, match=r"tf\.function\(jit_compile=True\)"):
        tf.function(f, jit_compile=True)(tf.constant(f.params), X)


def test_saving_a_function_that_calls_back_is_refused(f, tmp_path):
    module = tf.Module()
    signature = [tf.TensorSpec([None, 2], tf.float64)]
    module.call = tf.function(lambda x: f(tf.ones(2, tf.float64), x), input_signature=signature)
    module.call(X)
    with pytest.raises(HostError, match="a SavedModel has no Python in it"):
        tf.saved_model.save(module, str(tmp_path / "model"))


def test_a_graph_that_was_saved_all_the_same_calls_nobody_else_elsewhere(f, tmp_path):
    concrete = tf.function(lambda x: f(tf.ones(2, tf.float64), x)).get_concrete_function(X)
    where = str(tmp_path / "model")
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(tf.Module(), where, signatures=concrete, options=options)
    (operation,) = [op for op in concrete.graph.get_operations() if op.type == "PyFuncStateless"]
    number = int(operation.get_attr("token").decode().rpartition("_")[2])
    program = f"""
import tensorflow as tf, gradbridge as gb
from tensorflow.python.ops import script_ops
script_ops._py_funcs._unique_id = {number}  # as many functions were made there before
q = gb.primitive(lambda x: x, outputs=lambda x: (x.shape, x.dtype), host="tensorflow")
function = tf.function(q)
function(tf.ones((3, 2), tf.float64))
try:
    tf.saved_model.load({where!r}).signatures["serving_default"](tf.ones((3, 2), tf.float64))
except tf.errors.OpError as error:
    print("was loaded from another process" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True"], done.stderr


# -- what is left behind ----------------------------------------------------------------------


def test_nothing_of_a_bridge_is_left_when_it_is_dropped(compiled):
    held = []

    def once():
        f = gb.bridge(ByHand(2), outputs=rows)
        held.append(weakref.ref(f.adapter))
        compiled(gradient(f))(tf.ones(2, tf.float64), X)
        gradient(compiled(f))(tf.ones(2, tf.float64), X)

    for _ in range(3):
        once()
    gc.collect()
    assert [one() for one in held] == [None] * 3


def test_what_a_run_recorded_goes_with_its_tensors(f):
    from gradbridge_tensorflow import records

    p = tf.constant(f.params)
    forward, both = tf.function(lambda p: f(p, X)), tf.function(gradient(lambda p: f(p, X)))
    before = len(records._runs)
    for _ in range(3):
        forward(p)
        both(p)
    gc.collect()
    assert len(records._runs) == before


def test_a_first_call_within_a_function_is_not_rewritten_by_autograph(tmp_path):
    program = tmp_path / "program.py"  # AutoGraph reads the source of what it rewrites
    program.write_text(
        """
import numpy as np, tensorflow as tf, gradbridge as gb
f = gb.bridge(
    lambda p, x: x @ p, params=np.ones(2), backend="numpy", gradient="numeric", outputs=lambda x: (x.shape[:1], x.dtype)
)

@tf.function
def call(x):
    return f(tf.ones(2, tf.float64), x)

assert call(tf.ones((3, 2), tf.float64)).numpy().tolist() == [2, 2, 2]
"""
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "AutoGraph" not in done.stdout + done.stderr
