"""Modules that fix a dtype compute in the host's, wherever the dtype stands; the user's own object keeps its."""

from __future__ import annotations

import dataclasses
import functools
import types

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")
linen = pytest.importorskip("flax.linen")
eqx = pytest.importorskip("equinox")

import jax.numpy as jnp  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import GradbridgeWarning  # noqa: E402
from gradbridge_jax.dtypes import InDtype  # noqa: E402

RNG = np.random.default_rng(0)
X, SERIES = RNG.normal(size=(4, 3)), RNG.normal(size=(2, 5, 3))


@pytest.mark.parametrize("options", [{}, {"dtype": "float64"}], ids=str)
def test_a_recurrent_layer_made_in_float32_computes_in_double_with_its_carry(options):
    layer = nnx.RNN(nnx.SimpleCell(3, 2, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    cell = layer.cell
    w, b, u = (
        np.asarray(v[...], float) for v in (cell.dense_i.kernel, cell.dense_i.bias, cell.dense_h.kernel)
    )
    h = np.zeros((2, 2))
    for t in range(5):
        h = np.tanh(SERIES[:, t] @ w + b + h @ u)
    f = gb.bridge(layer, **options)
    np.testing.assert_allclose(f(f.params, SERIES)[:, -1], h, rtol=1e-13)
    assert cell.dtype == cell.param_dtype == jnp.float32


@dataclasses.dataclass
class Config:
    dtype: object = jnp.float32
    width: int = 3


def cast_to(dtype):
    return lambda x: x.astype(dtype)


class Configured(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 2, dtype=jnp.bfloat16, param_dtype=jnp.float32, rngs=rngs)
        self.config, self.compute, self.table = Config(), "bfloat16", {"out": [np.dtype("float32")]}
        self.act = functools.partial(lambda x, dtype: jnp.tanh(x.astype(dtype)), dtype=jnp.float16)
        self.cast = cast_to(jnp.float16)

    def __call__(self, x):
        x = self.act(self.linear(x).astype(self.config.dtype).astype(self.compute))
        return self.cast(x).astype(self.table["out"][0])


class Rows(eqx.Module):
    linear: eqx.nn.Linear
    dtype: object = eqx.field(static=True)
    config: object = eqx.field(static=True)

    def __call__(self, x):
        return jnp.tanh(self.linear(x).astype(self.dtype)).astype(self.config.dtype)


class Dense(linen.Module):
    inner: linen.Module
    dtype: object = jnp.float16

    @linen.compact
    def __call__(self, x):
        return jnp.tanh(self.inner(x).astype(self.dtype))


def configured():
    module = Configured(nnx.Rngs(0))
    return module, {}, (module.linear.kernel[...], module.linear.bias[...])


def rows():
    linear = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    module = Rows(linear, jnp.float16, types.SimpleNamespace(dtype="float32"))
    return module, {"vmap": True}, (linear.weight.T, linear.bias)


def dense():
    module = Dense(linen.Dense(2, dtype=jnp.bfloat16))
    variables = module.init(jax.random.key(0), X)
    inner = variables["params"]["inner"]
    return module, {"params": variables}, (inner["kernel"], inner["bias"])


@pytest.mark.parametrize("make", [configured, rows, dense], ids=lambda make: make.__name__)
def test_a_dtype_is_followed_wherever_a_module_names_it(make):
    module, options, weights = make()
    kernel, bias = (np.asarray(w, float) for w in weights)
    f = gb.bridge(module, **options)
    np.testing.assert_allclose(f(f.params, X), np.tanh(X @ kernel + bias), rtol=1e-13)
    slope = 1 - np.tanh(X @ kernel + bias) ** 2
    gradient = autograd.grad(lambda x: anp.sum(f(f.params, x)))(X)
    np.testing.assert_allclose(gradient, slope @ kernel.T, rtol=1e-12)
    own = gb.bridge(
        module, dtype="model", **options
    )  # the user's object, and whoever asks for it, keep its dtype
    assert 1e-6 < np.abs(own(own.params, X) - np.tanh(X @ kernel + bias)).max() < 0.1


def test_a_module_that_is_the_params_of_a_function_follows_too():
    module, _, (kernel, bias) = rows()
    f = gb.bridge(lambda m, x: jax.vmap(m)(x), params=module, backend="jax")
    expected = np.tanh(X @ np.asarray(kernel, float) + np.asarray(bias, float))
    np.testing.assert_allclose(f(f.params, X), expected, rtol=1e-13)


def test_what_fixes_float32_within_its_code_says_what_precision_it_has():
    class Hard(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.linear(x).astype(jnp.float32).astype(x.dtype)

    f = gb.bridge(Hard(nnx.Rngs(0)))
    with pytest.warns(GradbridgeWarning, match="asked to compute in float64"):
        autograd.grad(lambda x: anp.sum(f(f.params, x) ** 2))(X)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (jnp.float32, jnp.float64),
        (np.float16, np.float64),
        (np.dtype("float32"), np.dtype("float64")),
        (jnp.bfloat16, jnp.float64),
        ("bfloat16", "float64"),
        (jnp.complex64, jnp.complex128),
        ([{"dtype": "float32"}], [{"dtype": "float64"}]),
    ],
)
def test_a_dtype_becomes_another_one_of_its_kind(given, expected):
    assert InDtype(np.dtype("float64"))(given) == expected


@pytest.mark.parametrize(
    "value", [jnp.int32, "floats", 3.0, float, jnp.tanh, (1, "a"), Config(dtype=jnp.float64)]
)
def test_what_names_no_narrower_dtype_stays_the_same_object(value):
    assert InDtype(np.dtype("float64"))(value) is value
