"""Dense networks and scikit-learn estimators in NumPy: second order and forward mode by hand."""

import warnings

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian, hessian_vector_product, jacobian, make_hvp, make_jvp

import gradbridge as gb
from gradbridge.errors import HigherOrderError

RNG = onp.random.default_rng(0)
X = RNG.normal(size=(5, 3))
NETWORKS = {
    "line": {"name": "linear", "features": 3},
    "logistic": {"name": "linear", "features": 3, "activation": "sigmoid"},
    "tanh": {"name": "mlp", "sizes": [3, 4, 2]},
    "sigmoid": {"name": "mlp", "sizes": [3, 4, 1], "activation": "sigmoid"},
    "softmax": {"name": "mlp", "sizes": [3, 4, 3], "output": "softmax"},
    "relu": {"name": "mlp", "sizes": [3, 5, 2], "activation": "relu"},
}


def as_program(architecture):
    """The same layers in autograd's NumPy, which differentiates them itself."""

    def program(params, x):
        arrays = architecture.layout.unravel(params)
        for layer in architecture.layers:
            z = np.dot(x, arrays[f"{layer.name}.weight"]) + arrays[f"{layer.name}.bias"]
            if layer.activation == "tanh":
                x = np.tanh(z)
            elif layer.activation == "sigmoid":
                x = 1 / (1 + np.exp(-z))
            elif layer.activation == "relu":
                x = np.where(z > 0, z, 0.0)
            elif layer.activation == "softmax":
                x = np.exp(z) / np.sum(np.exp(z), -1, keepdims=True)
            else:
                x = z
        return x[..., 0] if architecture.squeeze else x

    return program


@pytest.fixture(params=NETWORKS)
def pair(request):
    sizes = dict(NETWORKS[request.param])
    network = gb.build(sizes.pop("name"), backend="numpy", **sizes)
    return gb.bridge(network), as_program(network.architecture)


def losses(pair):
    return [lambda p, x, f=f: np.sum(np.sin(2 * f(p, x)) + f(p, x) ** 3) for f in pair]


def test_hessians_by_params_and_inputs_are_autograds_own(pair):
    f, _ = pair
    p = RNG.normal(size=f.layout.size)
    mine, its = losses(pair)
    onp.testing.assert_allclose(hessian(mine)(p, X), hessian(its)(p, X), rtol=1e-10, atol=1e-11)
    onp.testing.assert_allclose(hessian(mine, 1)(p, X[:2]), hessian(its, 1)(p, X[:2]), rtol=1e-10, atol=1e-11)
    mixed = [jacobian(grad(loss, 1), 0)(p, X[:2]) for loss in (mine, its)]
    onp.testing.assert_allclose(*mixed, rtol=1e-10, atol=1e-11)


def test_products_with_the_hessian_by_every_mode(pair):
    f, _ = pair
    p, u = RNG.normal(size=(2, f.layout.size))
    mine, its = losses(pair)
    expected = hessian_vector_product(its)(p, X, u)
    for product in (
        hessian_vector_product(mine)(p, X, u),
        make_hvp(lambda p: mine(p, X))(p)[0](u),
        make_jvp(grad(lambda p: mine(p, X)))(p)(u)[1],
        grad(lambda p: make_jvp(lambda p: mine(p, X))(p)(u)[1])(p),
    ):
        onp.testing.assert_allclose(product, expected, rtol=1e-10, atol=1e-11)
    twice = make_jvp(lambda p: make_jvp(lambda p: mine(p, X))(p)(u)[1])(p)(u)[1]
    onp.testing.assert_allclose(twice, u @ expected, rtol=1e-10)


def test_forward_mode_in_one_forward(pair):
    f, program = pair
    p, u = RNG.normal(size=(2, f.layout.size))
    w = RNG.normal(size=X.shape)
    onp.testing.assert_allclose(
        make_jvp(f)(p, X)(u)[1], make_jvp(program)(p, X)(u)[1], rtol=1e-11, atol=1e-13
    )
    onp.testing.assert_allclose(
        make_jvp(f, 1)(p, X)(w)[1], make_jvp(program, 1)(p, X)(w)[1], rtol=1e-11, atol=1e-13
    )
    both = f.jvp(p, X, tangent=(u, w), wrt=(0, 1))
    onp.testing.assert_allclose(both, f.jvp(p, X, tangent=u) + f.jvp(p, X, tangent=w, wrt=1), rtol=1e-11)


def test_a_third_derivative_is_refused_with_its_reason():
    f = gb.bridge(gb.build("mlp", sizes=[1, 2, 1], backend="numpy"))
    loss = lambda x: np.sum(f(f.params, x))
    with pytest.raises(HigherOrderError, match="third derivative of numpy mlp .* by hand up to the second"):
        hessian(grad(loss))(onp.ones((1, 1)))


def test_float32_second_order_is_float64s_to_rounding():
    network = gb.build("mlp", sizes=[3, 4, 2], backend="numpy")
    u = RNG.normal(size=gb.bridge(network).layout.size)
    one, other = (
        hessian_vector_product(lambda p, f=f: np.sum(f(p, X) ** 2))(f.params, u)
        for f in (gb.bridge(network, dtype="float32"), gb.bridge(network))
    )
    onp.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_hessian_of_a_logistic_regression_is_the_textbooks():
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression

    y = X[:, 0] + 0.3 * RNG.normal(size=5) > 0
    f = gb.bridge(LogisticRegression().fit(X, y))
    loss = lambda p: -np.sum(np.where(y, np.log(f(p, X)), np.log(1 - f(p, X))))
    design, q = onp.column_stack([onp.ones(5), X]), f(f.params, X)
    expected = design.T @ ((q * (1 - q))[:, None] * design)
    onp.testing.assert_allclose(hessian(loss)(f.params), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["three classes", "regressor", "classifier"])
def test_hessians_of_estimators_are_differences_of_their_exact_gradient(kind):
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    x = RNG.normal(size=(30, 3))
    classes = onp.arange(30) % 3
    sizes = {"hidden_layer_sizes": (4,), "max_iter": 5, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator = {
            "three classes": LogisticRegression().fit(x, classes),
            "regressor": MLPRegressor(activation="tanh", **sizes).fit(x, x[:, 0]),
            "classifier": MLPClassifier(activation="logistic", **sizes).fit(x, classes),
        }[kind]
    f = gb.bridge(estimator)
    gradient = grad(lambda p, x: np.sum(np.sin(3 * f(p, x))), (0, 1))
    p = f.params
    u, w, h = RNG.normal(size=p.shape), RNG.normal(size=x.shape), 1e-6
    pairs = zip(gradient(p + h * u, x + h * w), gradient(p - h * u, x - h * w))
    expected = [(plus - minus) / (2 * h) for plus, minus in pairs]

    def product(p, x):
        of_p, of_x = gradient(p, x)
        return np.sum(of_p * u) + np.sum(of_x * w)

    for found, right in zip(grad(product, (0, 1))(p, x), expected):
        onp.testing.assert_allclose(found, right, rtol=1e-6, atol=1e-7)
