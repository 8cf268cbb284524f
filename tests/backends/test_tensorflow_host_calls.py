"""How TensorFlow programs call bridges: whose a call is, what passes, what is refused, and when."""

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
    NonFiniteParamsError,
    NotDifferentiableError,
    ParamsDtypeError,
    ParamsShapeError,
)

tf = pytest.importorskip("tensorflow")

from tensorflow_programs import WAYS, gradient, pushed  # noqa: E402

X = tf.constant(np.linspace(-1.0, 1.0, 6).reshape(3, 2))
Z = tf.complex(X, 0.5 * X + 0.1)


@pytest.fixture(params=WAYS)
def compiled(request):
    return WAYS[request.param]


@pytest.fixture
def f():
    return gb.bridge(lambda p, x: anp.sin(x) @ p, params=np.ones(2), backend="autograd", outputs=_rows)


def _rows(x):
    return x.shape[:1], "float64"


def like_input(x):
    return x.shape, x.dtype


@pytest.fixture
def sine():
    """A plain function with a first derivative and no second."""
    q = gb.primitive(lambda x: np.sin(x), outputs=like_input)
    q.defvjp(lambda ans, x: lambda v: v * np.cos(x))
    return q


# -- whose a call is --------------------------------------------------------------------------


def test_the_params_say_whose_a_call_is(f):
    p = tf.constant(f.params)
    assert isinstance(f(p, X), tf.Tensor)
    assert isinstance(f(p, X.numpy()), tf.Tensor)
    assert isinstance(f(tf.Variable(p), X.numpy()), tf.Tensor)
    assert type(f(f.params, X)) is np.ndarray
    assert type(f(f.params, tf.Variable(X))) is np.ndarray


def test_what_a_tape_or_an_accumulator_follows_is_tensorflows_whatever_the_params_are(f):
    v = tf.Variable(X)
    for x in (X, v):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = f(f.params, x)
        np.testing.assert_allclose(tape.gradient(y, x), np.cos(X), rtol=1e-12)
    np.testing.assert_allclose(pushed(lambda x: f(f.params, x), X)(X), np.sum(X * np.cos(X), 1), rtol=1e-12)
    with tf.GradientTape() as tape, tape.stop_recording():
        assert type(f(f.params, v)) is np.ndarray
    assert isinstance(tf.function(lambda x: f(f.params, x))(X), tf.Tensor)


def test_two_systems_that_both_differentiate_are_refused(f):
    torch = pytest.importorskip("torch")
    p = torch.ones(2, dtype=torch.float64, requires_grad=True)
    with tf.GradientTape() as tape, pytest.raises(HostError, match="arrays of two systems"):
        tape.watch(X)
        f(p, X)


def test_a_bridge_of_this_host_alone_has_its_arrays(f):
    own = gb.bridge(lambda p, x: anp.sin(x) @ p, params=np.ones(2), backend="autograd", host="tensorflow")
    assert isinstance(own.params, tf.Tensor)
    assert isinstance(own(np.ones(2), X.numpy()), tf.Tensor)


def test_derivatives_at_arrays_are_tensors(f):
    p = tf.constant(f.params)
    assert f.jacobian(p, X).shape == (3, 2)
    np.testing.assert_allclose(f.jacobian(tf.Variable(p), X), np.sin(X), rtol=1e-12)
    for result in (
        f.vjp(p, X, cotangent=tf.ones(3, tf.float64)),
        f.jvp(p, X, tangent=p),
        f.ggn(p, X, vector=p),
        f.row_gradients(p, X),
    ):
        assert isinstance(result, tf.Tensor)


def test_derivatives_at_what_is_differentiated_are_refused(f, compiled):
    with pytest.raises(NotDifferentiableError, match="tensorflow is differentiating"):
        compiled(gradient(lambda p: f.jacobian(p, X)))(tf.constant(f.params))


# -- what passes ------------------------------------------------------------------------------


