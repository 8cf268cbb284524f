"""Running a computation so that JAX's flags are neither changed nor trusted (law 9).

All of these are contexts of the present thread. Looking at the flags costs about 1.5 µs a step, entering
the contexts that are always entered 2 µs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_context as eval_context

try:
    from jax import enable_x64 as enable_x64
except ImportError:  # jax < 0.8
    from jax.experimental import enable_x64  # type: ignore[attr-defined, no-redef]

#: The generator whose keys every bridge draws its noise from, whatever the process prefers.
GENERATOR = "threefry2x32"

#: Flags that look for mistakes in a program and stop it there, or place its arrays: {flag: (its context, its
#: usual value, the value under which we compute where it has another)}. Our transfers are meant; a NaN is the
#: program's to judge; what looks into traces makes them anew each time; and a bridge has a device of its own.
_WATCHING: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
    "jax_transfer_guard_host_to_device": (jax.transfer_guard_host_to_device, None, "allow"),
    "jax_transfer_guard_device_to_device": (jax.transfer_guard_device_to_device, None, "allow"),
    "jax_transfer_guard_device_to_host": (jax.transfer_guard_device_to_host, None, "allow"),
    "jax_numpy_rank_promotion": (jax.numpy_rank_promotion, "allow", "allow"),
    "jax_numpy_dtype_promotion": (jax.numpy_dtype_promotion, "standard", "standard"),
    "jax_debug_nans": (jax.debug_nans, False, False),
    "jax_debug_infs": (jax.debug_infs, False, False),
    "jax_debug_key_reuse": (jax.debug_key_reuse, False, False),
    "jax_check_tracer_leaks": (jax.check_tracer_leaks, False, False),
    "jax_disable_jit": (jax.disable_jit, False, False),
    "jax_default_device": (jax.default_device, None, None),
}

# JAX has no context of its own that ends `jax.ensure_compile_time_eval`, in which a trace computes its constants
# at once, callbacks on constants included.
_folding = vars(jax.config).get("_value_holders", {}).get("eager_constant_folding")
if callable(_folding):
    _WATCHING["eager_constant_folding"] = (_folding, False, False)

#: Flags that decide what is computed: a bridge keeps those that it was made under.
_DECIDING: dict[str, Callable[[Any], Any]] = {
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_default_prng_impl": jax.default_prng_impl,
    "jax_threefry_partitionable": jax.threefry_partitionable,
}

#: Flags that decide, while a model is traced within a program of JAX's, whether its code may be written as it is.
_STRICT = ("jax_numpy_rank_promotion", "jax_numpy_dtype_promotion")

#: ``jax.config`` ↦ the present flags, those that watch and those that decide.
present_flags = attrgetter(*_WATCHING, *_DECIDING)


def usual_flags(draws: bool) -> tuple[Any, ...]:
    """`present_flags` as a bridge that is made now wants them.

    Args:
        draws: whether it draws random numbers from keys of its own, so that how they are drawn is pinned, too.
    """
    kept = {flag: getattr(jax.config, flag) for flag in _DECIDING}
    if draws:
        kept["jax_threefry_partitionable"] = True
    return (*(usual for _, usual, _ in _WATCHING.values()), *kept.values())


@contextmanager
def under_flags(wanted: tuple[Any, ...]) -> Iterator[None]:
    """A block under flags that are not the present ones."""
    deciding = zip(_DECIDING.values(), wanted[len(_WATCHING) :])
    ways = (*_WATCHING.values(), *((context, value, value) for context, value in deciding))
    with ExitStack() as stack:
        for (context, usual, value), present in zip(ways, present_flags(jax.config)):
            if present != usual:
                stack.enter_context(context(value))
        yield


@contextmanager
def flags_within(wanted: tuple[Any, ...]) -> Iterator[None]:
    """A block of a program of the caller's under those flags of `usual_flags` that decide what is computed in it."""
    deciding = zip(_DECIDING.items(), wanted[len(_WATCHING) :])
    ways = {flag: (context, value) for (flag, context), value in deciding}
    ways.update({flag: (_WATCHING[flag][0], _WATCHING[flag][1]) for flag in _STRICT})
    with ExitStack() as stack:
        for flag, (context, value) in ways.items():
            if getattr(jax.config, flag) != value:
                stack.enter_context(context(value))
        yield


@contextmanager
def isolated(x64: bool) -> Iterator[None]:
    """A block that computes with or without 64-bit numbers, outside of any trace of the caller's.

    Args:
        x64: whether 64-bit numbers exist, whatever ``jax_enable_x64`` says.
    """
    # Without the first, a call under the caller's jax.jit, at constants, would become part of its trace.
    with eval_context(), enable_x64(x64), under_flags(usual_flags(False)):
        yield


def key_bits(noise: int) -> np.ndarray:
    """The seed of a call as the two words of a key, (2,) uint32."""
    return np.array([noise >> 32 & 0xFFFFFFFF, noise & 0xFFFFFFFF], np.uint32)


def key_of(bits: jax.Array) -> jax.Array:
    """The words of a call's seed → its typed PRNG key."""
    key: jax.Array = jax.random.wrap_key_data(bits, impl=GENERATOR)
    return key


def bits_of(array: jax.Array) -> jax.Array:
    """The words of a typed key; any other array itself."""
    return jax.random.key_data(array) if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else array


def of_bits(array: Any, like: jax.Array) -> jax.Array:
    """What `bits_of` gave, as an array of the dtype, and a key of the kind, of another."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    return jnp.asarray(array, like.dtype)


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
