"""Running a computation so that JAX's flags are neither changed nor trusted (law 9).

All of these are contexts of the present thread. Entering them costs about 2 µs a call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

try:
    from jax import enable_x64 as enable_x64
except ImportError:  # jax < 0.8
    from jax.experimental import enable_x64  # type: ignore[attr-defined, no-redef]

#: The generator whose keys every bridge draws its noise from, whatever the process prefers.
GENERATOR = "threefry2x32"


@contextmanager
def isolated(x64: bool, draws: bool) -> Iterator[None]:
    """A block that computes with or without 64-bit numbers, outside of any trace of the caller's.

    Args:
        x64: whether 64-bit numbers exist, whatever ``jax_enable_x64`` says.
        draws: whether random numbers are drawn, so that how they are drawn is pinned too.
    """
    # Without the first, a call under the caller's jax.jit, at constants, would become part of its trace.
    with jax.ensure_compile_time_eval(), enable_x64(x64):
        if draws:
            with jax.threefry_partitionable(True):
                yield
        else:
            yield


def key_bits(noise: int) -> np.ndarray:
    """The seed of a call as the two words of a key, (2,) uint32."""
    return np.array([noise >> 32 & 0xFFFFFFFF, noise & 0xFFFFFFFF], np.uint32)


def key_of(bits: jax.Array) -> jax.Array:
    """The words of a call's seed → its typed PRNG key."""
    key: jax.Array = jax.random.wrap_key_data(bits, impl=GENERATOR)
    return key


def key_like(old: jax.Array, key: jax.Array, index: int) -> jax.Array:
    """A key, or an array of keys, of the same generator and shape as `old`, derived from `key`.

    Args:
        old: a typed key, or the raw words of one.
        key: of this call.
        index: which of the model's keys it is.
    """
    own = jax.random.fold_in(key, index)
    if not jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
        return jax.random.bits(own, old.shape, old.dtype)
    fresh = jax.random.key(jax.random.bits(own, (), np.uint32), impl=jax.random.key_impl(old))
    keys: jax.Array = fresh if not old.shape else jax.random.split(fresh, old.shape)
    return keys
