"""JAX as a host: whatever it transforms a bridge by is what it gives for the same network in JAX itself."""

from __future__ import annotations

import functools
import importlib.util
import warnings

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge_jax.isolation import enable_x64  # noqa: E402

_draw = np.random.default_rng(3)
WEIGHTS = {
    "b1": _draw.normal(size=3), "b2": _draw.normal(size=1),
    "W1": _draw.normal(size=(3, 2)), "W2": _draw.normal(size=(1, 3)),
}  # fmt: skip
INPUTS = np.linspace(-1, 1, 8).reshape(4, 2)
ALONG = np.cos(np.arange(13.0))


def network(xp):
    return lambda w, x: xp.tanh(x @ w["W1"].T + w["b1"]) @ w["W2"].T + w["b2"]


def in_another_framework():
    """The network where every call of it goes through the host's primitives."""
    if importlib.util.find_spec("torch"):
        import torch

        return gb.bridge(network(torch), params=WEIGHTS, backend="torch", host="jax")
    import autograd.numpy as anp

    shapes = lambda x: ((*x.shape[:-1], 1), x.dtype)
    return gb.bridge(network(anp), params=WEIGHTS, backend="autograd", host="jax", outputs=shapes)


LIFTED = in_another_framework()
INLINED = gb.bridge(network(jnp), params=WEIGHTS, backend="jax", host="jax")


def native(params, x):
    return network(jnp)(LIFTED.layout.unravel(params), x)


def loss(f):
    def of(p, x):
        y = f(p, x)
        return jnp.sum(y * y)

    return of


def scaled(p):
    return jnp.stack([p, 2 * p, -p])


def moved(x):
    return jnp.stack([x, x + 1])


def along(p):
    return jnp.asarray(ALONG, p.dtype)


def descent(f):
    """Five steps of gradient descent in a scan, and the outputs on the way."""

    def run(p, x):
        return jax.lax.scan(lambda p, _: (p - 0.1 * jax.grad(loss(f))(p, x), f(p, x)), p, None, length=5)

    return run


def counted(f):
    def run(p, x):
        step = lambda state: (state[0] - 0.1 * jax.grad(loss(f))(state[0], x), state[1] + 1)
        return jax.lax.while_loop(lambda state: state[1] < 3, step, (p, 0))[0]

    return run


def directional(g, order):
    """The derivative of some order along one direction, by nested gradients."""
    for _ in range(order):
        g = (lambda h: lambda p, x: jnp.vdot(jax.grad(h)(p, x), along(p)))(g)
    return g


def pushed(g, order):
    """The same by nested forward mode."""
    for _ in range(order):
        g = (lambda h: lambda p, x: jax.jvp(lambda q: h(q, x), (p,), (along(p),))[1])(g)
    return g


def by_both(f):
    return lambda p, x: loss(jax.vmap(f, (None, 0)))(p, moved(x))


