"""How TensorFlow programs call bridges: whose a call is, and what passes."""

import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb
from gradbridge.errors import (
    HostError,
    InputError,
    NonFiniteParamsError,
    NotDifferentiableError,
)

tf = pytest.importorskip("tensorflow")

from tensorflow_programs import WAYS, gradient, like_input, pushed, rows  # noqa: E402
from third_party import ByHand  # noqa: E402

X = tf.constant(np.linspace(-1.0, 1.0, 6).reshape(3, 2))
Z = tf.complex(X, 0.5 * X + 0.1)


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


def test_an_adapter_of_a_third_party(compiled):
    f = gb.bridge(ByHand(2), outputs=rows)
    np.testing.assert_allclose(compiled(gradient(f))(tf.ones(2, tf.float64), X), np.sum(X, 0), rtol=1e-12)
    with pytest.raises(InputError, match="takes no complex numbers"):
        compiled(f)(tf.ones(2, tf.float64), Z)
    with pytest.raises(HostError, match=r"by hand was called in a tf\.function.* say outputs="):
        tf.function(gb.bridge(ByHand(2)))(tf.ones(2, tf.float64), X)


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
    f = gb.bridge(ByHand(2), check_finite=True, outputs=rows)
    with pytest.raises((NonFiniteParamsError, tf.errors.InvalidArgumentError), match=r"1 NaN and 0 infinite"):
        compiled(lambda p: f(p, X))(tf.constant([1.0, np.nan], tf.float64))
