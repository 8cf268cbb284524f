"""Every derivative of networks drawn at random, against the framework's own in float64."""

from dataclasses import dataclass

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, hessian, hessian_vector_product, jacobian, make_jvp, make_vjp
from autograd.differential_operators import make_ggnvp, make_jvp_reversemode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gradbridge as gb

ACTIVATIONS = ("tanh", "sigmoid", "softplus", "sin", "square")


@dataclass(frozen=True)
class Layer:
    inputs: int
    outputs: int
    activation: str
    bias: bool
    residual: bool
    norm: bool


@dataclass(frozen=True)
class Drawn:
    """An architecture, its parameters and data: all that a test needs."""

    layers: tuple[Layer, ...]
    rows: int
    seed: int

    def params(self):
        rng = np.random.default_rng(self.seed)
        return [
            {"w": rng.uniform(-1, 1, (layer.inputs, layer.outputs)), "b": rng.uniform(-1, 1, layer.outputs)}
            if layer.bias
            else {"w": rng.uniform(-1, 1, (layer.inputs, layer.outputs))}
            for layer in self.layers
        ]

    def data(self):
        return np.random.default_rng(self.seed + 1).uniform(-1, 1, (self.rows, self.layers[0].inputs))

    def like_outputs(self, seed):
        return np.random.default_rng(self.seed + seed).normal(size=(self.rows, self.layers[-1].outputs))

    def function(self, words):
        """(params, x) ↦ outputs in a framework whose operations are `words`."""

        def network(params, x):
            for layer, p in zip(self.layers, params):
                z = x @ p["w"]
                if layer.bias:
                    z = z + p["b"]
                z = z * z if layer.activation == "square" else words[layer.activation](z)
                if layer.residual and layer.inputs == layer.outputs:
                    z = z + x
                if layer.norm:
                    centred = z - words["mean"](z)
                    z = centred / words["sqrt"](words["mean"](centred * centred) + 0.1)
                x = z
            return x

        return network


@st.composite
def architectures(draw):
    """One to three layers of one to four units."""
    widths = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    layers = tuple(
        Layer(
            a,
            b,
            draw(st.sampled_from(ACTIVATIONS)),
            draw(st.booleans()),
            draw(st.booleans()),
            draw(st.booleans()) and b > 1,
        )
        for a, b in zip(widths, widths[1:])
    )
    return Drawn(layers, draw(st.integers(1, 3)), draw(st.integers(0, 10_000)))


class TorchWords:
    """PyTorch: a module that holds the parameters, and its derivatives by `torch.autograd`."""

    def __init__(self):
        import torch
        from torch.nn.functional import softplus

        self.torch = torch
        self.words = {
            "tanh": torch.tanh,
            "sigmoid": torch.sigmoid,
            "softplus": softplus,
            "sin": torch.sin,
            "sqrt": torch.sqrt,
            "mean": lambda z: z.mean(-1, keepdim=True),
        }

    def bridge(self, drawn, gb):
        torch, network = self.torch, drawn.function(self.words)

        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.arrays = torch.nn.ModuleList(
                    torch.nn.ParameterDict({k: torch.nn.Parameter(torch.as_tensor(a)) for k, a in p.items()})
                    for p in drawn.params()
                )

            def forward(self, x):
                return network(self.arrays, x)

        return gb.bridge(Module(), dtype="float64")

    def derivatives(self, drawn, order, z, v, a, b):
        torch = self.torch
        z, v, a, b = (torch.as_tensor(array) for array in (z, v, a, b))
        z.requires_grad_()
        value = (v * drawn.function(self.words)(*cut(drawn, order, z))).sum()
        (gradient,) = torch.autograd.grad(value, z, create_graph=True)
        hessian = [torch.autograd.grad(g, z, retain_graph=True)[0] for g in gradient]
        (along,) = torch.autograd.grad(gradient @ b, z, create_graph=True)
        third = torch.autograd.grad(along @ a, z)[0] if along.requires_grad else torch.zeros_like(z)
        return gradient.detach().numpy(), torch.stack(hessian).numpy(), third.numpy()