#: {what it is called: (its highest order, f ↦ the transformed)}.
TRANSFORMED = {
    "the value": (1, lambda f: f),
    "grad by params": (1, lambda f: jax.grad(loss(f))),
    "grad by inputs": (1, lambda f: jax.grad(loss(f), 1)),
    "grad by both": (1, lambda f: jax.grad(loss(f), (0, 1))),
    "value_and_grad": (1, lambda f: jax.value_and_grad(loss(f))),
    "jvp": (1, lambda f: lambda p, x: jax.jvp(lambda q: f(q, x), (p,), (along(p),))),
    "jvp by both": (1, lambda f: lambda p, x: jax.jvp(f, (p, x), (along(p), x))),
    "jacfwd": (1, lambda f: jax.jacfwd(f)),
    "jacrev": (1, lambda f: jax.jacrev(f)),
    "jacrev by inputs": (1, lambda f: jax.jacrev(f, 1)),
    "hessian": (2, lambda f: jax.hessian(loss(f))),
    "jacrev of jacrev": (2, lambda f: jax.jacrev(jax.jacrev(loss(f)))),
    "jacfwd of jacfwd": (2, lambda f: jax.jacfwd(jax.jacfwd(f))),
    "jacrev of jacfwd": (2, lambda f: jax.jacrev(jax.jacfwd(f))),
    "mixed by params and inputs": (2, lambda f: jax.jacfwd(jax.grad(loss(f), 0), 1)),
    "hessian-vector product": (2, lambda f: pushed(jax.grad(loss(f)), 1)),
    "third order, reverse": (3, lambda f: jax.grad(directional(loss(f), 2))),
    "third order, forward": (3, lambda f: pushed(loss(f), 3)),
    "third order, forward over reverse": (3, lambda f: pushed(jax.grad(loss(f)), 2)),
    "vmap over params": (1, lambda f: lambda p, x: jax.vmap(f, (0, None))(scaled(p), x)),
    "vmap over inputs": (1, lambda f: lambda p, x: jax.vmap(f, (None, 0))(p, moved(x))),
    "vmap over other axes": (
        1,
        lambda f: lambda p, x: jax.vmap(f, (None, 2), 1)(p, jnp.moveaxis(moved(x), 0, 2)),
    ),
    "vmap over nothing": (1, lambda f: lambda p, x: jax.vmap(f, (None, 0))(p, moved(x)[:0])),
    "vmap of vmap": (
        1,
        lambda f: lambda p, x: jax.vmap(jax.vmap(f, (None, 0)), (0, None))(scaled(p), moved(x)),
    ),
    "vmap of grad, per example": (
        1,
        lambda f: lambda p, x: jax.vmap(jax.grad(loss(f)), (None, 0))(p, x[:, None]),
    ),
    "vmap of grad, over params": (
        1,
        lambda f: lambda p, x: jax.vmap(jax.grad(loss(f)), (0, None))(scaled(p), x),
    ),
    "vmap of jacrev": (1, lambda f: lambda p, x: jax.vmap(jax.jacrev(f), (None, 0))(p, moved(x))),
    "vmap of hessian": (2, lambda f: lambda p, x: jax.vmap(jax.hessian(loss(f)), (0, None))(scaled(p), x)),
    "grad of vmap": (1, lambda f: jax.grad(by_both(f), (0, 1))),
    "jacrev of vmap": (
        1,
        lambda f: lambda p, x: jax.jacrev(lambda p, x: jax.vmap(f, (None, 0))(p, x), 1)(p, moved(x)),
    ),
    "jacfwd of vmap": (
        1,
        lambda f: lambda p, x: jax.jacfwd(lambda p, x: jax.vmap(f, (None, 0))(p, x), (0, 1))(p, moved(x)),
    ),
    "hessian of vmap": (2, lambda f: jax.hessian(by_both(f))),
    "scan": (2, descent),
    "grad through scan": (2, lambda f: jax.grad(lambda p, x: jnp.sum(descent(f)(p, x)[1]))),
    "while": (1, counted),
    "cond": (
        1,
        lambda f: jax.grad(lambda p, x: jax.lax.cond(p[0] > -5, lambda: loss(f)(p, x), lambda: 0 * p[0])),
    ),
    "switch under vmap": (
        1,
        lambda f: lambda p, x: jax.vmap(
            lambda i: jax.grad(lambda p: jax.lax.switch(i, [loss(f), lambda p, x: p.sum()], p, x))(p)
        )(jnp.arange(2)),
    ),
    "checkpoint": (1, lambda f: jax.grad(jax.checkpoint(loss(f)))),
    "linearize": (1, lambda f: lambda p, x: jax.linearize(lambda q: f(q, x), p)[1](along(p))),
    "linear_transpose": (
        1,
        lambda f: lambda p, x: jax.linear_transpose(
            jax.linearize(lambda q: loss(f)(q, x), p)[1], p
        )(jnp.ones((), p.dtype)),
    ),
    "vjp of jvp": (
        1,
        lambda f: lambda p, x: jax.vjp(
            lambda t: jax.jvp(lambda q: loss(f)(q, x), (p,), (t,))[1], along(p)
        )[1](jnp.ones((), p.dtype)),
    ),
    "lax.map": (1, lambda f: lambda p, x: jax.lax.map(lambda row: f(p, row[None]), x)),
    "a custom_vjp around it": (1, lambda f: jax.grad(loss(clipped(f)))),
}  # fmt: skip


