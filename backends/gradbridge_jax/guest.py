"""JAX as a guest: functions of arrays, and the modules of Flax and Equinox."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from gradbridge.errors import UnknownModelError
from gradbridge.execution.functional import FunctionalAdapter
from gradbridge.option_values import ANYTHING, FLAG, TEXT, one_of
from gradbridge.protocol import GuestOptions, refuse_unknown_options
from gradbridge.wording import described
from gradbridge_jax.framework import JaxFramework
from gradbridge_jax.functions import FunctionModel
from gradbridge_jax.models import JaxModel
from gradbridge_jax.runtime import RUNTIME

OPTIONS = {
    "jit": one_of(True, False, "auto"),
    "key": TEXT,
    "vmap": FLAG,
    "state": ANYTHING,
}

# Imported when such a model comes: JAX works without Flax and Equinox.
_MODULES = {
    "flax.nnx.module.Module": "gradbridge_jax.flax_nnx:NNXModel",
    "flax.linen.module.Module": "gradbridge_jax.flax_linen:LinenModel",
    "equinox._module._module.Module": "gradbridge_jax.equinox_modules:EquinoxModel",
    "equinox._module.Module": "gradbridge_jax.equinox_modules:EquinoxModel",
    "gradbridge_jax.architectures.Network": "gradbridge_jax.architectures:NetworkModel",
    "keras": "gradbridge_jax.keras_models:KerasModel",
}


def adapt(model: Any, options: GuestOptions) -> FunctionalAdapter:
    """Make an adapter of a function or module: the guest half of backend ``jax``.

    A model without a dtype of its own (a function without parameters) computes in that of its
    inputs: float64 NumPy arrays are computed in float64, whatever ``jax_enable_x64`` says. Input
    leaves that are not arrays (strings, booleans, functions) are compiled in, once for each value; so
    are Python integers where the model asks for their values (in a shape, a ``range``, an ``if``).

    Args:
        model: a Flax NNX module, an Equinox module, a Linen module that is bound or comes with
            its variables as `options.params`, or a callable; with `options.params`, a callable
            of (parameter tree, *arrays).
        options: besides the common ones:
            jit: ``"auto"`` compiles, and runs step by step from the first time that the model
                asks for an array's value (Python's ``if`` on data). True never does that, False
                always; False is also for a function that reads what changes and has no name in its code.
            key: name of the keyword argument by which the model takes a PRNG key; each call is
                given one made from the bridge's own seed. Equinox modules that have an argument
                ``key`` need not say so; an NNX module gets ``nnx.Rngs``.
            vmap: True to map over the first axis of every array input (an Equinox module takes
                one row).
            state: the ``equinox.nn.State`` of a stateful Equinox module, which takes it as its
                last argument and returns (output, state).

    Raises:
        OptionError: an option that it does not have, or an unusable value.
        UnknownModelError: neither a module nor callable.
        ForkError: JAX was started before this process was forked.
    """
    RUNTIME.require()
    refuse_unknown_options("jax", options.extra, OPTIONS)
    jit = options.extra.get("jit", "auto")
    kind = _model_class(model)
    if kind is None:
        raise UnknownModelError(
            f"backend 'jax' bridges functions and the modules of Flax and Equinox, got {described(model)}"
        )
    made = kind(model, options)
    return FunctionalAdapter(JaxFramework(made.label, jit, made.device, made.owns), made)


def _model_class(model: Any) -> Callable[[Any, GuestOptions], JaxModel] | None:
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__]
    known = [name for name in names if name in _MODULES]
    if not known and any(name.startswith("keras.") for name in names):
        known = ["keras"]
    if known:
        module, _, attribute = _MODULES[known[0]].partition(":")
        kind: Callable[[Any, GuestOptions], JaxModel] = getattr(importlib.import_module(module), attribute)
        return kind
    return FunctionModel if callable(model) else None
