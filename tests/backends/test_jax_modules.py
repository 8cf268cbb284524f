"""Flax NNX, Flax Linen and Equinox modules as guests, compared with JAX's own derivatives in float64."""

from __future__ import annotations

import copy
import warnings

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
from gradbridge.errors import (  # noqa: E402
    GradbridgeWarning,
    GuestError,
    InputError,
    OptionError,
    ReentryError,
    UnknownModelError,
)
from gradbridge_jax.isolation import isolated  # noqa: E402

X = np.random.default_rng(0).normal(size=(5, 3))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.second = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


@pytest.mark.parametrize("backend", [None, "jax"])
@pytest.mark.parametrize("kind", [NNXNet, linen.Dense, eqx.nn.Linear])
def test_a_module_class_in_place_of_a_module_is_told_so(kind, backend):
    with pytest.raises(UnknownModelError, match=f"got the class {kind.__name__}; make an instance of it"):
        gb.bridge(kind, backend=backend)


def squared(f):
    return lambda p, x: anp.sum(f(p, x) ** 2)


def two_layers(first, second, x):
    """(weight, bias) pairs in closed form, float64."""
    return np.tanh(x @ first[0] + first[1]) @ second[0] + second[1]


def test_nnx_parameters_are_named_by_their_paths_and_biases_come_first():
    f = gb.bridge(NNXNet(nnx.Rngs(0)))
    assert f.layout.names == ("first/bias", "first/kernel", "second/bias", "second/kernel")
    assert set(f.layout.dtypes) == {"float32"}


def test_an_nnx_module_in_float64_agrees_with_jaxs_own_gradient_and_hessian():
    module = NNXNet(nnx.Rngs(0))
    f = gb.bridge(module, dtype="float64")
    graph, params = nnx.split(module)

    def loss(p, x):
        pieces = list(f.layout.unravel(p).values())
        return (nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(params), pieces))(x) ** 2).sum()

    with isolated(True):
        p, x = jnp.asarray(f.params), jnp.asarray(X)
        gradients = [np.asarray(g) for g in jax.grad(loss, (0, 1))(p, x)]
        hessian = np.asarray(jax.hessian(loss)(p, x))
    for argnum in (0, 1):
        np.testing.assert_allclose(
            autograd.grad(squared(f), argnum)(f.params, X), gradients[argnum], rtol=1e-12
        )
    np.testing.assert_allclose(autograd.hessian(squared(f))(f.params, X), hessian, rtol=1e-10, atol=1e-12)
    parts = f.layout.unravel(f.params)
    pairs = [(parts[f"{name}/kernel"], parts[f"{name}/bias"]) for name in ("first", "second")]
    np.testing.assert_allclose(f(f.params, X), two_layers(*pairs, X), rtol=1e-13)


