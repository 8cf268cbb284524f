"""Keras 3 models that run on Keras' own torch backend, called functionally."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import keras
import numpy as np

from gradbridge.errors import GuestError, OptionError, UnknownModelError
from gradbridge.protocol import Array, GuestOptions
from gradbridge.signatures import argument_names
from gradbridge_torch.guest import FunctionAdapter


class KerasAdapter(FunctionAdapter):
    """A built Keras model in eval mode; its trainable variables are the params, the others stay as they were.

    Raises:
        UnknownModelError: Keras runs on another backend, or the model is not built.
        OptionError: mode="train", or a dtype that is not the model's.
    """

    def __init__(self, model: Any, options: GuestOptions) -> None:
        running = keras.backend.backend()
        if running != "torch":
            raise UnknownModelError(
                f"{model.name} is a Keras model on Keras' {running} backend, and backend 'torch' needs it on "
                f"PyTorch's; leave backend= out, or start Python with KERAS_BACKEND=torch"
            )
        if options.params is not None:
            raise OptionError(f"params= belongs to functions; {model.name} brings its own parameters")
        if options.mode == "train":
            raise OptionError(
                f"{model.name} runs on Keras' torch backend, whose noise a bridge cannot seed; use mode='eval', or "
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
        self._fixed = [_value(v) for v in model.non_trainable_variables]
        params = [_value(v) for v in model.trainable_variables]
        super().__init__(self._stateless, dataclasses.replace(options, params=params, dtype=None))
        names = tuple(v.path for v in model.trainable_variables)
        if len(set(names)) == len(names):
            self.layout = dataclasses.replace(self.layout, names=names)
        self.label = model.name
        self.argument_names = argument_names(model.call)

    def params(self) -> Array:
        """See `Adapter.params`: read from the user's model as it is now."""
        return self.layout.ravel([_value(v) for v in self._keras.trainable_variables])

    def model(self, params: Array) -> Any:
        """See `Adapter.model`."""
        try:
            twin = keras.models.clone_model(self._keras)
        except Exception:
            try:
                twin = copy.deepcopy(self._keras)
            except Exception as error:
                raise GuestError(
                    f"{self.label} cannot be copied ({type(error).__name__}: {error})"
                ) from error
        for variable, value in zip(twin.trainable_variables, self.layout.unravel(params).values()):
            variable.assign(value)
        for variable, value in zip(twin.non_trainable_variables, self._fixed):
            variable.assign(value)
        return twin

    def _stateless(self, trainable: list[Any], *args: Any, **kwargs: Any) -> Any:
        fixed = [keras.ops.convert_to_tensor(value) for value in self._fixed]
        outputs, _ = self._keras.stateless_call(trainable, fixed, *args, training=False, **kwargs)
        return outputs


def _value(variable: Any) -> Array:
    v = variable
    return np.array(v.value.detach().cpu().numpy())
