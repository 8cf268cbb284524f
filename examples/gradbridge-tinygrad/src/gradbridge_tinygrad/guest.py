"""tinygrad as a guest: its models, and functions of its tensors with or without a tree of parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
from tinygrad import Device, Tensor

from gradbridge import trees
from gradbridge.errors import OptionError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Array, GuestOptions, Signature, refuse_unknown_options
from gradbridge_tinygrad.adapters import TensorAdapter
from gradbridge_tinygrad.models import holding, states
from gradbridge_tinygrad.tensors import DTYPES, dtype_of, read, turns


def adapt(model: Any, options: GuestOptions) -> TensorAdapter:
    """Make an adapter of a model or a function: the guest half of backend ``tinygrad``.

    Args:
        model: a callable object that holds its parameters, as tinygrad's models do; or a callable
            of tensors; with `options.params`, of (parameter tree, *tensors).
        options: `dtype` may be float64, float32 or float16; `device` is one of tinygrad's.

    Raises:
        OptionError: an option that it does not have, or a device that does not open.
    """
    refuse_unknown_options("tinygrad", options.extra, ())
    if options.dtype is not None and options.dtype not in DTYPES:
        raise OptionError(f"dtype must be one of {', '.join(DTYPES)}, got {options.dtype!r}")
    if not callable(model):
        raise OptionError(f"backend 'tinygrad' bridges callables, got a {type(model).__name__}")
    device = _opened(options.device)
    training = options.mode == "train"
    with turns:
        params, buffers = ({}, {}) if options.params is not None else states(model)
        if training and buffers:
            raise OptionError(
                f"backend 'tinygrad' keeps no statistics for a model, and {', '.join(buffers)} would move in "
                f"mode='train'; leave mode out"
            )
        if params:
            return ModelAdapter(model, options.dtype, device, training)
        return FunctionAdapter(model, options.params, options.dtype, device, training)


def _opened(device: Any) -> str:
    """The name of a device that works here."""
    try:
        name = Device.canonicalize(device)
        Device[name]
    except Exception as error:
        raise OptionError(
            f"tinygrad does not open its device {device or '(default)'}: {type(error).__name__}: {error}; its CPU "
            f"device needs clang, and device='PYTHON' (for all of tinygrad: DEV=PYTHON) runs, slowly, anywhere"
        ) from error
    return str(name)


class FunctionAdapter(TensorAdapter):
    """A function of tensors."""

    def __init__(self, function: Any, tree: Any, dtype: str | None, device: str, training: bool) -> None:
        label = getattr(function, "__name__", type(function).__name__)
        layout, self._present = ParameterLayout.empty(), np.empty(0)
        self._function, self._has_params = function, tree is not None
        if self._has_params:
            leaves, structure = trees.flatten(tree)
            arrays = trees.unflatten(structure, [read(t) if isinstance(t, Tensor) else t for t in leaves])
            layout = ParameterLayout.of_tree(arrays)
            self._present = layout.ravel(arrays)
        super().__init__(label, layout, dtype, device, training)

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self._present.copy()

    def model(self, params: Array) -> Any:
        """See `Adapter.model`: the function with the parameters filled in."""
        if not self._has_params:
            return self._function
        function, tree = self._function, self._tree(self.update(params))
        return lambda *args, **kwargs: function(tree, *args, **kwargs)

    def compute(self, pieces: list[Tensor], leaves: list[Any], signature: Signature) -> Any:
        """See `TensorAdapter.compute`."""
        args, kwargs = signature.bind(leaves)
        return self._function(*((self._tree(pieces),) if self._has_params else ()), *args, **kwargs)

    def _tree(self, pieces: list[Tensor]) -> Any:
        assert self.layout.structure is not None
        return trees.unflatten(self.layout.structure, pieces)


class ModelAdapter(TensorAdapter):
    """A callable object with tensors in it: ``tinygrad.nn.state`` says which."""

    def __init__(self, model: Any, dtype: str | None, device: str, training: bool) -> None:
        self._model = model
        params, _ = states(model)
        shapes = tuple(tuple(int(n) for n in t.shape) for t in params.values())
        dtypes = tuple(dtype_of(t) for t in params.values())
        super().__init__(
            type(model).__name__, ParameterLayout(tuple(params), shapes, dtypes), dtype, device, training
        )

    def params(self) -> Array:
        """See `Adapter.params`."""
        with turns:
            return self.layout.ravel({name: read(tensor) for name, tensor in states(self._model)[0].items()})

    def model(self, params: Array) -> Any:
        """See `Adapter.model`: a copy of the user's."""
        with turns:
            return holding(self._model, self.update(params), own_buffers=True)

    def compute(self, pieces: list[Tensor], leaves: list[Any], signature: Signature) -> Any:
        """See `TensorAdapter.compute`. A copy per call, so that calls in flight do not meet."""
        args, kwargs = signature.bind(leaves)
        return holding(self._model, pieces)(*args, **kwargs)
