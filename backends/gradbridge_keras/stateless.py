"""Keras 3 models called functionally, on whichever backend Keras runs."""

from __future__ import annotations

import copy
import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import keras

from gradbridge.call_spec import argument_names
from gradbridge.errors import GuestError, OptionError, UnknownModelError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Array, GuestOptions


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
        self._keras = model
        self._fixed = [self.read(v) for v in model.non_trainable_variables]
        params = [self.read(v) for v in model.trainable_variables]
        super().__init__(self._stateless, dataclasses.replace(options, params=params, dtype=None))  # type: ignore[call-arg]
        names = tuple(v.path for v in model.trainable_variables)
        if len(set(names)) == len(names):
            self.layout = dataclasses.replace(self.layout, names=names)
        self.label = model.name
        self.argument_names = argument_names(model.call)

    def weights(self) -> list[Array]:
        """Read from the user's model as it is now."""
        return [self.read(v) for v in self._keras.trainable_variables]

    def native(self, weights: Sequence[Array]) -> Any:
        """A copy of the user's model that holds these weights."""
        try:
            twin = keras.models.clone_model(self._keras)
        except Exception:
            try:
                twin = copy.deepcopy(self._keras)
            except Exception as error:
                raise GuestError(
                    f"{self.label} cannot be copied ({type(error).__name__}: {error})"
                ) from error
        for variable, value in zip(twin.trainable_variables, weights):
            variable.assign(value)
        for variable, value in zip(twin.non_trainable_variables, self._fixed):
            variable.assign(value)
        return twin

    def _stateless(self, trainable: list[Any], *args: Any, **kwargs: Any) -> Any:
        fixed = [keras.ops.convert_to_tensor(value) for value in self._fixed]
        outputs, _ = self._keras.stateless_call(trainable, fixed, *args, training=False, **kwargs)
        return outputs
