"""What nearly every call, and every pull, of a host is that carries weights one by one: arrays alone, and one output.

As `Call.evaluate` and `Evaluation.pull`, without a step between where nothing unusual is asked; on a small model the
steps take longer than the model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from gradbridge.execution.evaluation import Call, Evaluation
from gradbridge.layout import Array, name_of
from gradbridge.protocol import Adapter

_shape = attrgetter("shape")


def evaluated(call: Call, values: Sequence[Any], wrt: tuple[int, ...]) -> Evaluation | None:
    """`call.evaluate(values, wrt)`; None where there is more to it."""
    settings, adapter = call.settings, call.adapter
    if (
        call.order
        or settings.observers.observed
        or settings.memory is not None
        or settings.draw_noise is not None
        or settings.checks_finite
        or any(call.arguments.vectors)
        or settings.audit.awaits_call(name_of(call.dtype), bool(wrt))
    ):
        return None
    for value in values:
        if type(value) is not np.ndarray:
            return None
    for i in wrt:
        if values[i].dtype.kind != "f":
            return None
    count = len(adapter.layout)
    outputs, residuals = adapter.evaluate(values[:count], values[count:], call.spec, wrt, False)
    if hasattr(outputs, "dtype"):
        array = adapter.border.view(outputs)
        if array.dtype.kind == "f":
            own = np.array(array, call.dtype)
            return Evaluation(call, wrt, (own,), None, residuals, values, (array.dtype,))
    return call.given(outputs, residuals, values, wrt)


def pulled(evaluation: Evaluation, cotangents: Sequence[Any], wrt: tuple[int, ...]) -> list[Array] | None:
    """`evaluation.pull(cotangents, wrt)` with gradients in the dtypes of their arguments, new or the guest's own.

    None where there is more to it.
    """
    call, outputs, values = evaluation.call, evaluation.outputs, evaluation.values
    adapter = call.adapter
    if not len(outputs) == len(cotangents) == 1 or call.order or any(call.arguments.vectors):
        return None
    one, output = cotangents[0], outputs[0]
    if (
        type(one) is not np.ndarray
        or not one.dtype.kind == output.dtype.kind == "f"
        or one.shape != output.shape
        or call.settings.observers.observed
        or not one.size
        or not (one.item(0) or one.any())
        or type(adapter).zero is not Adapter.zero
        or not adapter.results_are_typed
        or not wrt
    ):
        return None
    natives = adapter.backward(evaluation.residuals, cotangents, wrt)
    expected = [values[i] for i in wrt]
    try:
        if list(map(_shape, natives)) != list(map(_shape, expected)):
            raise TypeError
    except (AttributeError, TypeError):
        return evaluation.to_arguments(natives, wrt)  # says what is wrong
    view, copies = adapter.border.view, not adapter.traits.gives_gradients
    gradients = []
    for native, value in zip(natives, expected):
        array = view(native)
        gradients.append(np.array(array, value.dtype) if copies or array.dtype != value.dtype else array)
    return gradients
