"""tinygrad as a guest: its models, and functions of its tensors with or without a tree of parameters."""

from __future__ import annotations

from typing import Any

from tinygrad import Device

from gradbridge.extend import FunctionalAdapter, GuestOptions, OptionError, refuse_unknown_options
from gradbridge_tinygrad.framework import TinygradFramework
from gradbridge_tinygrad.isolation import turns
from gradbridge_tinygrad.models import TinygradFunction, TinygradModel, states


def adapt(model: Any, options: GuestOptions) -> FunctionalAdapter:
    """Make an adapter of a model or a function: the guest half of backend ``tinygrad``.

    Args:
        model: a callable object that holds its parameters, as tinygrad's models do; or a callable
            of tensors; with `options.params`, of (parameter tree, *tensors).
        options: `dtype` may be float64, float32 or float16; `device` is one of tinygrad's.

    Raises:
        OptionError: an option that it does not have, or a device that does not open.
    """
    refuse_unknown_options("tinygrad", options.extra, ())
    if not callable(model):
        raise OptionError(f"backend 'tinygrad' bridges callables, got a {type(model).__name__}")
    framework = TinygradFramework(_opened(options.device))
    dtype = None if options.dtype is None else framework.floating_dtype(options.dtype)
    with turns:
        params, buffers = ({}, {}) if options.params is not None else states(model)
        if options.mode == "train" and buffers:
            raise OptionError(
                f"backend 'tinygrad' keeps no statistics for a model, and {', '.join(buffers)} would move in "
                f"mode='train'; leave mode out"
            )
        kind = TinygradModel if params else TinygradFunction
        return FunctionalAdapter(framework, kind(framework, model, options, dtype))


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
