"""MyGrad as a guest: functions of its tensors, with or without a tree of parameters."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import mygrad as mg
import numpy as np

from gradbridge import trees
from gradbridge.errors import GradbridgeError, GuestError, OptionError, OutputError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter, Array, GuestOptions, Signature, refuse_unknown_options

DTYPES = ("float64", "float32")

# MyGrad guards the memory of arrays that are in use in a global table, so its code takes turns.
_turns = threading.RLock()


def adapt(model: Any, options: GuestOptions) -> FunctionAdapter:
    """Make an adapter of a function of tensors: the guest half of backend ``mygrad``.

    Args:
        model: a callable of tensors; with `options.params`, of (parameter tree, *tensors).
        options: `dtype` may be float64 or float32; there is no device.

    Raises:
        OptionError: an option that it does not have.
    """
    refuse_unknown_options("mygrad", options.extra, ())
    if options.device is not None:
        raise OptionError(f"backend 'mygrad' computes on the CPU and has no device, got {options.device!r}")
    if options.dtype is not None and options.dtype not in DTYPES:
        raise OptionError(f"dtype must be one of {', '.join(DTYPES)}, got {options.dtype!r}")
    if not callable(model):
        raise OptionError(f"backend 'mygrad' bridges callables, got a {type(model).__name__}")
    return FunctionAdapter(model, options)


class FunctionAdapter(Adapter):
    """A callable of MyGrad tensors."""

    def __init__(self, function: Callable[..., Any], options: GuestOptions) -> None:
        self.label = getattr(function, "__name__", type(function).__name__)
        self._function = function
        self._has_params = options.params is not None
        self.layout = ParameterLayout.of_tree(options.params) if self._has_params else ParameterLayout.empty()
        self._present = self.layout.ravel(options.params) if self._has_params else np.empty(0)
        own = self.layout.dtypes[0] if self.layout.dtypes else None
        self._dtype = options.dtype or (own if own in DTYPES else None)

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self._present.copy()

    def model(self, params: Array) -> Callable[..., Any]:
        """See `Adapter.model`: the function with the parameters filled in."""
        function = self._function
        if not self._has_params:
            return function
        tree = self._tree(self._pieces(params))
        return lambda *args, **kwargs: function(tree, *args, **kwargs)

    def update(self, params: Array) -> Array:
        """See `Adapter.update`. A copy: the caller may change its vector in place."""
        return params.copy()

    def forward(
        self, loaded: Array, inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """See `Adapter.forward`."""
        kept = [leaf.copy() if isinstance(leaf, np.ndarray) else leaf for leaf in inputs]
        call = _Call(loaded, kept, signature)
        with _turns:
            self._record(call)
            leaves, structure = trees.flatten(call.output)
            arrays = trees.unflatten(structure, [np.array(leaf.data) for leaf in leaves])
        return arrays, (call if wrt else None)

    def backward(self, residuals: _Call, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """See `Adapter.backward`. MyGrad takes its graph apart on the way back; it is recorded anew when asked again."""
        with _turns:
            if residuals.output is None:
                self._record(residuals)
            leaves, _ = trees.flatten(residuals.output)
            total = sum(
                (leaf * mg.tensor(c, dtype=leaf.dtype, constant=True)).sum()
                for leaf, c in zip(leaves, cotangents)
            )
            residuals.output = None
            if not total.constant:
                total.backward()
            found = []
            for position in wrt:
                gradients = [
                    _gradient(t)
                    for t in (residuals.pieces if position == 0 else [residuals.tensors[position - 1]])
                ]
                found.append(
                    np.concatenate([g.ravel() for g in gradients]) if position == 0 else gradients[0]
                )
            return found

    def _record(self, call: _Call) -> None:
        """Run the function on new tensors, so that MyGrad records its graph."""
        call.pieces = self._pieces(call.loaded)
        call.tensors = [self._tensor(leaf) for leaf in call.inputs]
        args, kwargs = call.signature.bind(call.tensors)
        if self._has_params:
            args = (self._tree(call.pieces), *args)
        try:
            call.output = self._function(*args, **kwargs)
        except GradbridgeError:
            raise
        except Exception as error:
            shapes = ", ".join(str(getattr(a, "shape", type(a).__name__)) for a in call.inputs)
            raise GuestError(
                f"{self.label} failed on inputs {shapes}: {type(error).__name__}: {error}"
            ) from error
        for index, leaf in enumerate(trees.flatten(call.output)[0]):
            if not isinstance(leaf, mg.Tensor):
                raise OutputError(
                    f"output {index} of {self.label} is a {type(leaf).__name__}; return MyGrad tensors only"
                )

    def _tensor(self, leaf: Any) -> Any:
        if not (isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f"):
            return leaf
        dtype = self._dtype or ("float64" if leaf.dtype.itemsize > 4 else "float32")
        return mg.tensor(np.array(leaf, dtype=dtype))

    def _pieces(self, params: Array) -> list[Any]:
        return [
            mg.tensor(np.array(array, dtype=self._dtype)) for array in self.layout.unravel(params).values()
        ]

    def _tree(self, pieces: list[Any]) -> Any:
        assert self.layout.structure is not None
        return trees.unflatten(self.layout.structure, pieces)


class _Call:
    """What one forward keeps: its arguments, and the recorded graph until it is used."""

    __slots__ = ("inputs", "loaded", "output", "pieces", "signature", "tensors")

    def __init__(self, loaded: Array, inputs: list[Any], signature: Signature) -> None:
        self.loaded, self.inputs, self.signature = loaded, inputs, signature
        self.pieces: list[Any] = []
        self.tensors: list[Any] = []
        self.output: Any = None


def _gradient(tensor: Any) -> Array:
    return np.zeros(tensor.shape) if tensor.grad is None else np.array(tensor.grad)
