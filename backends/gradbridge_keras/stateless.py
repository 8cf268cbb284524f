"""Keras 3 models called functionally, on whichever backend Keras runs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import keras

from gradbridge.call_spec import CallSpec, argument_names
from gradbridge.errors import OptionError, UnknownModelError
from gradbridge.inspection import Stranger
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Array, GuestOptions
from gradbridge_keras.copies import value_of
from gradbridge_keras.snapshots import Snapshot
from gradbridge_keras.variables import unique


class StatelessModel:
    """To be mixed in before a guest's model of functions: a built Keras model in eval mode.

    Its trainable variables are the weights, the others stay as they were.

    Args:
        model: of Keras, or a snapshot of one.
        options: of the bridge.

    Raises:
        UnknownModelError: Keras runs on another backend, or the model is not built.
        OptionError: mode="train".
    """

    #: Keras' name of the backend that it must run on, and what people call the framework.
    running: ClassVar[str]
    framework: ClassVar[str]

    layout: ParameterLayout
    label: str
    dtype: Any

    def __init__(self, model: Any, options: GuestOptions) -> None:
        running = keras.backend.backend()
        if running != self.running:
            raise UnknownModelError(
                f"{model.name} is a Keras model on Keras' {running} backend, and backend {self.running!r} needs it on "
                f"{self.framework}'s; leave backend= out, or start Python with KERAS_BACKEND={self.running}"
            )
        if options.params is not None:
            raise OptionError(f"params= belongs to functions; {model.name} brings its own parameters")
        if options.mode == "train":
            raise OptionError(
                f"{model.name} runs on Keras' {self.running} backend, whose noise a bridge cannot seed; use mode='eval', or "
                f"KERAS_BACKEND=tensorflow for mode='train'"
            )
        snapshot = model if isinstance(model, Snapshot) else Snapshot(model)
        self._snapshot = snapshot = snapshot.in_dtype(options.dtype)
        self._options = options
        super().__init__(  # type: ignore[call-arg]
            self._stateless, dataclasses.replace(options, params=self.weights())
        )
        own = snapshot.variables[: snapshot.roles.trained]
        self.layout = dataclasses.replace(self.layout, names=unique([v.path for v in own]))
        self.label = snapshot.name
        self.argument_names = argument_names(snapshot.as_it_was.call)
        self._is_checked = snapshot.dtype is None
        self._latest: CallSpec | None = None

    def weights(self) -> list[Array]:
        """Read from the user's model as it is now."""
        return [read(v) for v in self._snapshot.variables[: self._snapshot.roles.trained]]

    def native(self, weights: Sequence[Array]) -> Any:
        """A copy of the user's model that holds these weights."""
        return self._snapshot.native([*weights, *self._snapshot.fixed])

    def in_dtype(self, name: str) -> Self:
        snapshot = self._snapshot.in_dtype(name)
        if snapshot is self._snapshot:
            return self
        return type(self)(snapshot, dataclasses.replace(self._options, dtype=name))

    def strangers(self, residuals: Any) -> Sequence[Stranger]:
        return self._snapshot.strangers()

    def call(
        self, weights: Sequence[Any], inputs: list[Any], spec: CallSpec, extras: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        self._latest = spec
        return super().call(weights, inputs, spec, extras)  # type: ignore[misc]

    def isolated(
        self, thunk: Callable[[], Any], inputs: Sequence[Any], noise: int | None, record: bool
    ) -> Any:
        run = thunk if self._is_checked or noise is None else lambda: self._checked(thunk, inputs)
        return super().isolated(run, inputs, noise, record)  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Nothing in it is written to, and Keras copies models by their configs.
        memo[id(self)] = twin = copy.copy(self)
        return twin

    def twin(self, values: Sequence[Any]) -> Any:
        """The copy that a call is computed with.

        Args:
            values: natives for its variables.
        """
        return self._snapshot.twin()

    # -- private ------------------------------------------------------------------------------

    def _stateless(self, trainable: list[Any], *args: Any, **kwargs: Any) -> Any:
        values = (*trainable, *map(keras.ops.convert_to_tensor, self._snapshot.fixed))
        return self._snapshot.call(self.twin(values), values, args, kwargs)[0]

    def _checked(self, thunk: Callable[[], Any], inputs: Sequence[Any]) -> Any:
        result = thunk()
        spec = self._latest
        if spec is not None and spec.count == len(inputs):  # else another thread's call came between
            self._snapshot.compare(spec, inputs, _tensor)
            self._is_checked = True
        return result


def read(variable: Any) -> Array:
    """A variable's value, a new array; bfloat16, which NumPy lacks, widens."""
    value = value_of(variable)
    return value.astype("float32" if value.dtype.name == "bfloat16" else value.dtype)


def _tensor(array: Any, dtype: str) -> Any:
    """An array as a tensor of Keras' backend; floating ones in a dtype."""
    tensor = keras.ops.convert_to_tensor(array)
    return keras.ops.cast(tensor, dtype) if keras.backend.is_float_dtype(tensor.dtype) else tensor


def is_layer(value: Any) -> bool:
    """Whether it is a layer of Keras, or a model."""
    return isinstance(value, keras.Layer)
