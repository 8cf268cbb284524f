"""JAX as a host, in processes of their own: nothing hangs, what would is refused at once, and devices are kept.

A program that hangs is ended by its time limit, and fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("jax")

SECONDS = 120

#: Thirty calls that nobody waits for, and other work of JAX's beside them.
STORM = """
import os, sys
import jax
if "synchronous" in sys.argv:
    jax.config.update("jax_cpu_enable_async_dispatch", False)
import jax.numpy as jnp, numpy as np
import gradbridge as gb
from gradbridge.errors import ReentryError

x = jnp.asarray(np.random.default_rng(0).normal(size=(300, 300)).astype("float32")) / 300

def storm(call):
    flying = [call(x + i) for i in range(30)]
    z = x
    for _ in range(30):
        z = jnp.sin(z @ x + 0.1)
    return jax.block_until_ready((flying, z))[0][0]

def cubed(x):
    return jnp.tanh(x @ x) @ x

def gradient(f):
    return jax.jit(jax.grad(lambda x: jnp.sum(f(jnp.cos(x)) ** 2)))

expected = gradient(cubed)(x)

def right(found):
    return float(jnp.abs(found - expected).max() / jnp.abs(expected).max()) < 1e-4

def same(x):
    return x

def by_steps(inner):
    '''A function with a written rule, which calls a bridge of its own in both.'''
    outer = gb.primitive(host="jax", outputs=same)(lambda x: np.asarray(inner(x)))
    outer.defvjp(lambda ans, x: lambda v: np.asarray(inner.vjp(x, cotangent=v)))
    return outer

plain = gb.primitive(backend="jax", host="autograd")(cubed)          # called by NumPy's arrays
looked_at = gb.bridge(                                               # what cannot be inlined
    lambda w, x: cubed(x) * w, params=np.ones(1, "f4"), backend="jax", host="jax", check_finite=True
)

def opaque(x):
    return looked_at(jnp.ones(1), x)
"""


def lines_of(code, *arguments, **variables):
    """What a program prints."""
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=SECONDS, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


def test_guests_that_are_jax_are_inlined_or_refused_at_once():
    code = """
    print(right(storm(gradient(gb.primitive(backend="jax", host="jax")(cubed)))))  # inlined
    print(right(jax.grad(lambda x: jnp.sum(opaque(jnp.cos(x)) ** 2))(x)))          # eagerly, nobody waits
    for lower in (gradient(opaque).lower, jax.jit(lambda x: jax.lax.scan(lambda c, _: (opaque(c), None), x, None, 3)).lower):
        try:
            lower(x)
        except ReentryError as error:
            print("jax_cpu_enable_async_dispatch" in str(error))

    # Unseen, by a guest that is none of JAX's: by NumPy's arrays, and by JAX's own.
    for inner in (plain, gb.primitive(host="jax")(np.tanh)):
        try:
            storm(jax.jit(by_steps(inner)))
        except jax.errors.JaxRuntimeError as error:
            print("ReentryError" in str(error) and "jax_cpu_enable_async_dispatch" in str(error))
    print(right(storm(gradient(by_rule))))
    """
    by_rule = """
    by_rule = gb.primitive(host="jax", outputs=same)(lambda x: np.tanh(x @ x) @ x)
    def pulled(v, x):
        y = np.tanh(x @ x)
        inner = (v @ x.T) * (1 - y * y)
        return y.T @ v + inner @ x.T + x.T @ inner
    by_rule.defvjp(lambda ans, x: lambda v: pulled(v, x))
    """
    assert lines_of(STORM + textwrap.dedent(by_rule) + textwrap.dedent(code)) == ["True"] * 7


def test_where_programs_run_in_the_calling_thread_they_may_be_called_back():
    code = """
    print(right(storm(gradient(opaque))))
    print(right(storm(gradient(by_steps(plain)))))
    """
    assert lines_of(STORM + textwrap.dedent(code), "synchronous") == ["True"] * 2


def test_a_flag_that_is_set_too_late_is_not_believed():
    code = """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        gradient(opaque).lower(x)
    except ReentryError:
        print(True)
    """
    assert lines_of(STORM + textwrap.dedent(code)) == ["True"]


def test_a_torch_guest_that_calls_jax_within_is_refused_at_once():
    pytest.importorskip("torch")
    code = """
    import torch
    inner = gb.primitive(backend="jax", host="torch")(cubed)
    outer = gb.primitive(backend="torch", host="jax", outputs=same)(lambda x: inner(x))
    try:
        storm(gradient(outer))
    except jax.errors.JaxRuntimeError as error:
        print("ReentryError" in str(error))
    print(right(storm(gradient(gb.primitive(backend="torch", host="jax")(lambda x: torch.tanh(x @ x) @ x)))))
    """
    assert lines_of(STORM + textwrap.dedent(code)) == ["True"] * 2


def test_results_are_where_the_operands_are():
    code = """
    import jax, jax.numpy as jnp, numpy as np
    import gradbridge as gb
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

    jax.config.update("jax_enable_x64", True)
    f = gb.primitive(outputs=lambda w, x: x)(lambda w, x: np.sin(w * x))
    f.defvjp(lambda ans, w, x: lambda v: (v * np.cos(w * x) * x).sum(0), lambda ans, w, x: lambda v: v * np.cos(w * x) * w)
    native = lambda w, x: jnp.sin(w * x)

    def check(name, found, expected, device=None):
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            good = np.allclose(np.asarray(one), np.asarray(other), rtol=1e-12, atol=1e-12)
            good = good and (device is None or one.devices() == {device})
            print(good or name)

    w, x = np.array([1.0, 2.0]), np.arange(8.0).reshape(4, 2)
    loss = lambda f: lambda w, x: jnp.sum(f(w, x) ** 2)
    other = jax.devices()[1]
    expected = jax.grad(loss(native), (0, 1))(w, x)
    on_other = jax.device_put((w, x), other)
    for run in (lambda f: f, jax.jit):
        check("on a device", run(jax.grad(loss(f), (0, 1)))(*on_other), expected, other)
        check("a value on a device", run(f)(*on_other), native(w, x), other)

    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("d",), axis_types=(kind,))
        rows = jax.device_put(x, NamedSharding(mesh, P("d")))
        whole = jax.device_put(w, NamedSharding(mesh, P()))
        for run in (lambda f: f, jax.jit):
            check(f"over devices, {kind}", run(jax.grad(loss(f), (0, 1)))(whole, rows), expected)
        for looks in (True, False):
            part = jax.shard_map(
                lambda w, x: jax.lax.psum(jnp.sum(f(w, x) ** 2), "d"),
                mesh=mesh, in_specs=(P(), P("d")), out_specs=P(), check_vma=looks,
            )
            check(f"shard_map, {kind} {looks}", jax.jit(jax.grad(part, (0, 1)))(whole, rows), expected)
    """
    found = lines_of(code, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert found == ["True"] * len(found)
    assert len(found) == 22
