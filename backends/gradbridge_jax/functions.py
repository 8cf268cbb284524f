"""Callables of arrays, with or without a tree of parameters as their first argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbridge.call_spec import CallSpec, argument_names
from gradbridge.errors import OptionError
from gradbridge.framework import filled
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Array, GuestOptions
from gradbridge_jax.arrays import floating_dtype
from gradbridge_jax.dtypes import InDtype
from gradbridge_jax.isolation import isolated
from gradbridge_jax.models import JaxModel, refuse_options
from gradbridge_jax.parameters import ParameterTree


class FunctionModel(JaxModel):
    """A callable of arrays, with or without a tree of parameters as its first argument."""

    def __init__(self, function: Callable[..., Any], options: GuestOptions) -> None:
        refuse_options(options, ("state",), "belongs to Equinox modules")
        label = getattr(function, "__name__", type(function).__name__)
        dtype = floating_dtype(options.dtype)
        self._function = function
        self.argument_names = argument_names(function, skip=int(options.params is not None))
        self._key: str | None = options.extra.get("key")
        self._vmap = bool(options.extra.get("vmap"))
        self._tree: ParameterTree | None = None
        layout, dtypes, arrays, fixed = ParameterLayout.empty(), [], [], ()
        if options.params is not None:
            with isolated(True):
                own = InDtype(dtype)(options.params)
                self._tree = tree = ParameterTree(own, dtype, f"params= of {label}")
            layout, dtypes, arrays, fixed = tree.layout, tree.dtypes, tree.arrays, tree.fixed
            dtype = tree.common_dtype()
        super().__init__(label, layout, dtypes, dtype, options, arrays, fixed, self._key is not None)

    def _recast(self, dtype: np.dtype[Any]) -> None:
        if (tree := self._tree) is not None:
            own = InDtype(dtype)(tree.fill(tree.arrays, tree.fixed))
            self._tree = ParameterTree(own, dtype, f"params= of {self.label}")

    def readers(self) -> Sequence[Any]:
        return (self._function,)

    def owns(self, native: Any) -> bool:
        # It takes its parameters as an argument: others are constants, and meant (an anchor, say).
        return False

    def weights(self) -> Sequence[Any]:
        return self._tree.arrays if self._tree is not None else []

    def native(self, weights: Sequence[Array]) -> Any:
        function = self._function
        if self._tree is None:
            return function
        tree = self._tree.fill(self.own_weights(weights), self.state)
        return lambda *args, **kwargs: function(tree, *args, **kwargs)

    def call(
        self, weights: Sequence[Any], inputs: list[Any], spec: CallSpec, extras: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        key, state = self.opened(extras)

        def call(leaves: list[Any], key: Any) -> Any:
            args, kwargs = spec.bind(leaves)
            if self._key is not None:
                kwargs = {**kwargs, self._key: key}
            if self._tree is not None:
                args = (self._tree.fill(weights, state), *args)
            return self._function(*args, **kwargs)

        return (by_rows(call, inputs, key) if self._vmap else call(inputs, key)), ()


def by_rows(call: Callable[[list[Any], Any], Any], inputs: list[Any], key: Any, **axes: Any) -> Any:
    """Map a call over the first axis of its array inputs, each row with a key of its own.

    Args:
        call: (leaves, key) ↦ outputs.
        inputs: leaves; those that are not arrays are the same for every row.
        key: of the whole call, or None.
        **axes: keyword arguments of ``jax.vmap``.

    Raises:
        OptionError: no input has rows.
    """
    places = [i for i, leaf in enumerate(inputs) if hasattr(leaf, "ndim") and not _is_number(leaf)]
    if not places or any(inputs[i].ndim == 0 for i in places):
        raise OptionError("vmap=True needs inputs with a first axis to map over; make each an array of rows")
    rows = inputs[places[0]].shape[0]
    keys = jax.random.split(key, rows) if key is not None else None

    def one(arrays: list[Any], key: Any) -> Any:
        return jax.tree.map(jnp.asarray, call(filled(inputs, places, arrays), key))

    mapped = jax.vmap(one, in_axes=(0, None if key is None else 0), **axes)
    return mapped([inputs[i] for i in places], keys)


def _is_number(leaf: Any) -> bool:
    """Whether a leaf is a Python integer while it is traced: weak in its type, and without axes."""
    return bool(getattr(leaf, "weak_type", False)) and np.ndim(leaf) == 0
