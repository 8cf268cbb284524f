"""A call like one that was made: what was found out about that one is not asked again.

Who calls, how the weights lie in what the user gave, whether they fit: on a small model that takes as long as the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch.autograd import forward_ad

from gradbridge import trees
from gradbridge.errors import Unsupported
from gradbridge.execution.evaluation import Call
from gradbridge.layout import ParameterLayout
from gradbridge.lifting import Node
from gradbridge_torch.crossing import CROSSING, PLAIN, REAL
from gradbridge_torch.lifted import Apply
from gradbridge_torch.records import Record
from gradbridge_torch.surroundings import compiler, dispatch_modes, recording, transform

Shortcut = Callable[[Any, tuple[Any, ...]], Any]

#: Params as the user gave them ↦ the weights, or the vector of them, plain tensors; None where they are others.
Reader = Callable[[Any], Sequence[torch.Tensor] | None]

_shape, _dtype = attrgetter("shape"), attrgetter("dtype")


def is_settled(call: Call) -> bool:
    """Whether nothing is to be looked at, remembered or drawn in further calls, but for observers that may come."""
    settings = call.settings
    return (
        settings.memory is None
        and settings.draw_noise is None
        and not settings.checks_finite
        and not settings.audit.awaits_call(call.dtype.name)
    )


def reader(layout: ParameterLayout, params: Any) -> Reader | None:
    """How weights are found in params like these, and are seen to fit.

    Args:
        layout: that they fit.
        params: as the user gave them, tensors in a list, a tuple or a dictionary, or one.
    """
    if not len(layout):
        return None
    if type(params) in PLAIN:
        return _one(params)
    arrays = layout.arrays(params)
    if not PLAIN.issuperset(map(type, arrays)):
        return None
    pick = _picker(layout, params, arrays)
    shapes, dtypes = list(layout.shapes), list(map(_dtype, arrays))

    def read(params: Any) -> Sequence[torch.Tensor] | None:
        weights = pick(params)
        if weights is None or not PLAIN.issuperset(map(type, weights)):
            return None
        try:
            fits = list(map(_shape, weights)) == shapes and list(map(_dtype, weights)) == dtypes
        except RuntimeError:  # nested tensors have no shape; they are refused elsewhere
            return None
        return weights if fits else None

    return read


def _one(vector: torch.Tensor) -> Reader:
    shape, dtype = vector.shape, vector.dtype

    def read(params: Any) -> Sequence[torch.Tensor] | None:
        try:
            return (params,) if params.shape == shape and params.dtype is dtype else None
        except RuntimeError:  # as above
            return None

    return read


def _picker(layout: ParameterLayout, params: Any, arrays: Sequence[Any]) -> Callable[[Any], Any]:
    count, names = len(layout), layout.names
    if type(params) is dict and set(params) == set(names):
        pick = itemgetter(*names) if count > 1 else lambda params: (params[names[0]],)

        def by_name(params: dict[str, Any]) -> Any:
            try:
                return pick(params) if len(params) == count else None
            except KeyError:
                return None

        return by_name
    if type(params) in (list, tuple) and all(a is b for a, b in zip(arrays, params)):
        return lambda params: params if len(params) == count else None
    structure = trees.flatten(params)[1]

    def by_place(params: Any) -> Any:
        leaves, came = trees.flatten(params)
        return leaves if came == structure else None

    return by_place


def of_part(
    call: Call,
    read: Reader,
    native: Callable[[Sequence[Any]], Any],
    cut: Callable[[Any], Sequence[Any]] | None,
    finish: Callable[[Any, torch.device], Any],
) -> Shortcut:
    """Of a guest that is a part of the program.

    Args:
        call: that was made.
        read: the weights, or their vector.
        native: what `Adapter.inlined` gave.
        cut: the vector → the weights; None where they come apart.
        finish: (what it returned, the device of the weights) ↦ what the call returns.
    """
    observers, count = call.settings.observers, call.spec.count

    def shortcut(params: Any, inputs: tuple[Any, ...]) -> Any:
        weights = read(params)
        if (
            weights is None
            or observers.observed
            or len(inputs) != count
            or not PLAIN.issuperset(map(type, inputs))
        ):
            return NotImplemented
        device = weights[0].device
        try:
            output = native([*(weights if cut is None else cut(weights[0])), *inputs])
        except Unsupported:
            return NotImplemented
        return finish(output, device)

    return shortcut


def of_guest(call: Call, node: Node, read: Reader) -> Shortcut:
    """Of a guest of another framework.

    Args:
        call: that was made.
        node: of it.
        read: the weights, or their vector.
    """
    count, apply, is_wrapped = (
        call.spec.count,
        Apply.lean.apply,
        torch._C._functorch.is_functorch_wrapped_tensor,
    )
    dtypes = CROSSING if call.adapter.traits.takes_complex else REAL

    def shortcut(params: Any, inputs: tuple[Any, ...]) -> Any:
        weights = read(params)
        if (
            weights is None
            or len(inputs) != count
            or not PLAIN.issuperset(map(type, inputs))
            or not dtypes.issuperset(map(_dtype, inputs))
            or transform() is not None
            or forward_ad._current_level >= 0
            or dispatch_modes()
            or recording() is not None
            or compiler() is not None
        ):
            return NotImplemented
        operands = [*weights, *inputs]
        for x in operands:
            if not x.is_cpu or x.layout is not torch.strided or is_wrapped(x):
                return NotImplemented
        wrt = tuple([i for i, x in enumerate(operands) if x.requires_grad]) if torch.is_grad_enabled() else ()
        record = Record()
        made = apply(record, node, wrt, *operands)
        structure = record.run.evaluation.structure  # type: ignore[union-attr]
        if structure is None:
            return made if type(made) is torch.Tensor else made[0]
        return trees.unflatten(structure, (made,) if type(made) is torch.Tensor else made)

    return shortcut
