"""Flax NNX modules: split once into structure, parameters and state, merged anew inside each trace."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optree
from flax import nnx

from gradbridge.errors import GradbridgeWarning, NotDifferentiableError, OptionError, UnknownModelError
from gradbridge.layout import ParameterLayout, dtype_name
from gradbridge.protocol import Array, GuestOptions
from gradbridge.signatures import argument_names
from gradbridge_jax.adapters import ArrayAdapter
from gradbridge_jax.arrays import cast_floating, compute_device, floating_dtype, own_device
from gradbridge_jax.guest import refuse_options
from gradbridge_jax.isolation import isolated, key_like
from gradbridge_jax.parameters import common_dtype, flat_of


class NNXAdapter(ArrayAdapter):
    """An NNX module: its floating ``nnx.Param`` are the params, all other variables are its state.

    The state is as it was when bridged. With ``mode="train"`` it moves, once per forward, except
    for the random streams, which are made from the call's noise. In ``mode="eval"`` it stays.
    """

    def __init__(self, module: nnx.Module, options: GuestOptions) -> None:
        label = type(module).__name__
        if options.params is not None:
            raise OptionError("params= belongs to functions; an NNX module brings its own parameters")
        refuse_options(options, ("vmap",), "is for Equinox modules and functions; NNX modules take batches")
        refuse_options(options, ("state",), "belongs to Equinox modules; an NNX module holds its own")
        self._module = module  # the user's own: read, never written to
        self.argument_names = argument_names(module)
        self._dtype_asked = floating_dtype(options.dtype)
        self._key: str | None = options.extra.get("key")
        self._train = options.mode == "train"
        with isolated(True, False):
            own = _parted(module, label)
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
            twin = nnx.merge(own.graph, own.params_tree, own.state_tree)
            _set_dtype(twin, self._dtype_asked)
            twin.train() if self._train else twin.eval()
            self._graph, *_ = nnx.split(twin, _trained, ...)
            state = [cast_floating(leaf, self._dtype_asked) for leaf in own.state]
        dtypes = [self._dtype_asked or np.dtype(leaf.dtype) for leaf in own.params]
        self._params_def, self._state_def, self._state_paths = own.params_def, own.state_def, own.state_paths
        self._random = own.random
        self.draws = self._key is not None or bool(self._random)
        self.moving = self._train and len(state) > len(self._random)
        super().__init__(
            label,
            layout,
            dtypes,
            common_dtype(dtypes),
            compute_device(options.device) or own_device(own.params),
            options.extra.get("jit", "auto"),
            state,
        )
        if not self._train:
            _notice_train_mode(module, label)

    def params(self) -> Array:
        """See `Adapter.params`: read from the user's module as it is now."""
        with isolated(True, False):
            return flat_of(self.layout, _parted(self._module, self.label).params)

    def model(self, params: Array) -> nnx.Module:
        """See `Adapter.model`. In the dtype and on the device of the computation, in the user's mode."""
        with isolated(self.is_wide(()), False):
            own = _parted(self._module, self.label)
            pieces = [jax.device_put(np.array(p), self._device) for p in self.cut(self.update(params))]
            state = jax.tree.unflatten(self._state_def, self.state())
            module: nnx.Module = nnx.merge(own.graph, jax.tree.unflatten(self._params_def, pieces), state)
            _set_dtype(module, self._dtype_asked)
        return module

    def compute(
        self,
        pieces: Sequence[jax.Array],
        inputs: list[Any],
        structure: optree.PyTreeSpec,
        key: jax.Array | None,
        state: tuple[Any, ...],
    ) -> tuple[Any, tuple[Any, ...]]:
        """Call a module merged from these arrays."""
        args, kwargs = optree.tree_unflatten(structure, inputs)
        given = list(state)
        if key is not None:
            for index, is_key in self._random.items():
                given[index] = key_like(state[index], key, index) if is_key else jnp.zeros_like(state[index])
        if self._key is not None and key is not None:
            kwargs = {**kwargs, self._key: nnx.Rngs(jax.random.fold_in(key, len(given)))}
        module = nnx.merge(
            self._graph,
            jax.tree.unflatten(self._params_def, list(pieces)),
            jax.tree.unflatten(self._state_def, given),
        )
        output = module(*args, **kwargs)
        if not self.moving:
            return output, ()
        rest = _Parts(module).state_tree
        # By path: a module may make variables as it runs (`sow`), which nobody asked for.
        after = {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(rest)[0]}
        return output, tuple(
            old if index in self._random else after.get(path, old)
            for index, (path, old) in enumerate(zip(self._state_paths, state))
        )


class _Parts:
    """A module as NNX splits it, and the leaves of its two halves."""

    def __init__(self, module: nnx.Module) -> None:
        graph, params_tree, state_tree = nnx.split(module, _trained, ...)  # type: ignore[misc]
        self.graph: Any = graph
        self.params_tree: Any = params_tree
        self.state_tree: Any = state_tree
        found, self.params_def = jax.tree_util.tree_flatten_with_path(self.params_tree)
        self.paths, self.params = [path for path, _ in found], [leaf for _, leaf in found]
        rest, self.state_def = jax.tree_util.tree_flatten_with_path(self.state_tree)
        self.state_paths, self.state = [_name(path) for path, _ in rest], [leaf for _, leaf in rest]
        #: {index in the state: whether it is a key (or a count of draws)}.
        self.random: dict[int, bool] = {}
        index = 0
        for variable in jax.tree.leaves(self.state_tree, is_leaf=lambda v: isinstance(v, nnx.Variable)):
            if isinstance(variable, nnx.RngState):
                self.random[index] = isinstance(variable, nnx.RngKey)
            index += len(jax.tree.leaves(variable))


def _parted(module: nnx.Module, label: str) -> _Parts:
    try:
        return _Parts(module)
    except Exception as error:
        raise UnknownModelError(
            f"{label} cannot be split into its parameters and state ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); keep modules in nnx.List and arrays in nnx.Variable"
        ) from error


def _trained(path: Any, value: Any) -> bool:
    return isinstance(value, nnx.Param) and all(
        jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(value)
    )


def _name(path: Any) -> str:
    """``layers/0/kernel``: the path without the step into the variable."""
    name: str = jax.tree_util.keystr(path, simple=True, separator="/")
    return name.removesuffix("/value").removesuffix("/raw_value")


def _set_dtype(module: nnx.Module, dtype: Any) -> None:
    """Layers that were told a dtype to compute in are told ours instead."""
    if dtype is None:
        return
    for _, part in nnx.iter_modules(module):
        told = getattr(part, "dtype", None)
        if told is not None and jnp.issubdtype(told, jnp.floating):
            part.dtype = dtype  # type: ignore[attr-defined]


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
        warnings.warn(
            f"{label} is in train mode and has {', '.join(kinds)}; the bridge evaluates it in eval mode, without "
            f"random masks and with the stored statistics. Pass mode='train' for the other, or call .eval() on "
            f"the model to be rid of this notice",
            GradbridgeWarning,
            stacklevel=5,
        )
