"""Flax NNX modules: split once into structure, parameters and state, merged anew inside each trace."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gradbridge.call_spec import CallSpec, argument_names
from gradbridge.errors import NotDifferentiableError, UnknownModelError
from gradbridge.layout import ParameterLayout, dtype_name
from gradbridge.notices import notice
from gradbridge.options import refuse_params
from gradbridge.protocol import Array, GuestOptions
from gradbridge.wording import in_short
from gradbridge_jax.arrays import cast_floating, floating_dtype
from gradbridge_jax.dtypes import InDtype
from gradbridge_jax.isolation import isolated, key_like
from gradbridge_jax.models import JaxModel, refuse_options
from gradbridge_jax.parameters import common_dtype


class NNXModel(JaxModel):
    """An NNX module: its floating ``nnx.Param`` are the params, all other variables are its state.

    The state is as it was when bridged. With ``mode="train"`` it moves, once per forward, except
    for the random streams, which are made from the call's noise. In ``mode="eval"`` it stays.
    """

    def __init__(self, module: nnx.Module, options: GuestOptions) -> None:
        label = type(module).__name__
        refuse_params(options, "an NNX module")
        refuse_options(options, ("vmap",), "is for Equinox modules and functions; NNX modules take batches")
        refuse_options(options, ("state",), "belongs to Equinox modules; an NNX module holds its own")
        self._module = module  # the user's own: read, never written to
        self.argument_names = argument_names(module)
        dtype = floating_dtype(options.dtype)
        self._key: str | None = options.extra.get("key")
        self._train = is_train = options.mode == "train"
        with isolated(True):
            own = _split(module, label)
            layout = ParameterLayout(
                tuple(map(_name, own.paths)),
                tuple(tuple(leaf.shape) for leaf in own.params),
                tuple(dtype_name(leaf) for leaf in own.params),
            )
            for name, leaf in zip(layout.names, own.params):
                if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
                    raise NotDifferentiableError(
                        f"parameter {name!r} of {label} is complex, and params are a real vector; keep the "
                        f"real and imaginary parts as two real parameters, and join them with jax.lax.complex"
                    )
            self._bridged = own
            self._graph, state = self._in_dtype(dtype)
        self._params_def, self._state_def, self._state_paths = own.params_def, own.state_def, own.state_paths
        # Of random streams only the kind is kept: their values are made from each call's noise.
        self._random = {index: (state[index], is_key) for index, is_key in own.random.items()}
        dtypes = [dtype or np.dtype(leaf.dtype) for leaf in own.params]
        super().__init__(
            label,
            layout,
            dtypes,
            common_dtype(dtypes),
            options,
            own.params,
            self._moving(state),
            has_key=self._key is not None or bool(self._random),
            moves=is_train and len(state) > len(self._random),
        )
        # In eval mode the first trace tells: most layers with random streams leave them alone there.
        self.draws = (is_train and self.draws) or self._key is not None
        if not is_train:
            _notice_train_mode(module, label)

    def _in_dtype(self, dtype: np.dtype[Any] | None) -> tuple[Any, list[Any]]:
        """(structure, state) of the module as it was bridged, in another dtype and in the mode of the bridge."""
        own, self._asked = self._bridged, dtype
        twin = nnx.merge(own.graph, own.params_tree, own.state_tree)
        _set_dtype(twin, dtype)
        twin.train() if self._train else twin.eval()
        graph, *_ = nnx.split(twin, _is_trained, ...)
        return graph, [cast_floating(leaf, dtype) for leaf in own.state]

    def _moving(self, state: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(leaf for index, leaf in enumerate(state) if index not in self._random)

    def _recast(self, dtype: np.dtype[Any]) -> None:
        self._graph, state = self._in_dtype(dtype)
        self.state = self._moving(state)

    def in_eval_mode(self) -> Self:
        twin = self._evaluating(self._key)
        twin._train = False
        with isolated(True):
            twin._graph, _ = twin._in_dtype(self._asked)
        return twin

    def readers(self) -> Sequence[Any]:
        own = self._bridged
        parts = [part for _, part in nnx.iter_modules(nnx.merge(own.graph, own.params_tree, own.state_tree))]
        functions = [f for part in parts for f in vars(part).values() if isinstance(f, types.FunctionType)]
        return [*(part for part in parts if not type(part).__module__.startswith("flax.")), *functions]

    def weights(self) -> Sequence[Any]:
        with isolated(True):
            return _split(self._module, self.label).params

    def native(self, weights: Sequence[Array]) -> nnx.Module:
        """In the dtype and on the device of the computation, in the user's mode."""
        own_weights = self.own_weights(weights)
        with isolated(self.uses_x64(())):
            own = _split(self._module, self.label)
            state = jax.tree.unflatten(self._state_def, self._whole_state(self.state, None))
            module: nnx.Module = nnx.merge(
                own.graph, jax.tree.unflatten(self._params_def, own_weights), state
            )
            _set_dtype(module, self._asked)
        return module

    def call(
        self, weights: Sequence[Any], inputs: list[Any], spec: CallSpec, extras: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        args, kwargs = spec.bind(inputs)
        key, state = self.opened(extras)
        if self._key is not None and key is not None:
            streams = jax.random.fold_in(key, len(self._state_paths))
            kwargs = {**kwargs, self._key: nnx.Rngs(streams)}
        before = self._whole_state(state, key)
        module = nnx.merge(
            self._graph,
            jax.tree.unflatten(self._params_def, list(weights)),
            jax.tree.unflatten(self._state_def, before),
        )
        output = module(*args, **kwargs)
        if not self.moves and (self.draws or not self._random):
            return output, ()
        _, _, rest = nnx.split(module, _is_trained, ...)  # type: ignore[misc]
        # By path: a module may make variables as it runs (`sow`), which nobody asked for.
        found = {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(rest)[0]}
        after = [found.get(path, old) for path, old in zip(self._state_paths, before)]
        self.draws = self.draws or any(after[index] is not before[index] for index in self._random)
        if not self.moves:
            return output, ()
        return output, tuple(leaf for index, leaf in enumerate(after) if index not in self._random)

    def _whole_state(self, state: Sequence[Any], key: jax.Array | None) -> list[Any]:
        """State that moves, and random streams made from the key of a call (without one: as they were)."""
        rest = iter(state)
        whole = []
        for index in range(len(self._state_paths)):
            old, is_key = self._random.get(index, (None, False))
            if index not in self._random:
                whole.append(next(rest))
            elif key is None:
                whole.append(old)
            else:
                whole.append(key_like(old, key, index) if is_key else jnp.zeros_like(old))
        return whole


class _Parts:
    """A module as NNX splits it, and the leaves of its two halves."""

    def __init__(self, graph: Any, params_tree: Any, state_tree: Any) -> None:
        self.graph, self.params_tree, self.state_tree = graph, params_tree, state_tree
        entries, self.params_def = jax.tree_util.tree_flatten_with_path(self.params_tree)
        self.paths, self.params = [path for path, _ in entries], [leaf for _, leaf in entries]
        rest, self.state_def = jax.tree_util.tree_flatten_with_path(self.state_tree)
        self.state_paths, self.state = [_name(path) for path, _ in rest], [leaf for _, leaf in rest]
        #: {index in the state: whether it is a key (or a count of draws)}.
        self.random: dict[int, bool] = {}
        index = 0
        for variable in jax.tree.leaves(self.state_tree, is_leaf=lambda v: isinstance(v, nnx.Variable)):
            if isinstance(variable, nnx.RngState):
                self.random[index] = isinstance(variable, nnx.RngKey)
            index += len(jax.tree.leaves(variable))


def _split(module: nnx.Module, label: str) -> _Parts:
    try:
        halves = nnx.split(module, _is_trained, ...)  # type: ignore[misc]
    except Exception as error:  # Flax's, or that of a module of the user's that flattens itself
        raise UnknownModelError(
            f"{label} cannot be split into its parameters and state ({in_short(error)}); "
            f"keep modules in nnx.List and arrays in nnx.Variable"
        ) from error
    return _Parts(*halves)


def _is_trained(path: Any, value: Any) -> bool:
    return isinstance(value, nnx.Param) and all(
        jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(value)
    )


def _name(path: Any) -> str:
    """``layers/0/kernel``: the path without the step into the variable."""
    name: str = jax.tree_util.keystr(path, simple=True, separator="/")
    return name.removesuffix("/value").removesuffix("/raw_value")


def _set_dtype(module: nnx.Module, dtype: np.dtype[Any] | None) -> None:
    """Tell all parts of a module that fix a dtype another one; in place, so no module of the user's."""
    told = InDtype(
        dtype, lambda value: value if isinstance(value, (nnx.Module, nnx.Variable)) else NotImplemented
    )
    for _, part in nnx.iter_modules(module):
        for name, value in told.attributes(part).items():
            setattr(part, name, value)


def _notice_train_mode(module: nnx.Module, label: str) -> None:
    kinds = sorted(
        {
            type(part).__name__
            for _, part in nnx.iter_modules(module)
            if getattr(part, "use_running_average", None) is False
            or (getattr(part, "deterministic", None) is False and getattr(part, "rate", None))
        }
    )
    if kinds:
        notice(
            f"{label} is in train mode and has {', '.join(kinds)}; the bridge evaluates it in eval mode, without "
            f"random masks and with the stored statistics. Pass mode='train' for the other, or call .eval() on "
            f"the model to silence this notice"
        )
