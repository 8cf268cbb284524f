"""What surrounds a call of a JAX guest: JAX's flags, values that are read from outside, references past the bridge."""

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
from gradbridge.errors import AuditError  # noqa: E402
from gradbridge_jax.isolation import enable_x64  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3))
PARAMS = {"b": RNG.normal(size=2), "w": RNG.normal(size=(3, 2))}

FLAGS = {
    "no transfers": lambda: jax.transfer_guard("disallow"),
    "no promotion of ranks": lambda: jax.numpy_rank_promotion("raise"),
    "no promotion of dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "stops at NaN": lambda: jax.debug_nans(True),
    "stops at infinity": lambda: jax.debug_infs(True),
    "looks for leaks": lambda: jax.checking_leaks(),
    "looks for keys used twice": lambda: jax.debug_key_reuse(True),
    "does not compile": lambda: jax.disable_jit(),
    "computes constants at once": lambda: jax.ensure_compile_time_eval(),
    "without 64 bits": lambda: enable_x64(False),
    "multiplies in bfloat16": lambda: jax.default_matmul_precision("BF16_BF16_F32"),
    "another generator": lambda: jax.default_prng_impl("rbg"),
    "draws otherwise": lambda: jax.threefry_partitionable(False),
}


def noisy(p, x):
    # A sum whose ranks differ, 0/0 that is not used, and numbers of a generator that the process prefers.
    hidden = jnp.tanh(x @ p["w"] + p["b"])
    guarded = jnp.where(x.sum(-1, keepdims=True) > -1e9, hidden, 0 * hidden / (0 * hidden))
    return (guarded * jax.random.uniform(jax.random.key(0), (2,), x.dtype)).sum(-1)


@pytest.fixture(scope="module")
def reference():
    f = gb.bridge(noisy, params=PARAMS, backend="jax")
    return f, steps(f)


def steps(f):
    p = f.params
    gradient = autograd.grad(lambda q: anp.sum(f(q, X) ** 2))
    return (
        f(p, X),
        gradient(p),
        autograd.grad(lambda q: anp.dot(gradient(q), p))(p),
        f.jvp(p, X, tangent=p),
        f.row_gradients(p, X),
    )


@pytest.mark.parametrize("flag", FLAGS, ids=lambda name: name.replace(" ", "_"))
def test_no_flag_of_jax_reaches_into_any_step(flag, reference):
    f, expected = reference
    before = {
        name: getattr(jax.config, name) for name in ("jax_debug_nans", "jax_disable_jit", "jax_enable_x64")
    }
    with FLAGS[flag]():
        for ours, theirs in zip(steps(f), expected):
            np.testing.assert_array_equal(ours, theirs)
    assert before == {name: getattr(jax.config, name) for name in before}


def test_a_bridge_is_made_under_a_transfer_guard():
    module = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    with jax.transfer_guard("disallow"), jax.numpy_rank_promotion("raise"):
        f = gb.bridge(module)
        assert np.isfinite(autograd.grad(lambda p: anp.sum(f(p, X)))(f.params)).all()


def test_a_bridge_computes_where_jax_was_told_to_when_it_was_made():
    device = jax.devices()[-1]
    for told in (device, device.platform):
        with jax.default_device(told):
            f = gb.bridge(noisy, params=PARAMS, backend="jax")
        assert next(iter(f.model(f.params)(X).devices())).platform == device.platform
        assert f.adapter.source.device is not None
        assert np.isfinite(f(f.params, X)).all()


def test_a_nan_is_the_programs_to_judge_whatever_jax_was_told():
    f = gb.bridge(lambda p, x: jnp.log(p) * x, params=np.array([-1.0, 2.0]), backend="jax")
    with jax.debug_nans(True):
        np.testing.assert_allclose(f(f.params, np.ones(2)), [np.nan, np.log(2)])


# -- values from outside ---------------------------------------------------------------------------

weight = 2.0
table = {"rate": 1.0}


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return self.linear(x) * weight


class Net(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Block(rngs)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Rows(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, x):
        return self.linear(x) * weight


class Dense(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(x) * weight


def dense():
    module = Dense()
    return module.bind(module.init(jax.random.key(0), X))


LINEAR = eqx.nn.Linear(3, 2, key=jax.random.key(0))
READERS = {
    "function": lambda: gb.bridge(lambda p, x: x * p * weight, params=np.ones(3), backend="jax"),
    "submodule": lambda: gb.bridge(Net(nnx.Rngs(0))),
    "lambda in a Sequential": lambda: gb.bridge(
        nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), lambda x: x * weight)
    ),
    "Equinox": lambda: gb.bridge(Rows(LINEAR), vmap=True),
    "Equinox Lambda": lambda: gb.bridge(
        eqx.nn.Sequential([LINEAR, eqx.nn.Lambda(lambda x: x * weight)]), vmap=True
    ),
    "Linen": lambda: gb.bridge(dense()),
}


