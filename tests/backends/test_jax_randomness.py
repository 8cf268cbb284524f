"""Law 9 for JAX guests: noise from the bridge's own seed, statistics that move once per forward."""

from __future__ import annotations

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
from gradbridge.errors import OptionError  # noqa: E402

X = np.random.default_rng(0).normal(size=(8, 6)) + 3


class Noisy(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(6, 6, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=False, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x)))


class Dropping(eqx.Module):
    weight: jax.Array
    dropout: eqx.nn.Dropout

    def __call__(self, x, *, key=None):
        return self.dropout(x * self.weight, key=key)


def dropping_function(params, x, *, key):
    return x * params * jax.random.bernoulli(key, 0.5, x.shape) * 2


class LinenDropping(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = x * self.param("weight", linen.initializers.ones, (6,))
        return linen.Dropout(0.5, deterministic=False)(x)


def linen_model():
    module = LinenDropping()
    return module.bind(module.init({"params": jax.random.key(0), "dropout": jax.random.key(0)}, X))


MODELS = {
    "nnx": lambda **o: gb.bridge(Noisy(nnx.Rngs(0)), mode="train", **o),
    "equinox": lambda **o: gb.bridge(
        Dropping(jnp.ones(6), eqx.nn.Dropout(0.5)), mode="train", vmap=True, **o
    ),
    "linen": lambda **o: gb.bridge(linen_model(), mode="train", **o),
    "function": lambda **o: gb.bridge(
        dropping_function, params=np.ones(6), backend="jax", key="key", mode="train", **o
    ),
}


@pytest.fixture(params=MODELS)
def make(request):
    return MODELS[request.param]


def test_frozen_noise_is_the_same_in_every_call_and_different_for_another_seed(make):
    f, same, other = make(), make(seed=0), make(seed=1)
    first = f(f.params, X)
    assert (first == 0).any()
    assert np.array_equal(first, f(f.params, X))
    assert np.array_equal(first, same(f.params, X))
    assert not np.array_equal(first == 0, other(f.params, X) == 0)


def test_rows_and_columns_are_dropped_independently(make):
    f = make()
    dropped = f(f.params, X) == 0
    assert not (dropped == dropped[0]).all()


def test_noise_per_params_changes_with_the_params_and_per_call_with_the_call(make):
    f = make(noise="per_params")
    masks = [f(k * f.params, X) == 0 for k in (1.0, 2.0, 1.0)]
    assert np.array_equal(masks[0], masks[2])
    assert not np.array_equal(masks[0], masks[1])
    g = make(noise="per_call")
    assert not np.array_equal(g(g.params, X) == 0, g(g.params, X) == 0)


def test_a_gradient_belongs_to_the_mask_of_its_value(make):
    f = make(noise="per_call", dtype="float64")
    kept = []

    def loss(x):
        value = f(f.params, x)
        kept.append(value._value != 0)
        return anp.sum(value)

    for _ in range(2):
        gradient = autograd.grad(loss)(X)
        if f.adapter.label != "Noisy":  # BatchNorm mixes the rows
            assert np.array_equal(gradient != 0, kept[-1])


def test_the_noise_of_a_call_is_used_again_for_its_second_derivative():
    f = gb.bridge(
        lambda p, x, key: (x * p) ** 2 * jax.random.bernoulli(key, 0.5, x.shape),
        params=np.ones(6),
        backend="jax",
        key="key",
        mode="train",
        noise="per_call",
    )
    kept = []

    def noted(p):
        value = f(p, X[0])
        plain = value
        while hasattr(plain, "_value"):
            plain = plain._value
        kept.append(plain != 0)
        return value

    second = autograd.elementwise_grad(autograd.grad(lambda p: anp.sum(noted(p))))(np.ones(6))
    np.testing.assert_allclose(second, 2 * X[0] ** 2 * kept[-1], rtol=1e-12)


def test_the_users_module_keeps_its_statistics_and_its_random_stream():
    module = Noisy(nnx.Rngs(0))
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(module, nnx.BatchStat))]
    f = gb.bridge(module, mode="train")
    f(f.params, X)
    after = jax.tree.leaves(nnx.state(module, nnx.BatchStat))
    assert all(np.array_equal(a, b) for a, b in zip(before, after))
    assert int(module.dropout.rngs.count[...]) == 0


def test_statistics_move_once_per_forward_and_on_no_replay():
    module = nnx.BatchNorm(6, momentum=0.5, rngs=nnx.Rngs(0))
    f = gb.bridge(module, mode="train", dtype="float64")
    f(f.params, X)
    np.testing.assert_allclose(f.model(f.params).mean[...], 0.5 * X.mean(0), rtol=1e-12)
    with gb.trace() as t:
        autograd.hessian(lambda p: anp.sum(f(p, X) ** 3))(f.params)
    of_the_model = sum(step.name == "forward" and step.bridge == "BatchNorm" for step in t.steps)
    moved = X.mean(0) * (1 - 0.5 ** (1 + of_the_model))
    np.testing.assert_allclose(f.model(f.params).mean[...], moved, rtol=1e-12)


def test_in_eval_mode_statistics_stay_and_the_stored_ones_are_used():
    module = nnx.BatchNorm(6, use_running_average=True, rngs=nnx.Rngs(0))
    module.mean[...] = jnp.full(6, 3.0)
    f = gb.bridge(module, dtype="float64")
    np.testing.assert_allclose(f(f.params, X), (X - 3) / np.sqrt(1 + 1e-5), rtol=1e-6)
    f(f.params, X)
    assert np.array_equal(f.model(f.params).mean[...], np.full(6, 3.0))


def test_the_surrounding_random_flags_do_not_matter(make):
    f = make()
    expected = f(f.params, X)
    with jax.threefry_partitionable(not jax.config.jax_threefry_partitionable):
        assert np.array_equal(make()(f.params, X), expected)


def test_in_eval_mode_a_module_is_random_that_draws_there_not_one_that_could():
    class Net(nnx.Module):
        def __init__(self, always):
            rngs = nnx.Rngs(0)
            self.dense, self.dropout = nnx.Linear(4, 8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            self.always = always
            self.eval()

        def __call__(self, x):
            return self.dropout(self.dense(x), deterministic=False if self.always else None)

    x = np.random.default_rng(0).normal(size=(9, 4))
    for draws in (False, True):
        f = gb.bridge(Net(draws), dtype="float64", reuse=2)
        whole = f(f.params, x)
        assert f.adapter.stochastic is draws
        chunked = gb.bridge(Net(draws), dtype="float64", rows_per_chunk=4)
        if draws:
            with pytest.raises(OptionError, match="draws random numbers"):
                chunked(f.params, x)
        else:
            np.testing.assert_allclose(chunked(f.params, x), whole, rtol=1e-14)
