"""Rules that users write for JAX (custom_vjp, custom_jvp, custom_root …), and what runs within a trace: callbacks, checks."""

from __future__ import annotations

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import GuestError, HigherOrderError  # noqa: E402
from gradbridge_jax.isolation import isolated  # noqa: E402

RNG = np.random.default_rng(0)
A = RNG.normal(size=(3, 2))
W, V = np.array([0.3, -0.7]), np.array([1.0, -0.5])


def cubes(w, a):
    """Its rule closes over `a`, and its forward calls the function itself."""

    @jax.custom_vjp
    def total(w):
        return jnp.sum((a @ w) ** 3)

    total.defvjp(lambda w: (total(w), w), lambda w, ct: (ct * 3 * a.T @ (a @ w) ** 2,))
    return total(w)


def fixed_point(w, a):
    """z = cos(z / 2 + a w), its gradient by the implicit function theorem, as deep equilibrium models write it."""

    def step(z, w):
        return jnp.cos(z / 2 + a @ w)

    @jax.custom_vjp
    def solve(w):
        return jax.lax.fori_loop(0, 60, lambda _, z: step(z, w), jnp.zeros(a.shape[0]))

    def forward(w):
        z = solve(w)
        return z, (z, w)

    def backward(residuals, ct):
        z, w = residuals
        _, by_z = jax.vjp(lambda z: step(z, w), z)
        u = jax.lax.fori_loop(0, 60, lambda _, u: ct + by_z(u)[0], ct)
        return jax.vjp(lambda w: step(z, w), w)[1](u)

    solve.defvjp(forward, backward)
    return jnp.sum(solve(w) ** 2)


def root(w, a):
    """x³ + x = a w, by custom_root."""
    b = a @ w
    newton = lambda f, x: jax.lax.fori_loop(0, 40, lambda _, x: x - f(x) / (3 * x**2 + 1), x)
    tangent = lambda g, y: y / jax.jvp(g, (y,), (jnp.ones_like(y),))[1]
    return jnp.sum(jax.lax.custom_root(lambda x: x**3 + x - b, jnp.zeros_like(b), newton, tangent) ** 2)


def linear_solve(w, a):
    matrix = a.T @ a + jnp.diag(w**2) + jnp.eye(2)
    solve = lambda _, b: jnp.linalg.solve(matrix, b)
    return jnp.sum(jax.lax.custom_linear_solve(lambda v: matrix @ v, jnp.sin(w), solve, symmetric=True) ** 3)


@jax.custom_vjp
def rounded(x):
    return jnp.round(x * 3) / 3


rounded.defvjp(lambda x: (rounded(x), x), lambda x, ct: (ct * (1 + x**2),))


def straight_through(w, a):
    """A rule that is the derivative of nothing."""
    return jnp.sum(rounded(jnp.sin(a @ w)) * jnp.cos(a @ w))


@jax.custom_jvp
def soft(x):
    return jnp.tanh(x)


soft.defjvp(lambda primals, tangents: (soft(primals[0]), (1 + primals[0] ** 3) * tangents[0]))


def own_tangent(w, a):
    return jnp.sum(soft(a @ w) ** 2 * jnp.sin(a @ w))


EVERY = [cubes, fixed_point, root, linear_solve, straight_through, own_tangent]


def audit_of(function):
    """A second derivative by a rule that is the derivative of nothing is no difference of gradients, either."""
    return "off" if function in (straight_through, own_tangent) else "first"


def by_jax(derivative, *arrays):
    with isolated(True):
        return np.asarray(jax.jit(derivative)(*map(jnp.asarray, arrays)))


