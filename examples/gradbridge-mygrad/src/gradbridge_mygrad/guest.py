"""MyGrad as a guest: functions of its tensors, with or without a tree of parameters."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradbridge.extend import (
    FunctionalAdapter,
    FunctionModel,
    GuestOptions,
    OptionError,
    refuse_unknown_options,
)
from gradbridge_mygrad.framework import MyGradFramework

DTYPES = ("float64", "float32")

# MyGrad guards the memory of arrays that are in use in a global table, so its code takes turns.
_turns = threading.RLock()


def adapt(model: Any, options: GuestOptions) -> FunctionalAdapter:
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
    framework = MyGradFramework()
    dtype = None if options.dtype is None else np.dtype(options.dtype)
    return FunctionalAdapter(framework, MyGradFunction(framework, model, options, dtype))


class MyGradFunction(FunctionModel):
    """A function of MyGrad's tensors."""

    def isolated(
        self, thunk: Callable[[], Any], inputs: Sequence[Any], noise: int | None, record: bool
    ) -> Any:
        with _turns:
            return thunk()