def clipped(f):
    """The same with a backward rule of the user's own, which calls its VJP."""

    @jax.custom_vjp
    def of(p, x):
        return f(p, x)

    of.defvjp(lambda p, x: jax.vjp(f, p, x), lambda pull, c: pull(jnp.clip(c, -1, 1)))
    return of


#: Of the programs of tests, which run once.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.cache
def given_by_jax(name):
    """What JAX gives for the network itself, and for the bridge over it: leaves, in double precision."""
    transformed = TRANSFORMED[name][1]
    with enable_x64(True):
        both = [transformed(f) for f in (native, INLINED)]
        program = jax.jit(lambda p, x: [f(p, x) for f in both], compiler_options=QUICKLY)
        return list(map(jax.tree.leaves, program(LIFTED.params, jnp.asarray(INPUTS))))


def agree(found, expected, tolerance):
    assert len(found) == len(expected)
    for one, other in zip(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, expected)):
        assert one.shape == other.shape
        scale = max(1.0, np.abs(other).max(initial=0.0))
        assert np.abs(one - other).max(initial=0.0) <= tolerance * scale


def tolerance_of(order, x64):
    return {1: 1e-12, 2: 1e-10, 3: 1e-8}[order] if x64 else 1e-4


@pytest.mark.parametrize("x64", [True, False], ids=["64 bits", "32 bits"])
@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("name", TRANSFORMED)
def test_a_transformed_bridge_gives_what_the_transformed_network_gives(name, compiled, x64):
    order, transformed = TRANSFORMED[name]
    expected, _ = given_by_jax(name)
    with enable_x64(x64):
        call = transformed(LIFTED)
        call = jax.jit(call, compiler_options=QUICKLY) if compiled else call
        found = jax.tree.leaves(call(LIFTED.params, jnp.asarray(INPUTS)))
        assert {y.dtype for y in found} == {np.dtype(np.float64 if x64 else np.float32)}
    agree(found, expected, tolerance_of(order, x64))


@pytest.mark.parametrize("name", TRANSFORMED)
def test_an_inlined_model_is_a_part_of_the_program(name):
    expected, found = given_by_jax(name)
    agree(found, expected, tolerance_of(TRANSFORMED[name][0], True))


@pytest.fixture(params=[True, False], ids=["64 bits", "32 bits"])
def x64(request):
    with enable_x64(request.param):
        yield request.param


def test_what_it_returns_has_the_precision_of_the_program(x64):
    dtype = jnp.float64 if x64 else jnp.float32
    assert LIFTED.params.dtype == dtype
    assert LIFTED(LIFTED.params, jnp.asarray(INPUTS)).dtype == dtype
    single = LIFTED.params.astype(jnp.float32)
    assert jax.jit(LIFTED)(single, INPUTS).dtype == jnp.float32  # the params say it, and no other array


def test_forward_mode_of_a_rule_that_has_none_leaves_later_calls_as_they_were():
    straight = jax.custom_vjp(lambda x: jnp.round(x))
    straight.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))
    w = jnp.array([0.3, 1.3, 2.3], jnp.float32)
    for own in (np.float64, np.float32):
        f = gb.bridge(lambda p, x: straight(p["w"] * x), params={"w": np.ones(3, own)}, backend="jax")

        def program(w, f=f):
            return f({"w": w}, jnp.ones(3, jnp.float32))

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            before = jax.jit(program)(w)
            primal, tangent = jax.jvp(program, (w,), (2 * w,))
            assert primal.dtype == tangent.dtype == jnp.float32
            np.testing.assert_array_equal(tangent, 2 * w)  # made from the gradient
            np.testing.assert_array_equal(jax.jit(program)(w), before)