@pytest.mark.parametrize("function", EVERY, ids=lambda f: f.__name__)
def test_derivatives_by_a_rule_are_jaxs_own_to_third_order(function):
    f = gb.bridge(function, params=W, backend="jax", audit=audit_of(function))
    ours, theirs = lambda w: autograd.grad(f)(w, A), lambda w: jax.grad(function)(w, A)
    close = {"rtol": 1e-9, "atol": 1e-11}
    np.testing.assert_allclose(ours(W), by_jax(theirs, W), **close)
    second = autograd.grad(lambda w: anp.dot(ours(w), V))
    theirs_second = jax.grad(lambda w: theirs(w) @ V)
    np.testing.assert_allclose(second(W), by_jax(theirs_second, W), **close)
    through = autograd.grad(lambda w: anp.dot(autograd.grad(lambda w: anp.sin(f(w, A)))(w), V))
    theirs_through = jax.grad(lambda w: jax.grad(lambda w: jnp.sin(function(w, A)))(w) @ V)
    np.testing.assert_allclose(through(W), by_jax(theirs_through, W), **close)
    third = autograd.grad(lambda w: anp.dot(second(w), V))
    np.testing.assert_allclose(third(W), by_jax(jax.grad(lambda w: theirs_second(w) @ V), W), **close)


@pytest.mark.parametrize(
    "function", [root, linear_solve, straight_through, own_tangent], ids=lambda f: f.__name__
)
def test_mixed_derivatives_by_a_rule_are_jaxs_own(function):
    f = gb.primitive(function, backend="jax", audit=audit_of(function))
    ours = autograd.grad(lambda a: anp.dot(autograd.grad(f)(W, a), V))(A)
    np.testing.assert_allclose(ours, by_jax(jax.grad(lambda a: jax.grad(function)(W, a) @ V), A), rtol=1e-9)


@pytest.mark.parametrize("function", [straight_through, own_tangent], ids=lambda f: f.__name__)
def test_a_second_derivative_by_a_rule_that_is_none_is_refused_unless_it_is_asked_for(function):
    f = gb.bridge(function, params=W, backend="jax")
    with pytest.raises(HigherOrderError, match="audit='off'"):
        autograd.grad(lambda w: anp.dot(autograd.grad(f)(w, A), V))(W)


def test_a_derivative_by_what_a_rule_closes_over_is_refused_as_in_jax():
    f = gb.primitive(cubes, backend="jax")
    with pytest.raises(GuestError, match=r"a custom rule closes over an input(?s:.*)closure_convert"):
        autograd.grad(f, 1)(W, A)


def test_what_an_earlier_call_computed_and_a_global_keeps_is_refused_with_the_reason():
    kept = {}

    def memo(p, x):
        if "twice" not in kept:
            kept["twice"] = p * 2
        return x @ kept["twice"]

    f = gb.bridge(memo, params=np.ones((3, 2)), backend="jax")
    with pytest.raises(GuestError, match="keeps what an earlier call computed"):
        f(f.params, np.ones((4, 3)))
        f(f.params, np.ones((5, 3)))


def counted(f, *arguments):
    """Calls of the callback in one call that is no first one."""
    f(*arguments)
    jax.effects_barrier()
    told.clear()
    f(*arguments)
    jax.effects_barrier()
    return len(told)


told = []


@pytest.mark.parametrize(
    "tell",
    [
        lambda: jax.debug.callback(lambda code: told.append(int(code)), 7),
        lambda: jax.experimental.io_callback(
            lambda code: told.append(int(code)), None, np.int32(7), ordered=True
        ),
        lambda: jax.debug.callback(lambda: told.append(0)),
    ],
    ids=["debug.callback", "ordered io_callback", "without an operand"],
)
def test_a_callback_of_constants_runs_where_its_branch_is_taken_and_nowhere_else(tell):
    def warned(x):
        tell()
        return 2.0 * x

    f = gb.primitive(lambda x: jax.lax.cond(jnp.any(x < 0), warned, lambda x: x, x), backend="jax")
    x = np.array([1.0, 4.0])
    assert counted(f, x) == 0
    assert counted(f, -x) == 1
    with jax.ensure_compile_time_eval():
        assert counted(f, x) == 0


def test_a_check_within_the_trace_raises_its_words_only_where_it_fails():
    eqx = pytest.importorskip("equinox")
    f = gb.primitive(
        lambda x: jnp.sum(jnp.sqrt(eqx.error_if(x, jnp.any(x < 0), "below zero"))), backend="jax"
    )
    x = np.array([1.0, 4.0])
    assert f(x) == 3.0
    np.testing.assert_allclose(autograd.grad(f)(x), 0.5 / np.sqrt(x), rtol=1e-12)
    with pytest.raises(GuestError) as caught:
        f(-x)
    assert "below zero" in str(caught.value)
