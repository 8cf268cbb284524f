"""Keras 3 models called functionally, on whichever backend Keras runs."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import keras

from gradbridge.call_spec import argument_names
from gradbridge.errors import OptionError, UnknownModelError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Array, GuestOptions
from gradbridge_keras.copies import copied
from gradbridge_keras.variables import Roles, called, unique


class StatelessModel:
    """To be mixed in before a guest's model of functions: a built Keras model in eval mode.

    Its trainable variables are the weights, the others stay as they were.

    Raises:
        UnknownModelError: Keras runs on another backend, or the model is not built.
        OptionError: mode="train", or a dtype that is not the model's.
    """

    #: Keras' name of the backend that it must run on, and what people call the framework.
    running: ClassVar[str]
    framework: ClassVar[str]

    layout: ParameterLayout
    label: str

    @staticmethod
    @abstractmethod
    def read(variable: Any) -> Array:
        """A variable's value, a new array."""

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
        if options.dtype not in (None, model.compute_dtype):
            raise OptionError(
                f"{model.name} computes in {model.compute_dtype}, and Keras casts to it in every layer; build it in "
                f"{options.dtype} (keras.config.set_dtype_policy) to compute in that"
            )
        if not model.built:
            raise UnknownModelError(
                f"{model.name} is not built, so it has no parameters yet; call it once first"
            )
        self._keras, self._roles = model, Roles(model)
        values, count = [self.read(v) for v in self._roles.of(model)], self._roles.trained
        self._fixed = values[count:]
        super().__init__(  # type: ignore[call-arg]
            self._stateless, dataclasses.replace(options, params=values[:count], dtype=None)
        )
        names = unique([v.path for v in model.trainable_variables])
        self.layout = dataclasses.replace(self.layout, names=names)
        self.label = model.name
        self.argument_names = argument_names(model.call)

    def weights(self) -> list[Array]:
        """Read from the user's model as it is now."""
        return [self.read(v) for v in self._roles.of(self._keras)[: self._roles.trained]]

    def native(self, weights: Sequence[Array]) -> Any:
        """A copy of the user's model that holds these weights."""
        twin = copied(self._keras, None)
        for v, value in zip(self._roles.of(twin), (*weights, *self._fixed), strict=True):
            v.assign(value)
        return twin

    def _stateless(self, trainable: list[Any], *args: Any, **kwargs: Any) -> Any:
        values = (*trainable, *map(keras.ops.convert_to_tensor, self._fixed))
        mapping = zip(self._roles.of(self._keras), values, strict=True)
        return called(self._keras, mapping, args, kwargs, training=False)[0]
