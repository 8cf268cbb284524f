"""Arrays cross into JAX as they are: copied once where their owner could change them, else not at all."""

from __future__ import annotations

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.call_spec import CallSpec  # noqa: E402
from gradbridge.lifting import node_of  # noqa: E402
from gradbridge.protocol import GuestOptions  # noqa: E402
from gradbridge_jax.framework import JaxFramework  # noqa: E402
from gradbridge_jax.guest import adapt  # noqa: E402
from gradbridge_jax.isolation import isolated  # noqa: E402

BIG = 1 << 15  # numbers; from 64 KiB on copies are aligned


@pytest.fixture
def framework():
    return JaxFramework("f", "auto", None)


def pointer(array):
    return array.unsafe_buffer_pointer() if isinstance(array, jax.Array) else array.ctypes.data


def test_a_jax_array_is_taken_as_it_is(framework):
    with isolated(True):
        array = jnp.arange(float(BIG))
        assert pointer(framework.asarray(array, np.dtype(np.float64))) == pointer(array)
        assert framework.asarray(array, np.dtype(np.float32)).dtype == np.float32


def test_a_numpy_array_is_copied_once(framework):
    array = np.arange(float(BIG))
    with isolated(True):
        native = framework.asarray(array, np.dtype(np.float64))
        assert pointer(native) != pointer(array)
        assert pointer(jax.device_put(native)) == pointer(native)  # what XLA reads is that copy
    array[:] = 0
    assert native[5] == 5


def test_a_torch_tensor_is_copied_once(framework):
    torch = pytest.importorskip("torch")
    tensor = torch.arange(float(BIG), dtype=torch.float64)
    with isolated(True):
        native = framework.asarray(tensor, np.dtype(np.float64))
        assert pointer(native) != tensor.data_ptr()
        assert pointer(jax.device_put(native)) == pointer(native)
        half = framework.asarray(torch.ones(3, dtype=torch.bfloat16), None)
        assert half.dtype == jnp.bfloat16
    tensor[:] = 0
    assert native[5] == 5


def test_a_tensorflow_tensor_is_not_copied(framework):
    tf = pytest.importorskip("tensorflow")
    tensor = tf.constant(np.arange(float(BIG)))
    with isolated(True):
        native = framework.asarray(tensor, np.dtype(np.float64))
    assert pointer(native) == np.from_dlpack(tensor).ctypes.data


def test_outputs_and_gradients_leave_as_jaxs_and_are_read_in_place():
    adapter = adapt(lambda x: jnp.sin(x), GuestOptions())
    x = np.arange(float(BIG))
    output, residuals = adapter.forward(adapter.update([]), [x], CallSpec.of_arrays(1), (0,))
    (gradient,) = adapter.backward(residuals, [np.ones(BIG)], (0,))
    for native in (output, gradient):
        assert isinstance(native, jax.Array)
        assert pointer(adapter.border.view(native)) == pointer(native)
        assert not adapter.border.view(native).flags.writeable
        assert pointer(adapter.border.copy(native)) != pointer(native)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize(
    "function",
    [
        lambda p, x: p + x,
        lambda p, x: (p + x).reshape(2, 2).T.T.reshape(4),
        lambda p, x: jax.jit(lambda q: q)(p) + x,
        lambda p, x: jnp.where(True, p, x) * 1,
        lambda p, x: jax.checkpoint(lambda q: q + x)(p),
    ],
)
def test_a_gradient_that_a_host_may_keep_shares_no_memory_with_what_it_was_made_of(function, jit):
    f = gb.bridge(function, params=np.arange(4.0), backend="jax", jit=jit)
    p, x, c = np.arange(4.0), np.ones(4), np.full(4, 3.0)
    call, *_ = f._bind((p,), False, (x,), {}, None)
    run = node_of(call, {}, lent=True).evaluate([p, x], (0, 1))
    found = run.pull([c], (0, 1))
    again = run.pull([c], (0, 1))
    kept = [p, x, c, *again, *run.outputs]
    assert not any(np.shares_memory(g, k) for g in found for k in kept)
    assert not np.shares_memory(*found)