def test_trees_keywords_strings_and_integers(compiled):
    @gb.primitive(backend="autograd", outputs=lambda x, *, way, k: {"y": x, "more": (k, x)})
    def both(x, *, way, k):
        return {"y": anp.sin(x) if way == "sine" else x, "more": (k + 1, k * x)}

    def program(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = both(x, way="sine", k=tf.constant(3))
            y = out["y"] + out["more"][1]
        return out, tape.gradient(y, x)

    out, by_x = compiled(program)(X)
    assert out["more"][0].dtype == tf.int32
    assert int(out["more"][0]) == 4
    np.testing.assert_allclose(out["y"], np.sin(X), rtol=1e-12)
    np.testing.assert_allclose(by_x, np.cos(X) + 3, rtol=1e-12)


def test_an_integer_output_has_no_gradient(compiled):
    q = gb.primitive(backend="autograd", outputs=((3,), "int64"))(lambda x: anp.argmax(x, 1))
    assert compiled(gradient(q))(X) is None


def test_complex_gradients_are_by_tensorflows_convention(compiled):
    def of(module, conj):
        return lambda z: z * z * conj(z) + module.exp(z)

    q = gb.primitive(backend="autograd", outputs=like_input)(of(anp, anp.conj))

    def real(function):
        return lambda z: tf.math.real(tf.reduce_sum(function(z) * tf.constant(1 + 2j, tf.complex128)))

    ours, theirs = real(q), real(of(tf, tf.math.conj))
    np.testing.assert_allclose(compiled(gradient(ours))(Z), gradient(theirs)(Z), rtol=1e-12)
    twice, exact = gradient(real(gradient(ours))), gradient(real(gradient(theirs)))
    np.testing.assert_allclose(compiled(twice)(Z), exact(Z), rtol=1e-10)
    np.testing.assert_allclose(compiled(pushed(q, Z))(Z), pushed(of(tf, tf.math.conj), Z)(Z), rtol=1e-12)


def test_what_is_held_constant_has_no_gradient(compiled):
    q = gb.primitive(backend="autograd", nondiff=(1,), outputs=lambda x, k: x)(lambda x, k: anp.sin(x) * k)
    np.testing.assert_allclose(compiled(gradient(q))(X, 2 * X), 2 * X * np.cos(X), rtol=1e-12)
    assert compiled(gradient(q, by=1))(X, 2 * X) is None


def test_a_gradient_that_nobody_wrote_is_missed_only_by_who_asks_for_it(compiled):
    q = gb.primitive(lambda x, k: np.sin(x) * k, outputs=lambda x, k: (x.shape, x.dtype))
    q.defvjp(lambda ans, x, k: lambda v: v * k * np.cos(x), None)
    for program in (compiled(gradient(lambda x: q(x, 2.0))), gradient(compiled(lambda x: q(x, 2.0)))):
        np.testing.assert_allclose(program(X), 2 * np.cos(X), rtol=1e-12)
    np.testing.assert_allclose(compiled(gradient(q))(X, 2 * X), 2 * X * np.cos(X), rtol=1e-12)


def test_a_function_of_first_order_works_within_another_tape(sine, compiled):
    def program(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            return gradient(sine)(x)

    np.testing.assert_allclose(compiled(program)(X), np.cos(X), rtol=1e-12)


def test_an_accumulator_pushes_through_a_written_jvp():
    q = gb.primitive(lambda x: np.sin(x))
    q.defvjp(lambda ans, x: lambda v: v * np.cos(x))
    q.defjvp(lambda t, ans, x: t * np.cos(x))
    np.testing.assert_allclose(pushed(q, 2 * X)(X), 2 * X * np.cos(X), rtol=1e-12)


class Doubled(gb.Adapter):
    """Of a third party: written by hand, without anything that is optional."""

    label, layout = "doubled", gb.ParameterLayout(("w",), ((2,),), ("float64",))

    def weights(self):
        return [np.ones(2)]

    def model(self, weights):
        return weights

    def update(self, weights):
        return weights

    def forward(self, loaded, inputs, spec, wrt):
        return inputs[0] @ loaded[0], (loaded[0], inputs[0])

    def backward(self, residuals, cotangents, wrt):
        w, x = residuals
        return [cotangents[0] @ x if i == 0 else np.outer(cotangents[0], w) for i in wrt]


def test_an_adapter_of_a_third_party(compiled):
    f = gb.bridge(Doubled(), outputs=_rows)
    np.testing.assert_allclose(compiled(gradient(f))(tf.ones(2, tf.float64), X), np.sum(X, 0), rtol=1e-12)
    with pytest.raises(InputError, match="takes no complex numbers"):
        compiled(f)(tf.ones(2, tf.float64), Z)
    with pytest.raises(HostError, match=r"doubled was called in a tf\.function.* say outputs="):
        tf.function(gb.bridge(Doubled()))(tf.ones(2, tf.float64), X)


def test_chunks_and_memory(compiled):
    torch = pytest.importorskip("torch")
    network = torch.nn.Linear(2, 1, dtype=torch.float64)
    exact = gb.bridge(network)
    p = tf.constant(exact.params)
    for options in ({"rows_per_chunk": 2}, {"reuse": 2}):
        f = gb.bridge(network, **options)
        program = compiled(gradient(f))
        for _ in range(2):
            np.testing.assert_allclose(program(p, X), gradient(exact)(p, X), rtol=1e-12)
    assert f.memory.hits


@pytest.mark.parametrize("kind", ["frozen", "per_params", "per_call"])
def test_noise_is_drawn_in_each_run_and_the_gradient_is_that_of_the_values(kind, compiled):
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Linear(2, 32, bias=False, dtype=torch.float64), torch.nn.Dropout())
    f = gb.bridge(network, mode="train", noise=kind)
    p = tf.constant(f.params)

    @compiled
    def program(p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            y = tf.reduce_sum(f(p, X))
        return y, tape.gradient(y, p)

    values = []
    for _ in range(2):
        y, by_params = program(p)
        np.testing.assert_allclose(y, tf.reduce_sum(p * by_params), rtol=1e-10)  # it is linear in them
        values.append(float(y))
    assert (values[0] == values[1]) == (kind != "per_call")


def test_params_are_checked(f, compiled):
    f = gb.bridge(Doubled(), check_finite=True, outputs=_rows)
    with pytest.raises((NonFiniteParamsError, tf.errors.InvalidArgumentError), match=r"1 NaN and 0 infinite"):
        compiled(lambda p: f(p, X))(tf.constant([1.0, np.nan], tf.float64))


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
    first = gb.bridge(Doubled(), outputs=_rows)
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
        f = gb.bridge(Doubled(), outputs=_rows)
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
