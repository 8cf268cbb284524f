"""Arguments of every kind: trees of params, containers, mixed dtypes, keywords, and those held constant."""

import dataclasses
import warnings

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, hessian_vector_product, make_jvp

import gradbridge as gb
from gradbridge.errors import LayoutError, NotDifferentiableError, OptionError

RNG = np.random.default_rng(0)
X, MASK = RNG.normal(size=(4, 3)), np.array([[1.0, 0.0]] * 4)
W = {"w": RNG.normal(size=(3, 2)), "b": RNG.normal(size=2)}


def plain(p, x, mask, scale=1.0):
    return anp.tanh(anp.dot(x, p["w"]) + p["b"]) * mask * scale


def in_torch():
    torch = pytest.importorskip("torch")
    return "torch", lambda p, x, mask, scale=1.0: torch.tanh(x @ p["w"] + p["b"]) * mask * scale


def in_jax():
    jnp = pytest.importorskip("jax.numpy")
    return "jax", lambda p, x, mask, scale=1.0: jnp.tanh(x @ p["w"] + p["b"]) * mask * scale


def in_tensorflow():
    tf = pytest.importorskip("tensorflow")
    return "tensorflow", lambda p, x, mask, scale=1.0: tf.tanh(x @ p["w"] + p["b"]) * mask * scale


def in_autograd():
    return "autograd", lambda p, x, mask, scale=1.0: plain(p, x, mask, scale)


@pytest.fixture(params=[in_torch, in_jax, in_tensorflow, in_autograd], ids=lambda f: f.__name__[3:])
def guest(request):
    return request.param()


def bridged(guest, **options):
    backend, function = guest
    return gb.bridge(function, params=W, backend=backend, dtype="float64", **options)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


# -- params as a tree ---------------------------------------------------------------------------


def test_params_may_come_as_the_tree_that_they_are(guest):
    f = bridged(guest)
    close(f(W, X, MASK), f(f.params, X, MASK))
    found = grad(lambda p: anp.sum(f(p, X, MASK) ** 2))(W)
    truth = grad(lambda p: anp.sum(plain(p, X, MASK) ** 2))(W)
    assert found.keys() == truth.keys()
    for name, gradient in truth.items():
        close(found[name], gradient)


def test_trees_of_params_have_second_derivatives(guest):
    f = bridged(guest)
    v = np.arange(6.0).reshape(3, 2)

    def of(model):
        first = grad(lambda p: anp.sum(model(p) ** 2))
        return grad(lambda p: anp.sum(v * first(p)["w"]))(W)

    found, truth = of(lambda p: f(p, X, MASK)), of(lambda p: plain(p, X, MASK))
    for name, product in truth.items():
        close(found[name], product)


def test_some_of_the_tree_may_be_constant(guest):
    f = bridged(guest)
    found = grad(lambda b: anp.sum(f({"w": W["w"], "b": b}, X, MASK) ** 2))(W["b"])
    close(found, grad(lambda b: anp.sum(plain({"w": W["w"], "b": b}, X, MASK) ** 2))(W["b"]))


def test_a_jacobian_takes_the_tree_and_counts_the_flat_vector(guest):
    f = bridged(guest)
    close(f.jacobian(W, X, MASK), f.jacobian(f.params, X, MASK))


def test_trees_that_do_not_fit_are_refused(guest):
    f = bridged(guest)
    with pytest.raises(LayoutError, match="b"):
        f({"w": W["w"]}, X, MASK)
    with pytest.raises(LayoutError, match=r"expected shape \(3, 2\) for parameter 'w', got \(3, 3\)"):
        grad(lambda p: anp.sum(f(p, X, MASK)))({"w": np.ones((3, 3)), "b": W["b"]})


def test_a_modules_params_may_come_by_their_names():
    torch = pytest.importorskip("torch")
    f = gb.bridge(torch.nn.Linear(3, 2), dtype="float64")
    named = f.layout.unravel(f.params)
    close(f(named, X), f(f.params, X))
    assert set(grad(lambda p: anp.sum(f(p, X)))(named)) == {"weight", "bias"}


@dataclasses.dataclass
class Affine:
    w: object
    b: object


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow", "autograd", "numpy"])
def test_a_dataclass_of_params_is_a_tree(backend):
    if backend in ("torch", "jax", "tensorflow"):
        pytest.importorskip(backend)
    f = gb.bridge(lambda p, x: x @ p.w + p.b, params=Affine(W["w"], W["b"]), backend=backend, dtype="float64")
    assert f.layout.names == ("w", "b")
    close(f(f.params, X), X @ W["w"] + W["b"])
    close(f(Affine(W["w"], W["b"] + 1), X), X @ W["w"] + W["b"] + 1)
    close(f.layout.ravel(Affine(W["w"], W["b"])), f.params)


# -- several arguments at once ------------------------------------------------------------------


