"""Copies of Keras models, in their own dtype or another, that hold the same values.

A dtype is given to Keras when a layer is made, and an `InputLayer` of float32 casts its input to
float32 even if every layer computes in float64. So a model is rebuilt from its config, with every
dtype in it replaced.
"""

from __future__ import annotations

import copy
from typing import Any

import keras

from gradbridge.errors import GuestError, UnknownModelError

_FLOATS = ("float16", "bfloat16", "float32", "float64", "mixed_float16", "mixed_bfloat16")


def is_in_dtype(model: Any, dtype: str) -> bool:
    """Whether every layer of a model keeps its variables and computes in a dtype."""
    return all(
        layer.compute_dtype == layer.variable_dtype == dtype
        or not keras.backend.is_float_dtype(layer.compute_dtype)
        for layer in _layers(model)
    )


def copied(model: Any, dtype: str | None) -> Any:
    """A new model of the same class and values.

    Args:
        model: the user's, which is only read.
        dtype: of the copy; None keeps the model's own.

    Raises:
        UnknownModelError: it cannot be rebuilt in another dtype.
        GuestError: it cannot be copied.
    """
    try:
        twin = _rebuilt(model, dtype)
    except Exception as error:
        why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        if dtype is not None:
            raise UnknownModelError(
                f"{model.name} cannot be rebuilt in {dtype} from its config ({why}); leave dtype= out, build the "
                f"model in {dtype} (keras.config.set_dtype_policy), or give {type(model).__name__} a "
                f"get_config() that tells all arguments of its constructor"
            ) from error
        try:
            twin = copy.deepcopy(model)
        except Exception:
            raise GuestError(
                f"{model.name} cannot be copied from its config ({why}), and yours stays as it is; give "
                f"{type(model).__name__} a get_config() that tells all arguments of its constructor, or put "
                f"f.layout.unravel(params) into a model of your own"
            ) from error
    return twin


def _rebuilt(model: Any, dtype: str | None) -> Any:
    config = model.get_config()
    if dtype is not None:
        config = _with_dtype(config, dtype)
    classes = {type(layer).__name__: type(layer) for layer in _layers(model)}
    # The default policy belongs to the thread; layers made in a constructor take it.
    before = keras.config.dtype_policy()
    try:
        if dtype is not None:
            keras.config.set_dtype_policy(dtype)
        with keras.saving.custom_object_scope(classes):
            twin = type(model).from_config(config)
            if not twin.built or len(twin.variables) != len(model.variables):
                twin.build_from_config(model.get_build_config() or {})
    finally:
        if dtype is not None:
            keras.config.set_dtype_policy(before)
    # Trainable or not, in the order in which the layers made them: freezing a layer changes nothing.
    theirs, ours = list(model.variables), list(twin.variables)
    if [tuple(v.shape) for v in ours] != [tuple(v.shape) for v in theirs]:
        raise ValueError(
            f"the copy has variables of shapes {[tuple(v.shape) for v in ours]}, the model has "
            f"{[tuple(v.shape) for v in theirs]}"
        )
    for mine, its in zip(_layers(twin), _layers(model)):
        if mine.trainable != its.trainable:
            mine.trainable = its.trainable
    for mine, its in zip(ours, theirs):
        if dtype is not None and keras.backend.is_float_dtype(mine.dtype) and mine.dtype != dtype:
            raise ValueError(f"variable {its.path!r} stays {mine.dtype}")
        mine.assign(its.value)
    if [tuple(v.shape) for v in twin.trainable_variables] != [
        tuple(v.shape) for v in model.trainable_variables
    ]:
        raise ValueError("other variables of the copy are trainable than of the model")
    if dtype is not None and not is_in_dtype(twin, dtype):
        odd = next(layer for layer in _layers(twin) if not is_in_dtype(layer, dtype))
        raise ValueError(f"layer {odd.name!r} computes in {odd.compute_dtype}")
    return twin


def _with_dtype(config: Any, dtype: str) -> Any:
    """A config with every floating dtype in it replaced; integer ones (of indices) stay."""
    if isinstance(config, dict):
        return {
            key: dtype if key == "dtype" and _names_a_float(value) else _with_dtype(value, dtype)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_with_dtype(value, dtype) for value in config)
    return config


def _names_a_float(value: Any) -> bool:
    if isinstance(value, dict):
        value = value.get("config", {}).get("name")
    return value in _FLOATS


def _layers(model: Any) -> list[Any]:
    """The model and all layers within it, parents first."""
    return list(model._flatten_layers(include_self=True, recursive=True))
