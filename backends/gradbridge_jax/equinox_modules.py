"""Equinox modules: pytrees whose floating arrays are the params and whose other leaves are fixed."""

from __future__ import annotations

import inspect
import types
from collections.abc import Sequence
from typing import Any, Self

import equinox as eqx
import jax
import numpy as np

from gradbridge.call_spec import CallSpec, argument_names
from gradbridge.errors import OptionError
from gradbridge.notices import notice
from gradbridge.options import refuse_params
from gradbridge.protocol import Array, GuestOptions
from gradbridge_jax.arrays import cast_floating, floating_dtype
from gradbridge_jax.dtypes import InDtype
from gradbridge_jax.functions import by_rows
from gradbridge_jax.isolation import isolated
from gradbridge_jax.models import JaxModel
from gradbridge_jax.parameters import ParameterTree


class EquinoxModel(JaxModel):
    """An Equinox module, called as it is, or on each row with ``vmap=True``.

    An argument ``key`` of the module is given a key made from the call's noise, in train mode, or
    where the module insists on one. A stateful module (``state=…``) takes its state as the last
    argument and returns it; with ``mode="train"`` it moves once per forward.
    """

    def __init__(self, module: eqx.Module, options: GuestOptions) -> None:
        label = type(module).__name__
        refuse_params(options, "an Equinox module")
        if not callable(module):
            raise OptionError(
                f"{label} has no __call__; bridge a function of it: "
                f"gradbridge.bridge(lambda m, x: …, params=model, backend='jax')"
            )
        self._dtype = dtype = floating_dtype(options.dtype)
        self._module = module  # immutable
        self.argument_names = argument_names(module)
        is_train = options.mode == "train"
        self._vmap = bool(options.extra.get("vmap"))
        self._asked_key: str | None = options.extra.get("key")
        self._key = self._asked_key or _key_argument(module, is_train)
        with isolated(True):
            called = InDtype(dtype)(eqx.nn.inference_mode(module, value=not is_train))
            self._tree = tree = ParameterTree(called, dtype, label)
            first, self._state_def = jax.tree.flatten(options.extra.get("state"))
            self._first = [cast_floating(leaf, None) for leaf in first]  # its state as it was bridged
            state = [cast_floating(leaf, dtype) for leaf in first]
        self._has_state = bool(state)
        super().__init__(
            label,
            tree.layout,
            tree.dtypes,
            tree.common_dtype(),
            options,
            tree.arrays,
            (*tree.fixed, *state),
            has_key=self._key is not None,
            moves=is_train and self._has_state,
        )
        self._fixed = len(tree.fixed)
        if not is_train:
            _notice_train_mode(module, label)

    def _recast(self, dtype: np.dtype[Any]) -> None:
        tree, self._dtype = self._tree, dtype
        own = InDtype(dtype)(tree.fill(tree.arrays, tree.fixed))
        self._tree = tree = ParameterTree(own, dtype, self.label)
        self.state = (*tree.fixed, *(cast_floating(leaf, dtype) for leaf in self._first))

    def in_eval_mode(self) -> Self:
        key = self._asked_key or _key_argument(self._module, False)
        twin = self._evaluating(key)
        twin._key, twin.has_key, tree = key, key is not None, self._tree
        with isolated(True):
            called = eqx.nn.inference_mode(tree.fill(tree.arrays, tree.fixed))
            twin._tree = ParameterTree(called, self._dtype, self.label)
        return twin

    def readers(self) -> Sequence[Any]:
        return [
            self._module,
            *(f for f in jax.tree.leaves(self._module) if isinstance(f, types.FunctionType)),
        ]

    def weights(self) -> Sequence[Any]:
        return self._tree.arrays

    def native(self, weights: Sequence[Array]) -> Any:
        """The module in the user's mode; with its state, if it has one, as a pair."""
        filled = self._tree.fill(self.own_weights(weights), self.state[: self._fixed])
        with isolated(self.uses_x64(())):
            model = _in_the_mode_of(self._module, filled)
        if not self._has_state:
            return model
        return model, jax.tree.unflatten(self._state_def, self.state[self._fixed :])

    def call(
        self, weights: Sequence[Any], inputs: list[Any], spec: CallSpec, extras: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        key, state = self.opened(extras)
        module = self._tree.fill(weights, state[: self._fixed])

        def call(leaves: list[Any], key: Any) -> Any:
            args, kwargs = spec.bind(leaves)
            if self._key is not None:
                kwargs = {**kwargs, self._key: key}
            if not self._has_state:
                return module(*args, **kwargs)
            own = jax.tree.unflatten(self._state_def, state[self._fixed :])
            output, after = module(*args, own, **kwargs)
            return output, tuple(jax.tree.leaves(after))

        if not self._vmap:
            result = call(inputs, key)
        elif self._has_state:
            result = by_rows(call, inputs, key, axis_name="batch", out_axes=(0, None))
        else:
            result = by_rows(call, inputs, key, axis_name="batch")
        if not self._has_state:
            return result, ()
        output, after = result
        return output, ((*state[: self._fixed], *after) if self.moves else ())


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
        notice(
            f"{label} is in train mode and has {', '.join(kinds)}; the bridge evaluates it in inference mode, "
            f"without random masks and with the stored statistics. Pass mode='train' for the other, or use "
            f"eqx.nn.inference_mode(model) to silence this notice"
        )


def _matters(part: Any) -> bool:
    return bool(getattr(part, "p", True))
