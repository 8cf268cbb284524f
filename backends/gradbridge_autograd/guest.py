"""HIPS autograd as a guest: functions of ``autograd.numpy``, for other hosts to lift.

Any number of threads may evaluate and pull back at once, see `gradbridge_autograd.traces`. Only a
function that calls ``autograd.grad`` itself opens autograd's own traces, which are numbered for the
whole process: such a function should run in one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradbridge.errors import GradbridgeError, NotDifferentiableError, OptionError, UnknownModelError
from gradbridge.execution.functional import FunctionalAdapter
from gradbridge.functions import FunctionModel
from gradbridge.protocol import GuestOptions, refuse_unknown_options
from gradbridge.wording import described
from gradbridge_autograd.framework import AutogradFramework


def adapt(model: Callable[..., Any], options: GuestOptions) -> FunctionalAdapter:
    """Make an adapter of a function of ``autograd.numpy``: the guest half of backend ``autograd``.

    Args:
        model: ``fn(*inputs)``, or ``fn(parameter tree, *inputs)`` if `options.params` is given.
        options: `dtype` is what floating inputs and parameters are cast to. There are none
            beyond the common ones.

    Raises:
        OptionError: an option that it does not have, an unusable dtype, or a device.
        UnknownModelError: the model is not callable.
    """
    refuse_unknown_options("autograd", options.extra, ())
    if not callable(model):
        raise UnknownModelError(f"backend 'autograd' bridges functions, got {described(model)}")
    if options.device is not None:
        raise OptionError(
            f"backend 'autograd' computes where NumPy does and has no device, got {options.device!r}"
        )
    framework = AutogradFramework()
    dtype = framework.floating_dtype(options.dtype) if options.dtype is not None else None
    return FunctionalAdapter(framework, AutogradFunction(framework, model, options, dtype))


class AutogradFunction(FunctionModel):
    """A function of ``autograd.numpy``."""

    def common_dtype(self, dtypes: Sequence[Any]) -> Any:
        return np.result_type(*dtypes)

    def explain(self, error: Exception, inputs: Sequence[Any], doing: str = "") -> GradbridgeError:
        if isinstance(error, NotImplementedError) and "VJP of" in str(error):
            return NotDifferentiableError(
                f"{self.label} cannot be differentiated by autograd: {error}; use another function of "
                f"autograd.numpy there, or declare its VJP with autograd.extend.defvjp"
            )
        return super().explain(error, inputs, doing)