def test_active_arguments_may_have_different_dtypes(guest):
    f = bridged(guest)
    x32 = X.astype(np.float32)

    def loss(p, x, scale):
        return anp.sum(f(p, x, MASK, scale=scale) ** 2)

    def truth(p, x, scale):
        return anp.sum(plain(f.layout.unravel(p), x, MASK, scale) ** 2)

    found = grad(loss, (0, 1, 2))(f.params, x32, 2.0)
    expected = grad(truth, (0, 1, 2))(f.params, x32.astype(float), 2.0)
    close(found[0], expected[0])
    # Of several arguments together autograd hands each gradient out in its argument's dtype.
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    close(found[2], expected[2])
    close(grad(loss, 1)(f.params, x32, 2.0), expected[1])


def test_containers_and_keywords_together(guest):
    f = bridged(guest)
    point = {"p": f.params, "rest": (X, [2.0])}

    def loss(t):
        x, (scale,) = t["rest"]
        return anp.sum(f(t["p"], x, mask=MASK, scale=scale) ** 2)

    def truth(t):
        x, (scale,) = t["rest"]
        return anp.sum(plain(f.layout.unravel(t["p"]), x, MASK, scale) ** 2)

    found, expected = grad(loss)(point), grad(truth)(point)
    close(found["p"], expected["p"])
    close(found["rest"][0], expected["rest"][0])
    close(found["rest"][1][0], expected["rest"][1][0])


# -- arguments held constant --------------------------------------------------------------------


@pytest.mark.parametrize("nondiff", [2, "mask", (2,), ["mask"]])
def test_a_held_argument_gets_exact_zeros_and_the_others_their_gradients(guest, nondiff):
    f = bridged(guest, nondiff=nondiff)
    point = {"x": X, "m": MASK}
    with gb.trace() as trace:
        found = grad(lambda t: anp.sum(f(f.params, t["x"], t["m"]) ** 2))(point)
    assert not np.any(found["m"])
    close(found["x"], grad(lambda x: anp.sum(plain(W, x, MASK) ** 2))(X))
    assert trace.counts["forward"] == trace.counts["backward"] == 1


def test_a_held_argument_may_come_by_keyword(guest):
    f = bridged(guest, nondiff="scale")
    assert grad(lambda s: anp.sum(s * f(f.params, X, MASK, scale=s)))(2.0) == pytest.approx(
        np.sum(f(f.params, X, MASK, scale=2.0)), rel=1e-12
    )


def test_an_integer_leaf_of_a_differentiated_container_may_be_held():
    torch = pytest.importorskip("torch")
    f = gb.bridge(torch.nn.Embedding(5, 2), dtype="float64", nondiff=1)
    found = grad(lambda t: anp.sum(f(t["p"], t["ids"]) ** 2))(
        {"p": f.params, "ids": np.array([1.0, 3.0]).astype(int)}
    )
    assert np.any(found["p"])


def test_held_arguments_in_second_order_and_forward_mode(guest):
    f = bridged(guest, nondiff="mask")
    v = RNG.normal(size=X.shape)

    def loss(x):
        return anp.sum(f(f.params, x, x[:, :2]) ** 2)

    def truth(x):
        return anp.sum(plain(W, x, X[:, :2]) ** 2)

    close(hessian_vector_product(loss)(X, v), hessian_vector_product(truth)(X, v))
    close(make_jvp(loss)(X)(v)[1], make_jvp(truth)(X)(v)[1])


def test_asking_for_the_jacobian_of_a_held_argument_raises(guest):
    f = bridged(guest, nondiff="mask")
    f.jacobian(f.params, X, MASK, wrt=1)
    with pytest.raises(NotDifferentiableError, match="nondiff="):
        f.jacobian(f.params, X, MASK, wrt=2)
    with pytest.raises(NotDifferentiableError, match="nondiff="):
        f.jvp(f.params, X, MASK, tangent=(X, MASK), wrt=(1, 2))
    assert "mask" in str(f.capabilities)


@pytest.mark.parametrize(
    ("nondiff", "word"),
    [
        ("msk", "did you mean 'mask'"),
        (0, "0 is the params"),
        (7, "which takes x, mask, scale"),
        (1.5, "positions and names"),
        (True, "positions and names"),
    ],
)
def test_declarations_that_cannot_be_are_refused(guest, nondiff, word):
    with pytest.raises(OptionError, match=word):
        bridged(guest, nondiff=nondiff)


@pytest.mark.parametrize("nondiff", [1, "y"])
def test_a_primitive_counts_its_own_arguments(nondiff):
    pytest.importorskip("torch")
    f = gb.primitive(backend="torch", nondiff=nondiff)(lambda x, y: (x * y).sum())
    close(grad(f)(X, X + 1), X + 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not np.any(grad(f, 1)(X, X + 1))
    assert "seems independent of input" in str(caught[0].message)


def test_modules_name_their_inputs():
    torch = pytest.importorskip("torch")

    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.line = torch.nn.Linear(3, 2)

        def forward(self, x, mask):
            return self.line(x) * mask

    f = gb.bridge(Masked(), dtype="float64", nondiff="mask")
    found = grad(lambda t: anp.sum(f(f.params, t[0], t[1])))((X, MASK))
    assert np.any(found[0])
    assert not np.any(found[1])
    with pytest.raises(OptionError, match="did you mean 'mask'"):
        gb.bridge(Masked(), nondiff="maks")
