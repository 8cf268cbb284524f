"""Typed keys of jax.random as inputs: like integers, they are data without a gradient."""

from __future__ import annotations

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import OutputError  # noqa: E402
from gradbridge_jax.isolation import isolated  # noqa: E402

P, X = np.array([0.3, 0.7, -1.0]), np.array([[1.0, -2.0, 0.5], [0.2, 0.1, 3.0]])
KEY = jax.random.key(3)
KEYS = jax.random.split(KEY, 2)


def normal(key, shape=(3,)):
    with isolated(True):
        return np.asarray(jax.random.normal(key, shape, jnp.float64))


def noisy(p, x, key):
    return jnp.sum(p * x * jax.random.normal(key, p.shape, x.dtype), axis=-1)


@pytest.mark.parametrize("options", [{}, {"reuse": 2}, {"rows_per_chunk": 1}], ids=str)
def test_a_key_draws_its_own_numbers_and_gradients_are_those_at_them(options):
    f = gb.bridge(noisy, params=P, backend="jax", **options)
    for key in (KEY, jax.random.key(4), jax.random.key(4, impl="rbg")):
        noise = normal(key)
        np.testing.assert_allclose(f(P, X, key), X @ (P * noise), rtol=1e-12)
        by_params, by_x = (autograd.grad(lambda p, x, k: anp.sum(f(p, x, k)), i)(P, X, key) for i in (0, 1))
        np.testing.assert_allclose(by_params, X.sum(0) * noise, rtol=1e-12)
        np.testing.assert_allclose(by_x, np.tile(P * noise, (2, 1)), rtol=1e-12)
    np.testing.assert_allclose(f.jvp(P, X, KEY, tangent=P), X @ (P * normal(KEY)), rtol=1e-12)
    np.testing.assert_allclose(f(P, X, key=KEY), f(P, X, KEY), rtol=0)


@pytest.mark.parametrize("options", [{}, {"rows_per_chunk": 1}], ids=str)
def test_keys_in_a_tree_and_a_key_for_each_row_are_data_too(options):
    def rows(p, batch):
        return (batch["x"] @ p) * jax.vmap(lambda k: jax.random.normal(k, (), jnp.float64))(batch["keys"])

    f = gb.bridge(rows, params=P, backend="jax", **options)
    noise, batch = np.stack([normal(k, ()) for k in KEYS]), {"keys": KEYS, "x": X}
    np.testing.assert_allclose(f(P, batch), X @ P * noise, rtol=1e-12)
    np.testing.assert_allclose(f.row_gradients(P, batch), X * noise[:, None], rtol=1e-12)
    np.testing.assert_allclose(f.jacobian(P, batch), X * noise[:, None], rtol=1e-12)


def test_second_derivatives_draw_the_same_numbers():
    f = gb.primitive(lambda p, key: jnp.sum(p * jax.random.normal(key, p.shape, p.dtype)) ** 2, backend="jax")
    noise = normal(KEY)
    hessian = autograd.jacobian(autograd.grad(f))(P, KEY)
    np.testing.assert_allclose(hessian, 2 * np.outer(noise, noise), rtol=1e-12)


def test_a_key_that_is_returned_is_refused_with_what_to_return():
    f = gb.bridge(lambda p, key: (p, jax.random.split(key)), params=P, backend="jax")
    with pytest.raises(OutputError, match=r"output 1 .* key<fry>; return .* jax.random.key_data\(key\)"):
        f(P, KEY)