class JaxWords:
    """JAX: a function of a parameter tree, and `jax.grad`, `jax.hessian`."""

    def __init__(self):
        import jax
        import jax.numpy as jnp

        self.jax = jax
        self.words = {
            "tanh": jnp.tanh,
            "sigmoid": jax.nn.sigmoid,
            "softplus": jax.nn.softplus,
            "sin": jnp.sin,
            "sqrt": jnp.sqrt,
            "mean": lambda z: z.mean(-1, keepdims=True),
        }

    def bridge(self, drawn, gb):
        return gb.bridge(drawn.function(self.words), params=drawn.params(), backend="jax", dtype="float64")

    def derivatives(self, drawn, order, z, v, a, b):
        jax = self.jax

        def value(z):
            return (v * drawn.function(self.words)(*cut(drawn, order, z))).sum()

        def all_of(z):
            gradient = jax.grad(value)
            along = jax.grad(lambda z: a @ jax.jvp(gradient, (z,), (b,))[1])
            return gradient(z), jax.hessian(value)(z), along(z)

        with jax.enable_x64(True):
            return tuple(map(np.asarray, jax.jit(all_of)(z)))


class TensorFlowWords:
    """TensorFlow: a function of a parameter tree, and nested tapes."""

    def __init__(self):
        import tensorflow as tf

        self.tf = tf
        self.words = {
            "tanh": tf.tanh,
            "sigmoid": tf.sigmoid,
            "softplus": tf.nn.softplus,
            "sin": tf.sin,
            "sqrt": tf.sqrt,
            "mean": lambda z: tf.reduce_mean(z, -1, keepdims=True),
        }

    def bridge(self, drawn, gb):
        return gb.bridge(
            drawn.function(self.words), params=drawn.params(), backend="tensorflow", dtype="float64"
        )

    def derivatives(self, drawn, order, z, v, a, b):
        tf = self.tf
        z, v, a, b = (tf.constant(array, tf.float64) for array in (z, v, a, b))
        with tf.GradientTape() as third, tf.GradientTape(persistent=True) as second:
            third.watch(z)
            second.watch(z)
            with tf.GradientTape() as first:
                first.watch(z)
                value = tf.reduce_sum(v * drawn.function(self.words)(*cut(drawn, order, z)))
            gradient = first.gradient(value, z)
            towards_b = tf.reduce_sum(gradient * b)
            along = tf.reduce_sum(a * second.gradient(towards_b, z, unconnected_gradients="zero"))
        hessian = second.jacobian(gradient, z, unconnected_gradients="zero", experimental_use_pfor=False)
        found = gradient, hessian, third.gradient(along, z, unconnected_gradients="zero")
        return tuple(array.numpy() for array in found)


class AutogradWords:
    """autograd: a function of `autograd.numpy`, and autograd's own derivatives of it."""

    def __init__(self):
        import autograd.numpy as anp

        self.words = {
            "tanh": anp.tanh,
            "sigmoid": lambda z: 1 / (1 + anp.exp(-z)),
            "softplus": lambda z: anp.log1p(anp.exp(z)),
            "sin": anp.sin,
            "sqrt": anp.sqrt,
            "mean": lambda z: anp.mean(z, -1, keepdims=True),
        }

    def bridge(self, drawn, gb):
        return gb.bridge(
            drawn.function(self.words), params=drawn.params(), backend="autograd", dtype="float64"
        )

    def derivatives(self, drawn, order, z, v, a, b):
        import autograd.numpy as anp
        from autograd import grad, hessian, hessian_vector_product

        def value(z):
            return anp.sum(v * drawn.function(self.words)(*cut(drawn, order, z)))

        third = grad(lambda z: anp.dot(a, hessian_vector_product(value)(z, b)))
        return grad(value)(z), hessian(value)(z), third(z)


WORDS = {"torch": TorchWords, "jax": JaxWords, "tensorflow": TensorFlowWords, "autograd": AutogradWords}


def cut(drawn, order, z):
    """One vector, params in the bridge's order and then x → (parameter tree, x), by slicing alone."""
    tree, start = [dict(p) for p in drawn.params()], 0
    for layer, name in order:
        shape = tree[layer][name].shape
        size = int(np.prod(shape))
        tree[layer][name] = (
            z[start : start + size].reshape(shape)
            if hasattr(z, "reshape")
            else reshape(z[start : start + size], shape)
        )
        start += size
    shape = (drawn.rows, drawn.layers[0].inputs)
    rest = z[start:]
    return tree, rest.reshape(shape) if hasattr(rest, "reshape") else reshape(rest, shape)


def reshape(tensor, shape):
    """For TensorFlow, whose tensors have no such method."""
    import tensorflow as tf

    return tf.reshape(tensor, shape)


