"""Functions of tensors as guests; and what all kinds of models share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import tensorflow as tf

from gradbridge import functions
from gradbridge.call_spec import CallSpec
from gradbridge.closures import surroundings
from gradbridge.errors import GradbridgeError, UnknownModelError
from gradbridge.inspection import Stranger
from gradbridge.layout import Array
from gradbridge.model import Model
from gradbridge.options import GuestOptions
from gradbridge_tensorflow.explain import explained
from gradbridge_tensorflow.framework import TensorFlow
from gradbridge_tensorflow.isolation import eagerly
from gradbridge_tensorflow.open_sizes import unrolled_loops
from gradbridge_tensorflow.tensors import compute_device, floating_dtype


class TensorFlowModel(Model):
    """A model that is computed by tensors, eagerly, on a device; None leaves that to TensorFlow."""

    device: str | None
    #: What its forwards move, where they do.
    _rest: list[tf.Tensor]

    def isolated(
        self, thunk: Callable[[], Any], inputs: Sequence[Any], noise: int | None, record: bool
    ) -> Any:
        return eagerly(self.device, thunk)

    def explain(self, error: Exception, inputs: Sequence[Any], doing: str = "") -> GradbridgeError:
        return explained(error, self.label, inputs, self.dtype, doing)

    def stranger(self, native: Any) -> Stranger:
        return Stranger(f"the tf.Variable {native.name!r} of shape {tuple(native.shape)}", False)

    def move(self, after: Sequence[Any]) -> None:
        self._rest = list(after)  # all at once

    def follow(self, other: Self) -> None:
        pairs = zip(other._rest, self._rest)
        self._rest = eagerly(
            None, lambda: [x if x.dtype == own.dtype else tf.cast(x, own.dtype) for x, own in pairs]
        )

    def statistics(self) -> Mapping[str, Array]:
        return {f"state.{i}": np.array(x) for i, x in enumerate(self._rest)} if self.moves else {}

    def set_statistics(self, arrays: Mapping[str, Array]) -> None:
        named = enumerate(self._rest)
        self._rest = eagerly(None, lambda: [tf.cast(arrays.get(f"state.{i}", x), x.dtype) for i, x in named])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # The user's model is read and never written to, and state is replaced: copies may share both.
        twin = copy.copy(self)
        memo[id(self)] = twin
        return twin


class FunctionModel(TensorFlowModel, functions.FunctionModel):
    """A callable of tensors, with or without a tree of parameters as its first argument."""

    def __init__(self, function: Callable[..., Any], options: GuestOptions) -> None:
        label = getattr(function, "__name__", type(function).__name__)
        self.device = compute_device(options.device)
        self.surroundings = surroundings(function)
        super().__init__(TensorFlow(label), function, options, floating_dtype(options.dtype))

    def in_dtype(self, name: str) -> Self:
        fixed = {
            spec.dtype.name
            for spec in tf.nest.flatten(getattr(self._function, "input_signature", None) or ())
            if isinstance(spec, tf.TensorSpec) and spec.dtype.is_floating and spec.dtype.name != name
        }
        if fixed:  # asked all the same, TensorFlow keeps the lock of such a function for good
            raise UnknownModelError(f"its input_signature is of {' and '.join(sorted(fixed))}")
        return super().in_dtype(name)

    def call(
        self, weights: Sequence[Any], inputs: list[Any], spec: CallSpec, extras: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        args, kwargs = spec.bind(inputs)
        if self._has_params:
            args = (self._tree(weights), *args)
        output = called(self._function, args, kwargs)
        return (tf.constant(output, self.dtype) if isinstance(output, (float, int)) else output), ()

    def _parameter(self, leaf: Any) -> Any:
        return tf.convert_to_tensor(leaf)


def called(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function of symbolic tensors; with AutoGraph if it branches on their values in Python.

    AutoGraph rewrites the source, so code that does not need it is spared it. A loop over rows that it
    cannot rewrite (one that fills a list, or whose variables change their kind) is unrolled.
    """
    try:
        return function(*args, **kwargs)
    except tf.errors.OperatorNotAllowedInGraphError:
        pass
    try:
        return tf.function(lambda: function(*args, **kwargs), autograph=True)()
    except (TypeError, ValueError, tf.errors.OperatorNotAllowedInGraphError) as error:
        try:
            with unrolled_loops():
                return function(*args, **kwargs)
        except tf.errors.OperatorNotAllowedInGraphError:
            raise error from None
