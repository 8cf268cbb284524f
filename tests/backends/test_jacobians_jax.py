"""Jacobians through JAX guests, by every strategy, against autograd's row by row and JAX's own."""

import numpy as np
import pytest
from autograd import jacobian

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import OptionError  # noqa: E402

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(24, 4))


def close(found, truth, rtol=1e-10):
    assert found.shape == truth.shape
    np.testing.assert_allclose(found, truth, rtol=rtol, atol=rtol * np.abs(truth).max(initial=1e-300))


def how(t):
    return {step.bridge.partition(", ")[2] for step in t.steps} - {"", "JVP checked"}


def mlp(outputs=1, **options):
    return gb.bridge(gb.build("mlp", sizes=[4, 6, outputs], backend="jax", seed=0), **options)


def of(function, size=4, **options):
    return gb.bridge(function, params=np.linspace(0.5, 1, size), backend="jax", **options)


@pytest.mark.parametrize("strategy", ["auto", "rows", "vjp", "jvp", "loop"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_every_strategy_gives_the_row_by_row_truth(strategy, outputs):
    f = mlp(outputs, dtype="float64")
    by_params, by_input = f.jacobian(f.params, X, wrt=(0, 1), strategy=strategy)
    close(by_params, jacobian(f)(f.params, X))
    close(by_input, jacobian(f, 1)(f.params, X))


def test_it_is_jaxs_own():
    def waves(p, x):
        return jnp.sin(x @ p)

    f = of(waves, dtype="float64")
    with jax.enable_x64(True):
        own = jax.jacrev(waves)(jnp.asarray(f.params), jnp.asarray(X))
    close(f.jacobian(f.params, X), np.asarray(own))


def test_independent_rows_are_found_and_computed_apart():
    f = mlp(dtype="float64")
    with gb.trace() as t:
        f.jacobian(f.params, X)
    assert how(t) == {"per-example"}
    assert t.counts["forward"] == 1
    close(f.row_gradients(f.params, X), jacobian(f)(f.params, X))


def test_parameters_that_are_not_flat_in_the_computation_work():
    f = gb.bridge(gb.build("mlp", sizes=[4, 2800, 2], backend="jax", seed=0), dtype="float64")
    assert f.layout.size > 16384
    for strategy in ("rows", "vjp"):
        close(f.jacobian(f.params, X[:9], strategy=strategy), f.jacobian(f.params, X[:9], strategy="loop"))


def test_chunks_of_rows_and_of_cotangents_change_nothing():
    f = mlp(3, dtype="float64")
    truth = jacobian(f)(f.params, X)
    for strategy in ("rows", "vjp", "jvp"):
        close(f.jacobian(f.params, X, strategy=strategy, max_chunk=10_000), truth)


@pytest.mark.parametrize("weight", [1.0, 1e-9])
def test_attention_over_the_rows_is_not_computed_apart(weight):
    def attention(p, x):
        h = x * p
        return h + weight * jax.nn.softmax(h @ h.T) @ h

    f = of(attention)
    J = f.jacobian(f.params, X, wrt=(0, 1))
    close(J[0], jacobian(f)(f.params, X))
    close(J[1], jacobian(f, 1)(f.params, X))


def test_softmax_over_the_rows_is_not_computed_apart():
    f = of(lambda p, x: jax.nn.softmax(x * p, axis=0))
    with gb.trace() as t:
        J = f.jacobian(f.params, X)
    assert how(t) == {"batched JVP"}  # one forward for each of few params
    close(J, jacobian(f)(f.params, X))
    with pytest.raises(OptionError, match="not independent of each other"):
        f.jacobian(f.params, X, strategy="rows")


def test_what_looks_independent_row_by_row_and_is_not_is_noticed():
    def sneaky(p, x):
        m = x.mean(0)
        return x @ p + (m - jax.lax.stop_gradient(m)) @ p

    f = of(sneaky)
    close(f.jacobian(f.params, X, wrt=1), jacobian(f, 1)(f.params, X))


def test_integer_inputs_have_rows_too():
    f = of(lambda p, ids: jnp.sin(p[ids]), size=7)
    ids = DRAW.integers(0, 7, size=20)
    J = f.jacobian(f.params, ids)
    close(J, jacobian(f)(f.params, ids))
    close(f.jacobian(f.params, ids, strategy="rows"), J)


def test_an_input_that_all_rows_share_and_keywords_are_arguments_too():
    def scaled(p, x, scale, power=1):
        return jnp.tanh(x @ p) * (scale**power).sum()

    f = of(scaled)
    scale = np.array([1.0, 2.0, -0.5])
    for strategy in ("rows", "vjp", "loop"):
        J = f.jacobian(f.params, X, scale, power=2, wrt=(0, 1, 2), strategy=strategy)
        close(J[0], jacobian(lambda p: f(p, X, scale, power=2))(f.params))
        close(J[1], jacobian(lambda x: f(f.params, x, scale, power=2))(X))
        close(J[2], jacobian(lambda s: f(f.params, X, s, power=2))(scale))


def test_several_outputs_come_as_a_tree():
    def two(p, x):
        return {"mean": x @ p, "spread": jnp.stack([x[:, 0] * p[0], x[:, 1] ** 2], 1), "sign": x[:, 0] > 0}

    f = of(two)
    for strategy in ("auto", "rows", "vjp", "jvp", "loop"):
        by_params, by_input = f.jacobian(f.params, X, wrt=(0, 1), strategy=strategy)
        for name in ("mean", "spread"):
            close(by_params[name], jacobian(lambda p, n=name: f(p, X)[n])(f.params))
            close(by_input[name], jacobian(lambda x, n=name: f(f.params, x)[n])(X))
        assert by_params["sign"] is None


def test_a_model_that_cannot_be_compiled_goes_without_the_map_of_rows():
    def branching(p, x):
        return x @ p if float(x.sum()) > 1e9 else jnp.sin(x @ p)

    f = of(branching)
    with gb.trace() as t:
        J = f.jacobian(f.params, X)
    assert "per-example" not in how(t)
    close(J, jacobian(f)(f.params, X))


def test_batch_statistics_in_train_mode_are_never_computed_apart():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.first, self.norm, self.last = (
                nnx.Linear(4, 3, rngs=rngs),
                nnx.BatchNorm(3, rngs=rngs),
                nnx.Linear(3, 1, rngs=rngs),
            )

        def __call__(self, x):
            return self.last(jnp.tanh(self.norm(self.first(x))))

    model = Model()
    f, g = (gb.bridge(model, dtype="float64", mode="train") for _ in range(2))
    with gb.trace() as t:
        J = f.jacobian(f.params, X)
    assert "per-example" not in how(t)
    close(J, jacobian(g)(g.params, X))
    with pytest.raises(OptionError, match="'rows' was asked"):
        f.jacobian(f.params, X, strategy="rows")


def test_no_rows_one_row_and_float32():
    f = mlp()
    assert f.jacobian(f.params, X[:0]).shape == (0, f.layout.size)
    close(f.jacobian(f.params, X[:1]), jacobian(f)(f.params, X[:1]), 1e-6)
    with gb.trace() as t:
        J = f.jacobian(f.params.astype("f4"), X.astype("f4"))
    assert how(t) == {"per-example"}
    assert J.dtype == np.float32
    np.testing.assert_allclose(J, jacobian(f)(f.params, X), rtol=1e-4, atol=1e-6)


def test_products_with_the_jacobian():
    f = mlp(3, dtype="float64")
    J = f.jacobian(f.params, X)
    v, t = DRAW.normal(size=(24, 3)), DRAW.normal(size=f.params.shape)
    close(f.vjp(f.params, X, cotangent=v), np.tensordot(v, J, 2))
    close(f.jvp(f.params, X, tangent=t), J @ t)
    close(f.ggn(f.params, X, vector=t), np.tensordot(J @ t, J, 2))
    H = DRAW.normal(size=(24, 3, 24, 3))
    close(f.ggn(f.params, X, vector=t, hessian=H), np.tensordot(np.tensordot(H, J @ t, 2), J, 2))