def order_of(f):
    """[(layer, "w" or "b")] in the order of a bridge's flat vector, from its names."""
    found = []
    for name in f.layout.names:
        parts = name.replace(".", "/").split("/")
        found.append((int(next(part for part in parts if part.isdigit())), parts[-1]))
    return found


SETTINGS = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
EXAMPLES = {"torch": 25, "autograd": 25, "jax": 6, "tensorflow": 8}


@pytest.fixture(params=list(WORDS), scope="module")
def words(request):
    if request.param != "autograd":
        pytest.importorskip(request.param)
    return request.param, WORDS[request.param]()


def close(got, expected, tolerance):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    error = np.max(np.abs(got - expected), initial=0.0)
    assert error <= tolerance * max(1.0, np.max(np.abs(expected), initial=0.0)), error


def drawn_by(name):
    return lambda check: settings(max_examples=EXAMPLES[name], **SETTINGS)(given(architectures())(check))


def at(f, drawn):
    """(z ↦ outputs, z): params and input as one vector, so that derivatives are mixed."""
    x = drawn.data()
    size = f.layout.size
    return lambda z: f(z[:size], anp.reshape(z[size:], x.shape)), np.concatenate([f.params, x.ravel()])


def test_gradients_hessians_and_third_derivatives_are_the_frameworks_own(words):
    name, framework = words

    @drawn_by(name)
    def check(drawn):
        f = framework.bridge(drawn, gb)
        outputs, z = at(f, drawn)
        v = drawn.like_outputs(2)
        a, b = np.random.default_rng(drawn.seed + 3).normal(size=(2, len(z)))
        gradient, curvature, third = framework.derivatives(drawn, order_of(f), z, v, a, b)

        def value(z):
            return anp.sum(v * outputs(z))

        close(grad(value)(z), gradient, 1e-12)
        apart = grad(lambda p, x: anp.sum(v * f(p, x)), (0, 1))(f.params, drawn.data())
        close(np.concatenate([apart[0], apart[1].ravel()]), gradient, 1e-12)
        close(hessian(value)(z), curvature, 1e-10)
        close(hessian_vector_product(value)(z, b), curvature @ b, 1e-10)
        close(grad(lambda z: anp.dot(a, hessian_vector_product(value)(z, b)))(z), third, 1e-8)
        close(make_jvp(grad(value))(z)(b)[1], curvature @ b, 1e-10)

    check()


def test_tangents_and_cotangents_agree(words):
    name, framework = words

    @drawn_by(name)
    def check(drawn):
        f = framework.bridge(drawn, gb)
        outputs, z = at(f, drawn)
        v = drawn.like_outputs(4)
        t = np.random.default_rng(drawn.seed + 5).normal(size=len(z))
        pull, _ = make_vjp(outputs)(z)
        pulled = pull(v)
        pushed = make_jvp(outputs)(z)(t)[1]
        close(np.sum(v * pushed), np.sum(pulled * t), 1e-10)
        close(make_jvp_reversemode(outputs)(z)(t), pushed, 1e-10)
        x, size = drawn.data(), f.layout.size
        tangents = (t[:size], t[size:].reshape(x.shape))
        close(f.jvp(f.params, x, tangent=tangents, wrt=(0, 1)), pushed, 1e-10)
        by_params, by_x = f.vjp(f.params, x, cotangent=v, wrt=(0, 1))
        close(np.concatenate([by_params, by_x.ravel()]), pulled, 1e-10)
        J = jacobian(outputs)(z).reshape(-1, len(z))
        close(make_ggnvp(lambda q: anp.ravel(outputs(q)))(z)(t), J.T @ (J @ t), 1e-10)
        close(f.ggn(f.params, x, vector=tangents[0]), J[:, :size].T @ (J[:, :size] @ tangents[0]), 1e-10)

    check()


def test_every_strategy_gives_the_row_by_row_jacobian(words):
    name, framework = words

    @drawn_by(name)
    def check(drawn):
        f = framework.bridge(drawn, gb)
        x = drawn.data()
        truth = jacobian(f)(f.params, x), jacobian(f, 1)(f.params, x)
        able = f.capabilities
        for strategy in ("auto", "jvp", "loop", "vjp", "rows"):
            if strategy == "vjp" and not able["Jacobian, batched VJP"]:
                continue
            if strategy == "rows" and not (able["Jacobian, per-example"] and drawn.rows > 1):
                continue
            for one, other in zip(f.jacobian(f.params, x, wrt=(0, 1), strategy=strategy), truth):
                close(one, other, 1e-10)

    check()
