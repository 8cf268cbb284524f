"""Complex inputs and outputs: by autograd's convention in every guest, to every order, or refused."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, holomorphic_grad, jacobian, make_jvp, make_vjp
from autograd.differential_operators import make_jvp_reversemode
from hypothesis import given, settings
from hypothesis import strategies as st

import gradbridge as gb
from gradbridge.errors import CotangentMismatchError, InputError, NotDifferentiableError, ParamsDtypeError

RNG = np.random.default_rng(0)
W = {"w": RNG.normal(size=(3, 2))}
P, X = W["w"].ravel(), RNG.normal(size=(4, 3))
Z, A, B = RNG.normal(size=(3, 4, 2)) + 1j * RNG.normal(size=(3, 4, 2))


def plain(p, x, z):
    """Not analytic in z: |y|² and a conjugate."""
    y = anp.exp(1j * anp.dot(x, anp.reshape(p, (3, 2)))) * z * anp.conj(z[:, :1])
    return y, anp.sum(anp.abs(y) ** 2), anp.sin(z)


def of_autograd(p, x, z):
    return plain(anp.reshape(p["w"], (6,)), x, z)


def of_torch(p, x, z):
    import torch

    y = torch.exp(1j * (x @ p["w"])) * z * torch.conj(z[:, :1])
    return y, (y.abs() ** 2).sum(), torch.sin(z)


def of_jax(p, x, z):
    import jax.numpy as jnp

    y = jnp.exp(1j * (x @ p["w"])) * z * jnp.conj(z[:, :1])
    return y, (jnp.abs(y) ** 2).sum(), jnp.sin(z)


def of_tensorflow(p, x, z):
    import tensorflow as tf

    angle = x @ p["w"]
    y = tf.complex(tf.cos(angle), tf.sin(angle)) * z * tf.math.conj(z[:, :1])
    return y, tf.reduce_sum(tf.abs(y) ** 2), tf.sin(z)


WAVES = {"autograd": of_autograd, "torch": of_torch, "jax": of_jax, "tensorflow": of_tensorflow}


@pytest.fixture(params=list(WAVES), scope="module")
def backend(request):
    if request.param != "autograd":
        pytest.importorskip(request.param)
    return request.param


@pytest.fixture(scope="module")
def f(backend):
    return gb.bridge(WAVES[backend], params=W, backend=backend, dtype="float64")


def loss(f, a=A):
    def value(p, x, z):
        y, s, t = f(p, x, z)
        return (
            anp.sum(anp.real(a * y * t)) + anp.sum(anp.abs(y + t) ** 2) + anp.imag(anp.sum(y**3)) * anp.sin(s)
        )

    return value


def same(got, expected, tolerance=1e-12):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


def test_values_and_gradients_are_autograds_own(f):
    for got, expected in zip(f(P, X, Z), plain(P, X, Z)):
        same(got, expected)
    for got, expected in zip(grad(loss(f), (0, 1, 2))(P, X, Z), grad(loss(plain), (0, 1, 2))(P, X, Z)):
        same(got, expected)


def test_second_and_third_derivatives_are_autograds_own(f):
    def along(f, v):
        return lambda p, x, z: (
            anp.sum(anp.real(v * grad(loss(f), 2)(p, x, z)))
            + anp.sum(grad(loss(f), 0)(p, x, z))
            + anp.sum(grad(loss(f), 1)(p, x, z) * X)
        )

    second = [grad(along(g, B), (0, 1, 2))(P, X, Z) for g in (f, plain)]
    for got, expected in zip(*second):
        same(got, expected, 1e-10)

    def third(f):
        return grad(lambda z: anp.sum(anp.real(A * grad(along(f, B), 2)(P, X, z))))(Z)

    same(third(f), third(plain), 1e-8)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_jvps_move_complex_outputs_as_they_move(f, position):
    point, tangent = [P, X, Z], [P * P, X + 1, B][position]

    def of(f):
        return lambda a: f(*point[:position], a, *point[position + 1 :])[0]

    expected = make_jvp(of(plain))(point[position])(tangent)[1]
    same(make_jvp(of(f))(point[position])(tangent)[1], expected)
    same(make_jvp_reversemode(of(f))(point[position])(tangent), expected, 1e-10)
    same(f.jvp(*point, tangent=tangent, wrt=position)[0], expected)


def test_a_cotangent_pairs_without_a_conjugation(f):
    """⟨v, J t⟩ is Re Σ v (J t), and equals Re Σ (vᵀ J) t."""
    cotangent = (A, np.array(0.3), B)
    pulled = f.vjp(P, X, Z, cotangent=cotangent, wrt=(0, 1, 2))
    tangents = (P * P, X + 1, B * B)
    pushed = f.jvp(P, X, Z, tangent=tangents, wrt=(0, 1, 2))
    one = sum(np.sum(v * t).real for v, t in zip(cotangent, pushed))
    other = sum(np.sum(v * t).real for v, t in zip(pulled, tangents))
    np.testing.assert_allclose(one, other, rtol=1e-12)
    assert [g.dtype.kind for g in pulled] == ["f", "f", "c"]


def test_it_is_the_conjugate_of_what_torch_and_tensorflow_say_themselves():
    torch = pytest.importorskip("torch")
    z = torch.tensor(Z, requires_grad=True)
    (torch.sin(z).abs() ** 2 + (z**3).imag).sum().backward()
    f = gb.primitive(lambda z: torch.sin(z), backend="torch")
    ours = grad(lambda z: anp.sum(anp.abs(f(z)) ** 2) + anp.sum(anp.imag(z**3)))(Z)
    same(ours, z.grad.numpy().conj())


def test_it_is_what_jax_says_itself():
    jax = pytest.importorskip("jax")
    f = gb.primitive(lambda z: jax.numpy.sin(z), backend="jax")
    with jax.enable_x64(True):
        theirs = jax.grad(lambda z: (abs(jax.numpy.sin(z)) ** 2).sum() + (z**3).imag.sum())(Z)
    same(grad(lambda z: anp.sum(anp.abs(f(z)) ** 2) + anp.sum(anp.imag(z**3)))(Z), np.asarray(theirs))


def test_autograds_operators_for_complex_functions_work(backend):
    sines = {
        "autograd": anp.sin,
        "torch": lambda z: __import__("torch").sin(z),
        "jax": lambda z: __import__("jax").numpy.sin(z),
        "tensorflow": lambda z: __import__("tensorflow").sin(z),
    }
    f = gb.primitive(sines[backend], backend=backend)
    first = holomorphic_grad(lambda z: anp.sum(f(z)))
    same(first(Z), np.cos(Z))
    same(holomorphic_grad(lambda z: anp.sum(first(z)))(Z), -np.sin(Z))
    same(holomorphic_grad(f)(1.0 + 2.0j), np.cos(1.0 + 2.0j))
    same(make_vjp(f)(Z)[0](A), A * np.cos(Z))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 4), st.booleans())
def test_any_point_and_row_count(backend, seed, rows, in_single):
    rng = np.random.default_rng(seed)
    f = _shared(backend)
    x, z = rng.normal(size=(rows, 3)), rng.normal(size=(rows, 2)) + 1j * rng.normal(size=(rows, 2))
    a = rng.normal(size=(rows, 2)) + 1j
    p = rng.normal(size=6)
    if in_single:
        x, z = x.astype(np.float32), z.astype(np.complex64)
    wide = x.astype(np.float64), z.astype(np.complex128)
    got = [grad(loss(f, a), i)(p, x, z) for i in range(3)]
    for ours, theirs in zip(got, grad(loss(plain, a), (0, 1, 2))(p, *wide)):
        same(ours, theirs, 1e-6 if in_single else 1e-11)


_bridges = {}


def _shared(backend):
    if backend not in _bridges:
        _bridges[backend] = gb.bridge(WAVES[backend], params=W, backend=backend, dtype="float64")
    return _bridges[backend]


def test_dtypes_follow_the_host_whatever_the_guest_computes_in(backend):
    f = gb.bridge(WAVES[backend], params=W, backend=backend, dtype="float32")
    assert [y.dtype for y in f(P, X, Z)] == [np.complex128, np.float64, np.complex128]
    assert [y.dtype for y in f(P.astype(np.float32), X, Z)] == [np.complex64, np.float32, np.complex64]
    ours, theirs = (grad(lambda z, g=g: anp.sum(anp.abs(g(P, X, z)[0])))(Z) for g in (f, plain))
    assert ours.dtype == np.complex128
    same(ours, theirs, 1e-5)


def test_long_complex_inputs_go_in_chunks(backend):
    wave = WAVES[backend]
    chunked = gb.bridge(lambda *a: wave(*a)[0], params=W, backend=backend, dtype="float64", rows_per_chunk=3)

    def value(f):
        return lambda z: anp.sum(anp.abs(f(P, X, z)) ** 2 * anp.real(f(P, X, z)))

    same(grad(value(chunked))(Z), grad(value(lambda *a: plain(*a)[0]))(Z))


def test_complex_evaluations_are_remembered_byte_for_byte(backend):
    f = gb.bridge(WAVES[backend], params=W, backend=backend, dtype="float64", reuse=2)
    z = Z.copy()
    f(P, X, z), f(P, X, z)
    z[0, 0] = z[0, 0].conjugate()
    changed = f(P, X, z)[2]
    assert (f.memory.hits, f.memory.misses) == (1, 2)
    same(changed, np.sin(z))


def test_what_has_no_meaning_for_complex_numbers_is_refused_with_the_reason(f):
    with pytest.raises(NotDifferentiableError, match="not holomorphic has none: ask for f.jvp and f.vjp"):
        f.jacobian(P, X, Z)
    with pytest.raises(CotangentMismatchError, match="output 1 of .*, which is real, must be real"):
        f.vjp(P, X, Z, cotangent=(A, 1j, B))
    with pytest.raises(CotangentMismatchError, match="argument 1 of .* must be real"):
        f.jvp(P, X, Z, tangent=X * 1j, wrt=1)
    with pytest.raises(ParamsDtypeError, match="params are a real vector"):
        f(P + 0j, X, Z)
    assert f.capabilities["complex inputs and outputs"]


def test_the_jacobian_of_real_outputs_by_real_arguments_beside_complex_ones_is_right(backend):
    wave = WAVES[backend]
    f = gb.bridge(lambda *a: wave(*a)[1], params=W, backend=backend, dtype="float64")
    same(f.jacobian(P, X, Z), jacobian(lambda p: plain(p, X, Z)[1])(P), 1e-11)


def test_torch_parameters_that_are_frozen_may_be_complex():
    torch = pytest.importorskip("torch")

    class Layer(torch.nn.Module):
        def __init__(self, is_trained):
            super().__init__()
            self.phase = torch.nn.Parameter(torch.tensor([1j, 2.0]), requires_grad=is_trained)
            self.scale = torch.nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.scale * x * self.phase

    f = gb.bridge(Layer(False), dtype="float64")
    same(f(np.array([2.0, 3.0]), np.ones(2)), np.array([2j, 6.0]))
    assert f(f.params, np.ones(2)).dtype == np.complex128
    with pytest.raises(
        NotDifferentiableError, match="'phase' of Layer is complex, and params are a real vector"
    ):
        gb.bridge(Layer(True))


def test_written_rules_follow_the_same_convention():
    @gb.primitive
    def field(x, z):
        return np.exp(1j * x) * z * np.conj(z) * z

    field.defvjp(
        lambda ans, x, z: lambda v: np.real(1j * v * ans),
        lambda ans, x, z: lambda v: 2 * v * np.exp(1j * x) * abs(z) ** 2 + np.conj(v * np.exp(1j * x) * z**2),
    )
    pushed = gb.primitive(lambda x, z: np.exp(1j * x) * z * np.conj(z) * z)
    pushed.defjvp(
        lambda t, ans, x, z: 1j * ans * t,
        lambda t, ans, x, z: np.exp(1j * x) * (2 * abs(z) ** 2 * t + z**2 * np.conj(t)),
    )

    def own(x, z):
        return anp.exp(1j * x) * z * anp.conj(z) * z

    x, z = X[:, :2], Z

    def value(f):
        return lambda x, z: anp.sum(anp.real(A * f(x, z))) + anp.sum(anp.abs(f(x, z)) ** 2)

    for f in (field, pushed):
        for got, expected in zip(grad(value(f), (0, 1))(x, z), grad(value(own), (0, 1))(x, z)):
            same(got, expected)
        same(make_jvp(lambda z, f=f: f(x, z))(z)(B)[1], make_jvp(lambda z: own(x, z))(z)(B)[1])


def test_a_written_rule_that_gives_complex_numbers_for_a_real_argument_is_told_the_way():
    f = gb.primitive(lambda x: 1j * x)
    f.defvjp(lambda ans, x: lambda v: 1j * v)
    with pytest.raises(
        gb.errors.GradientShapeError, match=r"that of a real argument is the real part: np.real\(…\)"
    ):
        grad(lambda x: anp.imag(f(x)))(1.0)


def test_a_guest_that_takes_none_is_never_handed_any():
    f = gb.bridge(gb.build("linear", 2, 1, backend="numpy"))
    with pytest.raises(InputError, match="takes no complex numbers"):
        f(f.params, np.ones((3, 2)) * 1j)
