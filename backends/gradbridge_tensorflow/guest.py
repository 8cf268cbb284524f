"""TensorFlow as a guest: Keras 3 models, tf.Modules, and functions of tensors."""

from __future__ import annotations

import sys
from typing import Any

import tensorflow as tf

from gradbridge.errors import UnknownModelError
from gradbridge.execution.functional import FunctionalAdapter
from gradbridge.options import GuestOptions, refuse_params, refuse_unknown_options
from gradbridge.wording import described
from gradbridge_tensorflow.framework import TensorFlow
from gradbridge_tensorflow.functions import FunctionModel, TensorFlowModel
from gradbridge_tensorflow.isolation import eagerly
from gradbridge_tensorflow.modules import ModuleModel
from gradbridge_tensorflow.runtime import RUNTIME


def adapt(model: Any, options: GuestOptions) -> FunctionalAdapter:
    """Make an adapter of a model or a function: the guest half of backend ``tensorflow``.

    Args:
        model: a built Keras 3 model or layer on Keras' TensorFlow backend, a callable
            ``tf.Module``, or a callable of tensors; with `options.params`, a callable of
            (parameter tree, *tensors).
        options: there are none beyond the common ones.

    Raises:
        OptionError: an option that it does not have, or an unusable dtype or device.
        UnknownModelError: none of these, or a model that cannot be bridged.
        ForkError: TensorFlow was started before this process was forked.
    """
    RUNTIME.require()
    refuse_unknown_options("tensorflow", options.extra, ())
    source = eagerly(None, lambda: _model(model, options))
    return FunctionalAdapter(TensorFlow(source.label), source)


def _model(model: Any, options: GuestOptions) -> TensorFlowModel:
    if _is_keras(model) or isinstance(model, tf.Module):
        refuse_params(options, f"a {type(model).__name__}")
    if _is_keras(model):
        _refuse_other_keras_backends(model)
        # Keras takes a second to import: it is there already when there is a model of it.
        from gradbridge_tensorflow.keras_models import KerasModel

        return KerasModel(model, options)
    if any(cls.__module__.startswith("tf_keras.") for cls in type(model).__mro__):
        raise UnknownModelError(
            f"{type(model).__name__} is a model of tf_keras (Keras 2); build it with Keras 3 (import keras), or "
            f"bridge a function of its weights with params=…"
        )
    if isinstance(model, tf.Module):
        return ModuleModel(model, options)
    if callable(model) and not isinstance(model, type):
        return FunctionModel(model, options)
    raise UnknownModelError(
        f"backend 'tensorflow' bridges Keras models, tf.Modules and callables, got {described(model)}"
    )


def _is_keras(model: Any) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.layers.Layer)


def _refuse_other_keras_backends(model: Any) -> None:
    running = sys.modules["keras"].backend.backend()
    if running == "tensorflow":
        return
    advice = {
        "torch": "start Python with KERAS_BACKEND=tensorflow, or bridge a torch function of its weights: "
        "gradbridge.bridge(lambda w, x: model.stateless_call(w, [], x)[0], params=…, backend='torch')",
        "jax": "start Python with KERAS_BACKEND=tensorflow, or bridge a JAX function of its weights: "
        "gradbridge.bridge(lambda w, x: model.stateless_call(w, [], x)[0], params=…, backend='jax')",
    }
    raise UnknownModelError(
        f"{type(model).__name__} is a Keras model on Keras' {running} backend, and backend 'tensorflow' needs "
        f"it on TensorFlow's; {advice.get(running, 'start Python with KERAS_BACKEND=tensorflow')}"
    )
