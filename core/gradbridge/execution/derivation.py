"""The derivative of an evaluation as a call of its own: what makes every order follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gradbridge.call_spec import CallSpec
from gradbridge.execution.arguments import Arguments


def derivative(evaluation: Any, wrt: tuple[int, ...]) -> Any:
    """The pullback of an evaluation, a `Call`: ``(*arguments, *cotangents) ↦ gradients``.

    It starts from what was recorded, so it is to be called at the same arguments.

    Args:
        evaluation: of a call.
        wrt: the arguments whose gradients it returns.
    """
    return derivative_of(evaluation.call, wrt, len(evaluation.outputs), evaluation.residuals)


def derivative_of(call: Any, wrt: tuple[int, ...], outputs: int, residuals: Any = None) -> Any:
    """The pullback of a call, a `Call`, which may be evaluated anywhere, or where residuals are given at their point.

    Args:
        call: a model's, or a derivative of one.
        wrt: the arguments whose gradients it returns.
        outputs: how many output leaves the call has.
        residuals: of an evaluation of it.

    Raises:
        HigherOrderError: the guest cannot differentiate it.
    """
    spec, arguments = call.spec.replayed(), call.arguments
    adapter = call.adapter.pullback(spec, arguments.leaves(wrt), residuals)
    of_outputs = call.results.vectors if call.results is not None else (False,) * outputs
    inner = Arguments.of((*arguments.vectors, *of_outputs), arguments.width)
    count = inner.count - (arguments.width if spec.packed else len(call.adapter.layout))
    return replace(
        call,
        adapter=adapter,
        spec=replace(CallSpec.of_arrays(count, spec.noise), packed=spec.packed, lent=spec.lent),
        arguments=inner,
        results=Arguments.of(tuple(arguments.vectors[i] for i in wrt), arguments.width),
        wrt=wrt,
        order=call.order + 1,
        parent=call,
    )


def anywhere(call: Any) -> Any:
    """The same call, to be evaluated at other arguments than those that a recorded derivative belongs to."""
    if call.parent is None:
        return call
    parent = anywhere(call.parent)
    adapter = parent.adapter.pullback(parent.spec.replayed(), parent.arguments.leaves(call.wrt))
    return replace(call, adapter=adapter, parent=parent)
