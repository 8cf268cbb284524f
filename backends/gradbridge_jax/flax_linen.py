"""Flax Linen modules: ``apply`` with their variables, a bound module's own or those of ``params=``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import numpy as np
from flax import linen

from gradbridge.call_spec import CallSpec, argument_names
from gradbridge.errors import OptionError
from gradbridge.protocol import Array, GuestOptions
from gradbridge_jax.arrays import cast_floating, floating_dtype
from gradbridge_jax.dtypes import InDtype
from gradbridge_jax.isolation import isolated
from gradbridge_jax.models import JaxModel, refuse_options
from gradbridge_jax.parameters import ParameterTree


class LinenModel(JaxModel):
    """A Linen module: its collection ``params`` are the params, its other collections its state.

    Linen modules are told by the caller whether they train (``f(params, X, train=False)``). With
    ``mode="train"`` a call gets random streams made from its noise, and the state moves.
    """

    def __init__(self, module: linen.Module, options: GuestOptions) -> None:
        label = type(module).__name__
        refuse_options(options, ("vmap",), "is for Equinox modules and functions; Linen modules take batches")
        refuse_options(options, ("key", "state"), "is not needed for Linen modules: mode='train' gives both")
        variables = options.params
        if module.scope is not None and variables is None:
            module, variables = module.unbind()
        if variables is None:
            raise OptionError(
                f"a Linen module does not hold its parameters; bridge {label}(…).bind(variables), or give "
                f"params=variables, as {label}(…).init(…) returns them"
            )
        if "params" not in variables:
            variables = {"params": variables}
        dtype = floating_dtype(options.dtype)
        self._bridged, self._module = module, _in_dtype(module, dtype)
        self._train = options.mode == "train"
        self.argument_names = argument_names(module.__call__)
        self._collections = {name: tree for name, tree in variables.items() if name != "params"}
        with isolated(True):
            self._tree = tree = ParameterTree(variables["params"], dtype, f"the variables of {label}")
            rest, self._state_def = jax.tree.flatten(self._collections)
            self._first = [cast_floating(leaf, None) for leaf in rest]  # its state as it was bridged
            state = [cast_floating(leaf, dtype) for leaf in rest]
        self._collections = dict.fromkeys(self._collections)
        super().__init__(
            label,
            tree.layout,
            tree.dtypes,
            tree.common_dtype(),
            options,
            tree.arrays,
            (*tree.fixed, *state),
            has_key=self._train,
            moves=self._train and bool(state),
        )
        self._fixed = len(tree.fixed)

    def _recast(self, dtype: np.dtype[Any]) -> None:
        self._module = _in_dtype(self._bridged, dtype)
        self.state = (*self._tree.fixed, *(cast_floating(leaf, dtype) for leaf in self._first))

    def in_eval_mode(self) -> Self:
        twin = self._evaluating()
        twin._train = twin.has_key = False
        return twin

    def readers(self) -> Sequence[Any]:
        return (self._bridged,)

    def weights(self) -> Sequence[Any]:
        return self._tree.arrays

    def native(self, weights: Sequence[Array]) -> linen.Module:
        """The module bound to variables with these weights."""
        return self._module.bind(self._variables(self.own_weights(weights), self.state))

    def call(
        self, weights: Sequence[Any], inputs: list[Any], spec: CallSpec, extras: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        args, kwargs = spec.bind(inputs)
        key, state = self.opened(extras)
        variables = self._variables(weights, state)
        if not self._train:
            return self._module.apply(variables, *args, **kwargs), ()
        # Streams that have no key of their own are drawn from this one.
        rngs: Any = {"params": key}
        if not self.moves:
            return self._module.apply(variables, *args, rngs=rngs, **kwargs), ()
        names = list(self._collections)
        output, after = self._module.apply(variables, *args, rngs=rngs, mutable=names, **kwargs)
        moved = jax.tree.leaves({name: after.get(name, variables[name]) for name in names})
        return output, (*state[: self._fixed], *moved)

    def _variables(self, weights: Sequence[Any], state: Sequence[Any]) -> dict[str, Any]:
        rest = jax.tree.unflatten(self._state_def, state[self._fixed :])
        return {"params": self._tree.fill(weights, state[: self._fixed]), **rest}


def _in_dtype(module: linen.Module, dtype: np.dtype[Any] | None) -> linen.Module:
    """The module with what fixes a dtype among its fields, and theirs, told another one."""

    def cloned(value: Any) -> Any:
        if not isinstance(value, linen.Module):
            return NotImplemented
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        new = {name: told(old) for name, old in fields.items() if name not in ("parent", "name")}
        changes = {name: item for name, item in new.items() if item is not fields[name]}
        return value.clone(**changes) if changes else value

    told = InDtype(dtype, cloned)
    own: linen.Module = told(module)
    return own
