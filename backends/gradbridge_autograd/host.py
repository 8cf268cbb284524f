"""HIPS autograd as a host: one primitive, at module level, lifts every adapter.

A primitive per bridge or per call would leak, because autograd's tables of rules never shrink.
So the call travels as the first argument, which is not differentiable, and brings its residuals
to the VJP rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import autograd.numpy as anp
from autograd.builtins import DictBox, SequenceBox
from autograd.extend import Box, defjvp_argnums, defvjp_argnums, primitive

from gradbridge.borders import INEXACT
from gradbridge.call import Call
from gradbridge.errors import HigherOrderError
from gradbridge.host import Host

_box_types = Box.types


def _is_box(value: Any) -> bool:
    return type(value) in _box_types


class AutogradHost(Host):
    """Lifts adapters into functions that ``autograd.grad`` and its kin differentiate, to any order."""

    name: ClassVar[str] = "autograd"

    def is_traced(self, value: Any) -> bool:
        """Whether the value is an autograd box."""
        return type(value) in _box_types

    def open(self, tree: Any) -> Any:
        """Boxes of tuples, lists and dicts → tuples, lists and dicts of boxes."""
        kind = type(tree)
        if kind is tuple or kind is list:
            return kind(map(self.open, tree))
        if kind is dict:
            return {key: self.open(value) for key, value in tree.items()}
        if kind is SequenceBox:
            items = [self.open(tree[i]) for i in range(len(tree))]
            return type(tree._value)(items) if type(tree._value) in (list, tuple) else items
        if kind is DictBox:
            return {key: self.open(tree[key]) for key in tree}
        return tree

    def constant(self, value: Any) -> Any:
        """The value in the innermost box."""
        return _unboxed(value)

    def join(self, pieces: Sequence[Any]) -> Any:
        """By `autograd.numpy`, so that boxes stay boxes."""
        return anp.concatenate([anp.ravel(piece) for piece in pieces])

    def apply(self, call: Call, params: Any, inputs: Sequence[Any]) -> Any:
        """Run the call as a node of autograd's graph."""
        call.wrt = tuple(i for i, value in enumerate((params, *inputs)) if type(value) in _box_types)
        leaves = _leaves(_bridged(call, params, *inputs))
        if len(leaves) > 1:
            # What is not differentiable beside what is: a constant, as autograd's own argmax gives.
            leaves = [
                leaf if dtype.kind in INEXACT else _unboxed(leaf)
                for leaf, (_, dtype) in zip(leaves, call.outputs)
            ]
        return call.assemble(leaves)


@primitive
def _bridged(call: Call, params: Any, *inputs: Any) -> Any:
    outputs = call.run(params, inputs)
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _leaves(value: Any) -> list[Any]:
    """Output of `_bridged`, boxed or not → its leaves. A box of a tuple is opened by indexing."""
    if type(value) is tuple or type(value) is SequenceBox:
        return [value[i] for i in range(len(value))]
    return [value]


def _pullback(argnums: Sequence[int], ans: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """VJP rule: one guest backward for all the arguments together, or a lifted pullback."""
    call: Call = args[0]
    arguments = args[1:]
    wrt = tuple(argnum - 1 for argnum in argnums)
    # Boxes among the arguments belong to an outer trace: the derivative itself is differentiated.
    outer = any(map(_is_box, arguments))

    def pull(g: Any) -> Any:
        # A box of a tuple boxes all of its leaves; those of integer outputs are zeros and do not move.
        cotangents = [
            c if dtype.kind in INEXACT else _unboxed(c) for c, (_, dtype) in zip(_leaves(g), call.outputs)
        ]
        if outer or any(map(_is_box, cotangents)):
            return _lifted(call.differentiated(wrt), (*arguments, *cotangents))
        return call.pull(cotangents, wrt)

    return pull


def _lifted(call: Call, arguments: tuple[Any, ...]) -> list[Any]:
    call.wrt = tuple(i for i, value in enumerate(arguments) if type(value) in _box_types)
    return _leaves(_bridged(call, *arguments))


def _pushforward(
    argnums: Sequence[int], tangents: Sequence[Any], ans: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """JVP rule: the guest's own forward mode; or, where it has none, the pullback's pullback.

    The pullback is linear in its cotangents, so its own pullback there is the JVP. It is an adapter
    again, so it serves where the JVP itself is differentiated.

    Source: J. Townsend (2017), A new trick for calculating Jacobian-vector products.
    """
    call: Call = args[0]
    arguments = args[1:]
    wrt = tuple(argnum - 1 for argnum in argnums)
    outer = any(map(_is_box, arguments)) or any(map(_is_box, tangents))
    if not outer:
        pushed = call.push(arguments[0], arguments[1:], wrt, tangents)
        if pushed is not None:
            return pushed[0] if len(pushed) == 1 else tuple(pushed)
    try:
        gradient = call.differentiated(wrt)
    except HigherOrderError as error:
        raise HigherOrderError(
            f"a forward-mode derivative (JVP) of {call.adapter.label} was asked for; its backend has no forward mode "
            f"for it, so it is made from the derivative of its gradient, and {error}"
        ) from error
    zeros = call.zero_cotangents()
    first = len(arguments)
    gradient.wrt = tuple(range(first, first + len(zeros)))
    # Run for its residuals and output shapes; nothing is traced here.
    _bridged.fun(gradient, *[_unboxed(a) for a in (*arguments, *zeros)])
    if outer:
        pushed = _lifted(gradient.differentiated(gradient.wrt), (*arguments, *zeros, *tangents))
    else:
        pushed = gradient.pull(tangents, gradient.wrt)
    return pushed[0] if len(pushed) == 1 else tuple(pushed)


def _unboxed(value: Any) -> Any:
    while _is_box(value):
        value = value._value
    return value


defvjp_argnums(_bridged, _pullback)
defjvp_argnums(_bridged, _pushforward)
