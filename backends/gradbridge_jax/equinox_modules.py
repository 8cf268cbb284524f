"""Equinox modules: pytrees whose floating arrays are the params and whose other leaves are fixed."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optree

from gradbridge.errors import GradbridgeWarning, OptionError
from gradbridge.protocol import Array, GuestOptions
from gradbridge.signatures import argument_names
from gradbridge_jax.adapters import ArrayAdapter
from gradbridge_jax.arrays import cast_floating, compute_device, floating_dtype, own_device
from gradbridge_jax.guest import by_rows
from gradbridge_jax.isolation import isolated
from gradbridge_jax.parameters import ParameterTree


class EquinoxAdapter(ArrayAdapter):
    """An Equinox module, called as it is, or on each row with ``vmap=True``.

    An argument ``key`` of the module is given a key made from the call's noise, in train mode, or
    where the module insists on one. A stateful module (``state=…``) takes its state as the last
    argument and returns it; with ``mode="train"`` it moves once per forward.
    """

    def __init__(self, module: eqx.Module, options: GuestOptions) -> None:
        label = type(module).__name__
        if options.params is not None:
            raise OptionError("params= belongs to functions; an Equinox module brings its own parameters")
        if not callable(module):
            raise OptionError(
                f"{label} has no __call__; bridge a function of it: "
                f"gradbridge.bridge(lambda m, x: …, params=model, backend='jax')"
            )
        dtype = floating_dtype(options.dtype)
        self._module = module  # immutable
        self.argument_names = argument_names(module)
        self._train = options.mode == "train"
        self._vmap = bool(options.extra.get("vmap"))
        self._key: str | None = options.extra.get("key") or _key_argument(module, self._train)
        self.draws = self._key is not None
        with isolated(True, False):
            self._tree = tree = ParameterTree(
                eqx.nn.inference_mode(module, value=not self._train), dtype, label
            )
            state, self._state_def = jax.tree.flatten(options.extra.get("state"))
            state = [cast_floating(leaf, dtype) for leaf in state]
        self._has_state = bool(state)
        self.moving = self._train and self._has_state
        super().__init__(
            label,
            tree.layout,
            tree.dtypes,
            tree.common_dtype(),
            compute_device(options.device) or own_device(tree.arrays),
            options.extra.get("jit", "auto"),
            (*tree.fixed, *state),
        )
        self._fixed = len(tree.fixed)
        if not self._train:
            _notice_train_mode(module, label)

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self._tree.present.copy()

    def model(self, params: Array) -> Any:
        """See `Adapter.model`: the module in the user's mode; with its state, if it has one, as a pair."""
        with isolated(self.is_wide(()), False):
            pieces = [jax.device_put(np.array(p), self._device) for p in self.cut(self.update(params))]
            state = self.state()
            filled = self._tree.fill(pieces, state[: self._fixed])
            model = _in_the_mode_of(self._module, filled)
            if not self._has_state:
                return model
            return model, jax.tree.unflatten(self._state_def, state[self._fixed :])

    def compute(
        self,
        pieces: Sequence[jax.Array],
        inputs: list[Any],
        structure: optree.PyTreeSpec,
        key: jax.Array | None,
        state: tuple[Any, ...],
    ) -> tuple[Any, tuple[Any, ...]]:
        """Call a module made of these arrays."""
        module = self._tree.fill(pieces, state[: self._fixed])

        def call(leaves: list[Any], key: Any) -> Any:
            args, kwargs = optree.tree_unflatten(structure, leaves)
            if self._key is not None:
                kwargs = {**kwargs, self._key: key}
            if not self._has_state:
                return module(*args, **kwargs)
            own = jax.tree.unflatten(self._state_def, state[self._fixed :])
            output, after = module(*args, own, **kwargs)
            return output, tuple(jax.tree.leaves(after))

        if not self._vmap:
            found = call(inputs, key)
        elif self._has_state:
            found = by_rows(call, inputs, key, axis_name="batch", out_axes=(0, None))
        else:
            found = by_rows(call, inputs, key, axis_name="batch")
        if not self._has_state:
            return found, ()
        output, after = found
        return output, ((*state[: self._fixed], *after) if self.moving else ())


def _key_argument(module: eqx.Module, train: bool) -> str | None:
    parameter = inspect.signature(type(module).__call__).parameters.get("key")
    if parameter is None or not (train or parameter.default is parameter.empty):
        return None
    return "key"


def _inference_flags(module: Any) -> list[Any]:
    """The parts of a module that behave otherwise in training."""
    parts = jax.tree.leaves(module, is_leaf=lambda m: hasattr(m, "inference"))
    return [part for part in parts if hasattr(part, "inference")]


def _in_the_mode_of(own: Any, filled: Any) -> Any:
    """`filled` with the inference flags that `own` has."""
    if not _inference_flags(own):
        return filled
    flags = iter([part.inference for part in _inference_flags(own)])
    return eqx.tree_at(
        lambda m: [part.inference for part in _inference_flags(m)],
        filled,
        replace_fn=lambda _: next(flags),
        is_leaf=lambda leaf: leaf is None,
    )


def _notice_train_mode(module: eqx.Module, label: str) -> None:
    kinds = sorted(
        {type(part).__name__ for part in _inference_flags(module) if not part.inference and _matters(part)}
    )
    if kinds:
        warnings.warn(
            f"{label} is in train mode and has {', '.join(kinds)}; the bridge evaluates it in inference mode, "
            f"without random masks and with the stored statistics. Pass mode='train' for the other, or use "
            f"eqx.nn.inference_mode(model) to be rid of this notice",
            GradbridgeWarning,
            stacklevel=5,
        )


def _matters(part: Any) -> bool:
    return bool(getattr(part, "p", True))