def test_an_nnx_module_that_was_told_float32_computes_in_the_dtype_asked_for():
    module = nnx.Linear(3, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    f = gb.bridge(module, dtype="float64")
    parts = f.layout.unravel(f.params)
    np.testing.assert_allclose(f(f.params, X), X @ parts["kernel"] + parts["bias"], rtol=1e-14)
    assert module.dtype == jnp.float32


def test_an_nnx_module_is_not_touched_and_its_present_parameters_are_read():
    module = NNXNet(nnx.Rngs(0))
    f = gb.bridge(module, dtype="float64")
    before = np.asarray(module.first.kernel[...])
    autograd.grad(squared(f))(2 * f.params, X)
    assert np.array_equal(module.first.kernel[...], before)
    assert module.first.kernel[...].dtype == jnp.float32
    module.first.bias[...] = jnp.ones(4)
    assert np.array_equal(f.params[:4], np.ones(4))


def test_the_model_of_new_params_is_an_nnx_module_that_holds_them():
    module = NNXNet(nnx.Rngs(0))
    f = gb.bridge(module)
    native = f.model(3 * f.params)
    assert type(native) is NNXNet
    assert native is not module
    np.testing.assert_allclose(native(jnp.asarray(X, jnp.float32)), f(3 * f.params, X), rtol=1e-6)


def test_a_users_own_nnx_subclass_is_recognised_and_traced_once():
    traces = []

    class Counted(NNXNet):
        def __call__(self, x):
            traces.append(x.shape)
            return super().__call__(x)

    f = gb.bridge(Counted(nnx.Rngs(0)))
    for scale in (1.0, 2.0, 3.0):
        autograd.grad(squared(f))(scale * f.params, X)
    assert len(traces) == 1


def test_a_wrong_number_of_columns_names_the_layer_and_what_it_expects():
    f = gb.bridge(NNXNet(nnx.Rngs(0)))
    with pytest.raises(InputError, match=r"NNXNet: layer Linear expects \(…, 3\), got \(5, 2\)"):
        f(f.params, X[:, :2])


def test_a_copy_of_a_bridge_over_an_nnx_module_computes_the_same():
    f = gb.bridge(NNXNet(nnx.Rngs(0)))
    g = gb.bridge(copy.deepcopy(f.adapter))
    assert np.array_equal(autograd.grad(squared(g))(f.params, X), autograd.grad(squared(f))(f.params, X))


def test_an_equinox_module_takes_rows_with_vmap_and_agrees_with_jax():
    module = eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, key=jax.random.key(0))
    f = gb.bridge(module, dtype="float64", vmap=True)
    assert f.layout.names[0] == "layers/0/weight"
    parts = f.layout.unravel(f.params)
    pairs = [(parts[f"layers/{i}/weight"].T, parts[f"layers/{i}/bias"]) for i in (0, 1)]
    np.testing.assert_allclose(f(f.params, X), two_layers(*pairs, X), rtol=1e-13)
    step = 1e-6 * np.ones(f.layout.size)
    change = squared(f)(f.params + step, X) - squared(f)(f.params - step, X)
    assert autograd.grad(squared(f))(f.params, X) @ step == pytest.approx(change / 2, rel=1e-7)
    hessian = autograd.hessian(squared(f))(f.params, X)
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-10, atol=1e-12)


def test_a_batch_for_an_equinox_module_without_vmap_is_refused_with_advice():
    f = gb.bridge(eqx.nn.Linear(3, 2, key=jax.random.key(0)))
    with pytest.raises(InputError, match="bridge with vmap=True"):
        f(f.params, X)


class Trains(linen.Module):
    layer: object

    @linen.compact
    def __call__(self, x, train=True):
        return self.layer(not train)(linen.Dense(2)(x))


@pytest.mark.parametrize(
    "layer",
    [
        lambda still: linen.BatchNorm(use_running_average=still),
        lambda still: linen.Dropout(0.5, deterministic=still),
    ],
)
def test_a_linen_module_that_trains_unless_it_is_told_not_to_is_refused_with_advice(layer):
    net = Trains(layer)
    f = gb.bridge(net, params=net.init(jax.random.key(0), X, train=False))
    with pytest.raises(GuestError, match=r"called as it is trained.*f\(params, x, train=False\)"):
        f(f.params, X)
    assert f(f.params, X, train=False).shape == (5, 2)


def test_a_layer_of_linen_that_refuses_its_input_is_named():
    net = linen.Conv(4, (3,))
    f = gb.bridge(net, params=net.init(jax.random.key(0), np.ones((1, 5, 3))))
    with pytest.raises(GuestError, match="Conv failed in Conv on input 0 of shape \\(1, 5, 2\\)"):
        f(f.params, np.ones((1, 5, 2)))


