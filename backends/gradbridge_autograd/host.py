"""HIPS autograd as a host: one primitive, at module level, lifts every adapter.

A primitive per bridge or per call would leak, because autograd's tables of rules never shrink.
So the evaluation travels as the first argument, which is not differentiable, and is pulled back in
the VJP rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from autograd.builtins import DictBox, SequenceBox
from autograd.core import JVPNode
from autograd.extend import Box, defjvp_argnums, defvjp_argnums, primitive

from gradbridge.borders import INEXACT
from gradbridge.errors import HigherOrderError, Unsupported
from gradbridge.execution import batched
from gradbridge.execution.batched import evaluate_and_push
from gradbridge.execution.evaluation import Call, Evaluation
from gradbridge.host import Host, Reading
from gradbridge_autograd import merged
from gradbridge_autograd import placed as placed  # what it registers
from gradbridge_autograd.traces import opened, plain

_boxes = Box.types


class AutogradHost(Host):
    """Lifts adapters into functions that ``autograd.grad`` and its kin differentiate, to any order."""

    name: ClassVar[str] = "autograd"

    def read(self, arguments: list[Any]) -> Reading:
        values, wrt = list(arguments), ()
        for index, value in enumerate(values):
            if type(value) in _boxes:
                wrt = (*wrt, index)
                while type(value) in _boxes:
                    value = value._value
                values[index] = value
        if wrt and type(arguments[wrt[0]]._node) is JVPNode:
            return Reading(values, wrt, _tangents(arguments, wrt))
        return Reading(values, wrt)

    def follows(self, value: Any) -> bool:
        return type(value) in _boxes

    def constant(self, value: Any) -> Any:
        return plain(value)

    def array(self, array: Any, is_own: bool = True) -> Any:
        return array

    def numpy(self, value: Any) -> Any:
        return value  # a box is refused by who looks at what it is

    def apply(self, call: Call, arguments: Sequence[Any], reading: Reading) -> Any:
        values, wrt, tangents = reading
        if not wrt:
            evaluation = call.evaluate(values, ())
            return evaluation.assemble(evaluation.outputs)
        if tangents is not None:
            try:
                return _assembled(evaluate_and_push(call, values, wrt, tangents), arguments)
            except Unsupported:
                pass  # evaluated plainly, and pushed through the derivative of the gradient
        return _assembled(call.evaluate(values, wrt), arguments)

    def is_container(self, value: Any) -> bool:
        return type(value) is SequenceBox or type(value) is DictBox

    def open(self, tree: Any) -> Any:
        return opened(tree)


def _assembled(evaluation: Evaluation, arguments: Sequence[Any]) -> Any:
    """An evaluation as a node of autograd's graph: its outputs as the model returned them."""
    for index in evaluation.wrt:
        box = arguments[index]
        if type(box) in _boxes and type(box._value) in _boxes and merged.pays(evaluation, arguments):
            return evaluation.assemble(merged.lifted(evaluation, arguments, differentiated))
    leaves = lifted(evaluation, arguments)
    return leaves[0] if evaluation.structure is None else evaluation.assemble(leaves)


def _tangents(arguments: Sequence[Any], wrt: tuple[int, ...]) -> list[Any] | None:
    """Of arguments that one forward trace alone moves, so that value and tangent are to be had from one forward."""
    tangents, trace = [], arguments[wrt[0]]._trace
    for index in wrt:
        box = arguments[index]
        node = box._node
        if type(node) is not JVPNode or box._trace != trace or type(box._value) in _boxes:
            return None
        if type(node.g) in _boxes:
            return None
        tangents.append(node.g)
    return tangents


def lifted(evaluation: Evaluation, arguments: Sequence[Any]) -> list[Any]:
    """An evaluation as a node of autograd's graph: its leaves."""
    value = _bridged(evaluation, *arguments)
    if len(evaluation.outputs) == 1:
        return [value]
    # What is not differentiable beside what is: a constant, as autograd's own argmax gives.
    return [value[i] if y.dtype.kind in INEXACT else y for i, y in enumerate(evaluation.outputs)]


@primitive
def _bridged(evaluation: Evaluation, *arguments: Any) -> Any:
    return evaluation.outputs[0] if len(evaluation.outputs) == 1 else evaluation.outputs


def _pullback(argnums: Sequence[int], ans: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """VJP rule: one guest backward for all the arguments together, or a lifted pullback."""
    evaluation: Evaluation = args[0]
    wrt = (0,) if tuple(argnums) == (1,) else tuple([argnum - 1 for argnum in argnums])

    def pull(g: Any) -> Any:
        outputs = evaluation.outputs
        # A box of a tuple boxes all of its leaves; those of integer outputs are zeros and do not move.
        cotangents = (
            [g]
            if len(outputs) == 1
            else [g[i] if y.dtype.kind in INEXACT else plain(g[i]) for i, y in enumerate(outputs)]
        )
        for value in (*args[1:], *cotangents):
            if type(value) in _boxes:  # of an outer trace: the derivative itself is differentiated
                return differentiated(evaluation, wrt, (*args[1:], *cotangents))
        return evaluation.pull(cotangents, wrt)

    return pull


def differentiated(evaluation: Evaluation, wrt: tuple[int, ...], arguments: Sequence[Any]) -> list[Any]:
    """The gradients from what the evaluation recorded, as a node of the outer trace's graph."""
    values, traced = [], ()
    for index, value in enumerate(arguments):
        if type(value) in _boxes:
            traced = (*traced, index)
        values.append(plain(value))
    return lifted(evaluation.differentiated(wrt).evaluate(values, traced), arguments)


def _pushforward(
    argnums: Sequence[int], tangents: Sequence[Any], ans: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """JVP rule: the guest's own forward mode; or, where it has none, the pullback's pullback.

    The pullback is linear in its cotangents, so its own pullback there is the JVP. It is an adapter
    again, so it serves where the JVP itself is differentiated.

    Source: J. Townsend (2017), A new trick for calculating Jacobian-vector products.
    """
    evaluation: Evaluation = args[0]
    arguments = args[1:]
    wrt = tuple([argnum - 1 for argnum in argnums])
    if evaluation.tangents is not None and evaluation.wrt == wrt:
        return _one_or_all(evaluation.tangents)
    outer = any(type(a) in _boxes for a in (*arguments, *tangents))
    if not outer:
        try:
            return _one_or_all(batched.push(evaluation, wrt, tangents))
        except Unsupported:
            pass
    try:
        call = evaluation.differentiated(wrt, products=outer)
    except HigherOrderError as error:
        raise HigherOrderError(
            f"a forward-mode derivative (JVP) of {evaluation.adapter.label} was asked for; its backend has no forward mode "
            f"for it, so it is made from the derivative of its gradient, and {error}"
        ) from error
    zeros = evaluation.zero_cotangents()
    first = len(arguments)
    cotangents = tuple(range(first, first + len(zeros)))
    every = (*arguments, *zeros)
    traced = tuple(i for i, a in enumerate(arguments) if type(a) in _boxes)
    gradient = call.evaluate([plain(a) for a in every], (*traced, *cotangents))
    if outer:
        return _one_or_all(differentiated(gradient, cotangents, (*every, *tangents)))
    return _one_or_all(gradient.pull(tangents, cotangents))


def _one_or_all(leaves: Sequence[Any]) -> Any:
    return leaves[0] if len(leaves) == 1 else tuple(leaves)


defvjp_argnums(_bridged, _pullback)
defjvp_argnums(_bridged, _pushforward)