@pytest.mark.parametrize("make", READERS.values(), ids=READERS)
def test_a_number_that_is_read_from_outside_is_the_one_of_the_call(make, monkeypatch):
    f = make()
    gradient = autograd.grad(lambda p: anp.sum(f(p, X)))
    value, slope = f(f.params, X), gradient(f.params)
    monkeypatch.setitem(globals(), "weight", 6.0)
    np.testing.assert_allclose(f(f.params, X), 3 * value, rtol=1e-12)
    np.testing.assert_allclose(gradient(f.params), 3 * slope, rtol=1e-12)


def test_an_entry_of_a_table_and_a_cell_that_change_are_those_of_the_call():
    power = 1

    def function(p, x):
        return x * p**power * table["rate"]

    f = gb.bridge(function, params=np.full(3, 2.0), backend="jax")
    np.testing.assert_allclose(f(f.params, X), 2 * X)
    table["rate"], power = 5.0, 2
    np.testing.assert_allclose(f(f.params, X), 20 * X)
    table["rate"] = 1.0


# -- parameters that are reached past the bridge ---------------------------------------------------


class Scaled(nnx.Module):
    def __init__(self, rngs, way):
        self.linear = nnx.Linear(3, 2, rngs=rngs)
        self.scale = nnx.Param(jnp.array([1.5, 2.5]))
        kernel = self.linear.kernel
        self.act = {
            "lambda over self": lambda y: y * self.scale[...],
            "bound method": self.scaled,
            "parameter of a child": lambda y: y * self.scale + kernel.sum(),
            "none": jnp.tanh,
        }[way]

    def scaled(self, y):
        return y * self.scale

    def __call__(self, x):
        return self.act(self.linear(x))


@pytest.mark.parametrize(
    ("way", "name"),
    [("lambda over self", "scale"), ("bound method", "scale"), ("parameter of a child", "linear/kernel")],
)
def test_an_nnx_module_that_reaches_its_parameters_past_the_bridge_is_refused_by_their_names(way, name):
    f = gb.bridge(Scaled(nnx.Rngs(0), way))
    with pytest.raises(AuditError, match=f"a parameter of its own .*{name}, by way of"):
        autograd.grad(lambda p: anp.sum(f(p, X)))(f.params)
    assert f.layout.names  # and it stays usable for whoever says audit="off"


def test_an_equinox_module_that_keeps_a_function_over_its_own_layer_is_refused():
    class Kept(eqx.Module):
        linear: eqx.nn.Linear
        act: object

        def __call__(self, x):
            return self.act(self.linear(x))

    f = gb.bridge(Kept(LINEAR, lambda y: y * LINEAR.bias), vmap=True)
    with pytest.raises(AuditError, match="linear/bias"):
        autograd.grad(lambda p: anp.sum(f(p, X)))(f.params)


def test_constants_are_no_strangers_nor_is_a_functions_anchor():
    anchor, mask = np.array([1.0, 2.0, 3.0]), jnp.array([1.0, 0.0, 1.0])
    f = gb.bridge(lambda p, x: x @ p * mask.sum() + jnp.sum((p - anchor) ** 2), params=anchor, backend="jax")
    gradient = autograd.grad(lambda p: anp.sum(f(p, X)))(anchor)
    np.testing.assert_allclose(gradient, 2 * X.sum(0), rtol=1e-12)
    module = gb.bridge(Scaled(nnx.Rngs(0), "none"))
    assert np.isfinite(autograd.grad(lambda p: anp.sum(module(p, X)))(module.params)).all()


def test_a_program_holds_the_numbers_of_an_outside_array_and_not_the_array_itself():
    first = np.array([1.0, 2.0, 3.0])
    outside = {"y": first}
    cubes = gb.primitive(lambda x: (x**3 * outside["y"]).sum(), backend="jax", audit="off")
    x, gradient = np.array([0.5, -1.0, 2.0]), autograd.grad(cubes)
    assert np.allclose(gradient(x), 3 * x**2 * first, rtol=1e-14)
    outside["y"] = first.copy()
    first *= 5  # nobody reads it from here on
    product = autograd.grad(lambda x: anp.sum(gradient(x) * x))  # its program is not compiled yet
    assert np.allclose(product(x), 9 * x**2 * outside["y"], rtol=1e-14)
