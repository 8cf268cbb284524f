"""JAX as a guest: functions of arrays, and the modules of Flax and Equinox."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optree

from gradbridge.errors import OptionError, UnknownModelError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Array, GuestOptions, refuse_unknown_options
from gradbridge.signatures import argument_names
from gradbridge_jax.adapters import ArrayAdapter
from gradbridge_jax.arrays import compute_device, floating_dtype, own_device
from gradbridge_jax.isolation import isolated
from gradbridge_jax.parameters import ParameterTree

OPTIONS = ("jit", "key", "vmap", "state")

# Imported when such a model comes: JAX works without Flax and Equinox.
_MODULES = {
    "flax.nnx.module.Module": "gradbridge_jax.flax_nnx:NNXAdapter",
    "flax.linen.module.Module": "gradbridge_jax.flax_linen:LinenAdapter",
    "equinox._module._module.Module": "gradbridge_jax.equinox_modules:EquinoxAdapter",
    "equinox._module.Module": "gradbridge_jax.equinox_modules:EquinoxAdapter",
    "gradbridge_jax.architectures.Network": "gradbridge_jax.architectures:NetworkAdapter",
}


def adapt(model: Any, options: GuestOptions) -> ArrayAdapter:
    """Make an adapter of a function or module: the guest half of backend ``jax``.

    A model without a dtype of its own (a function without parameters) computes in that of its
    inputs: float64 NumPy arrays are computed in float64, whatever ``jax_enable_x64`` says. Input
    leaves that are no arrays (strings, Python numbers, functions) are compiled in, once for each
    value; pass an array where the value changes from call to call.

    Args:
        model: a Flax NNX module, an Equinox module, a Linen module that is bound or comes with
            its variables as `options.params`, or a callable; with `options.params`, a callable
            of (parameter tree, *arrays).
        options: besides the common ones:
            jit: ``"auto"`` compiles, and runs step by step from the first time that the model
                asks for an array's value (Python's ``if`` on data). True never does that, False
                always; False is also for a function that reads variables which change.
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
    """
    refuse_unknown_options("jax", options.extra, OPTIONS)
    jit = options.extra.get("jit", "auto")
    if jit not in (True, False, "auto"):
        raise OptionError(f"jit must be True, False or 'auto', got {jit!r}")
    for name in (f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__):
        if name in _MODULES:
            module, _, attribute = _MODULES[name].partition(":")
            made: ArrayAdapter = getattr(importlib.import_module(module), attribute)(model, options)
            return made
    if any(cls.__module__.startswith("keras.") for cls in type(model).__mro__):
        from gradbridge_jax.keras_models import KerasAdapter

        return KerasAdapter(model, options)
    if callable(model):
        return FunctionAdapter(model, options)
    raise UnknownModelError(
        f"backend 'jax' bridges functions and the modules of Flax and Equinox, got a {type(model).__name__}"
    )


def refuse_options(options: GuestOptions, names: Sequence[str], reason: str) -> None:
    """Raise for options of this backend that mean nothing to one kind of model.

    Raises:
        OptionError: one of them was given.
    """
    for name in names:
        if options.extra.get(name) is not None:
            raise OptionError(f"option {name!r} {reason}")


class FunctionAdapter(ArrayAdapter):
    """A callable of arrays, with or without a tree of parameters as its first argument."""

    def __init__(self, function: Callable[..., Any], options: GuestOptions) -> None:
        refuse_options(options, ("state",), "belongs to Equinox modules")
        label = getattr(function, "__name__", type(function).__name__)
        dtype, device = floating_dtype(options.dtype), compute_device(options.device)
        self._function = function
        self.argument_names = argument_names(function, skip=int(options.params is not None))
        self._key: str | None = options.extra.get("key")
        self._vmap = bool(options.extra.get("vmap"))
        self.draws = self._key is not None
        self._tree: ParameterTree | None = None
        layout, dtypes, fixed = ParameterLayout.empty(), [], ()
        if options.params is not None:
            with isolated(True, False):
                self._tree = tree = ParameterTree(options.params, dtype, f"params= of {label}")
            layout, dtypes, fixed = tree.layout, tree.dtypes, tree.fixed
            dtype, device = tree.common_dtype(), device or own_device(tree.arrays)
        super().__init__(label, layout, dtypes, dtype, device, options.extra.get("jit", "auto"), fixed)

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self._tree.present.copy() if self._tree is not None else np.empty(0)

    def model(self, params: Array) -> Callable[..., Any]:
        """See `Adapter.model`: the function of arrays with these parameters filled in."""
        function = self._function
        if self._tree is None:
            return function
        tree = self._tree.fill(self.native(params), self.state())
        return lambda *args, **kwargs: function(tree, *args, **kwargs)

    def native(self, params: Array) -> list[jax.Array]:
        """Parameters as arrays of JAX's own, in the dtype of the computation."""
        with isolated(self.is_wide(()), False):
            return [jax.device_put(np.array(piece), self._device) for piece in self.cut(self.update(params))]

    def compute(
        self,
        pieces: Sequence[jax.Array],
        inputs: list[Any],
        structure: optree.PyTreeSpec,
        key: jax.Array | None,
        state: tuple[Any, ...],
    ) -> tuple[Any, tuple[Any, ...]]:
        """Call the function."""

        def call(leaves: list[Any], key: Any) -> Any:
            args, kwargs = optree.tree_unflatten(structure, leaves)
            if self._key is not None:
                kwargs = {**kwargs, self._key: key}
            if self._tree is not None:
                args = (self._tree.fill(pieces, state), *args)
            return self._function(*args, **kwargs)

        return (by_rows(call, inputs, key) if self._vmap else call(inputs, key)), ()


def by_rows(call: Callable[[list[Any], Any], Any], inputs: list[Any], key: Any, **axes: Any) -> Any:
    """Map a call over the first axis of its array inputs, each row with a key of its own.

    Args:
        call: (leaves, key) ↦ outputs.
        inputs: leaves; those that are no arrays are the same for every row.
        key: of the whole call, or None.
        **axes: keyword arguments of ``jax.vmap``.

    Raises:
        OptionError: no input has rows.
    """
    places = [i for i, leaf in enumerate(inputs) if hasattr(leaf, "ndim")]
    if not places or any(inputs[i].ndim == 0 for i in places):
        raise OptionError("vmap=True needs inputs with a first axis to map over; make each an array of rows")
    rows = inputs[places[0]].shape[0]
    keys = jax.random.split(key, rows) if key is not None else None

    def one(arrays: list[Any], key: Any) -> Any:
        leaves = list(inputs)
        for place, array in zip(places, arrays):
            leaves[place] = array
        return jax.tree.map(jnp.asarray, call(leaves, key))

    mapped = jax.vmap(one, in_axes=(0, None if key is None else 0), **axes)
    return mapped([inputs[i] for i in places], keys)
