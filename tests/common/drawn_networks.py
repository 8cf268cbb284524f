"""Networks drawn at random, in every framework, and the framework's own derivatives of them."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

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