def test_in_programs_of_jax_a_model_that_shares_statistics_says_so():
    f = gb.bridge(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), mode="train")
    with pytest.raises(
        ReentryError, match=r"reads statistics that another bridge, in train mode, moves"
    ) as told:
        jax.jit(f.in_eval_mode()).lower(jnp.array(f.params), X)
    assert "gradbridge.bridge(f.model(params)) is a model of its own" in str(told.value)
    own = f.model(f.params)
    own.eval()
    program = jax.jit(gb.bridge(own))
    np.testing.assert_allclose(program(jnp.array(f.params), X), X / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_only_floating_arrays_of_an_equinox_module_are_trained():
    class Scaled(eqx.Module):
        scale: jax.Array
        steps: jax.Array
        name: str
        activation: object = jnp.tanh

        def __call__(self, x):
            return self.activation(x * self.scale) * self.steps.sum()

    f = gb.bridge(Scaled(jnp.ones(3), jnp.arange(3), "s"))
    assert f.layout.names == ("scale",)
    np.testing.assert_allclose(f(f.params, X), 3 * np.tanh(X), rtol=1e-6)
    model = f.model(2 * f.params)
    assert (model.name, model.activation) == ("s", jnp.tanh)


def test_an_equinox_module_may_be_the_parameter_tree_of_a_function():
    module = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    f = gb.bridge(lambda m, x: jax.vmap(m)(x), params=module, backend="jax", dtype="float64")
    g = gb.bridge(module, vmap=True, dtype="float64")
    assert np.array_equal(f(f.params, X), g(g.params, X))


def test_a_stateful_equinox_module_moves_its_state_in_train_mode_once_per_forward():
    module, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="ema", momentum=0.5)
    f = gb.bridge(module, state=state, vmap=True, mode="train", dtype="float64")
    start = [np.asarray(leaf) for leaf in jax.tree.leaves(f.model(f.params)[1])]
    autograd.hessian(lambda p: anp.sum(f(p, X) ** 2))(f.params)
    once = jax.tree.leaves(f.model(f.params)[1])
    assert any(not np.array_equal(a, b) for a, b in zip(start, once))
    centred = f(f.params, X)
    np.testing.assert_allclose(centred.mean(0), 0, atol=1e-12)


def test_a_linen_module_is_bridged_bound_or_with_its_variables():
    module = linen.Dense(2)
    variables = module.init(jax.random.key(0), X.astype(np.float32))
    bound, given = (
        gb.bridge(module.bind(variables), dtype="float64"),
        gb.bridge(module, params=variables, dtype="float64"),
    )
    parts = bound.layout.unravel(bound.params)
    expected = X @ parts["kernel"] + parts["bias"]
    for f in (bound, given):
        np.testing.assert_allclose(f(f.params, X), expected, rtol=1e-14)
        np.testing.assert_allclose(
            autograd.grad(lambda p, f=f: anp.sum(f(p, X)))(f.params)[:2], [5, 5], rtol=1e-14
        )
    with pytest.raises(OptionError, match="does not hold its parameters"):
        gb.bridge(module)


def test_a_module_in_train_mode_is_evaluated_in_eval_mode_with_one_notice():
    module = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    with pytest.warns(GradbridgeWarning, match="Dropout is in train mode") as notices:
        f = gb.bridge(module)
    assert np.array_equal(f(f.params, X.astype(np.float32)), X.astype(np.float32))
    assert len(notices) == 1
    assert notices[0].filename == __file__
    module.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gb.bridge(module)
    with pytest.warns(GradbridgeWarning, match="inference mode"):
        gb.bridge(eqx.nn.Dropout(0.5))


def test_numbers_that_an_equinox_module_was_made_with_are_no_parameters():
    eqx = pytest.importorskip("equinox")
    net = eqx.nn.Sequential(
        [eqx.nn.Linear(3, 2, key=jax.random.key(0)), eqx.nn.Dropout(0.5), eqx.nn.LayerNorm(2)]
    )
    f = gb.bridge(net, vmap=True)
    assert not any(name.endswith("/p") or name.endswith("eps") for name in f.layout.names)
    assert f.layout.size == 3 * 2 + 2 + 2 + 2
    inside = gb.bridge(
        lambda m, x: jax.vmap(m["net"])(x) * m["scale"],
        params={"net": net.layers[0], "scale": 2.0},
        backend="jax",
    )
    assert inside.layout.size == 3 * 2 + 2 + 1  # a number in a plain tree is one


def test_statistics_move_on_in_whatever_precision_a_call_is():
    module, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="ema", momentum=0.5)
    f = gb.bridge(module, state=state, vmap=True, mode="train")
    g = gb.bridge(module, state=state, vmap=True, mode="train", dtype="float64")
    single = f.params.astype("float32")
    for p in (single, f.params, single):
        f(p, X), g(f.params, X)
    expected = jax.tree.leaves(g.model(g.params)[1])
    for p in (single, f.params):
        for found, wanted in zip(jax.tree.leaves(f.model(p)[1]), expected):
            np.testing.assert_allclose(found, wanted, rtol=1e-6)
