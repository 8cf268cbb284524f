"""A derivative of a derivative with one walk through the guest's forward instead of two.

Where autograd differentiates a gradient, the gradient of the weights comes by two ways: through what
the model's pullback read of its forward, and through the outputs that its cotangents depend on. Each is a
walk through the guest's graph, and autograd takes them one after the other, as two nodes of its own. So
under two traces at once a call returns one leaf more: a token, which stands for all that its forward
recorded. The pullback depends on that token and on its cotangents, and on nothing else; its own pull
goes to the boundary of the forward's graph and hands what is left to do to the token, as its
cotangent. The call's pull takes it along on the walk that it makes anyway.

First order, and every order beyond the second, go the plain way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from autograd.builtins import SequenceBox
from autograd.core import VJPNode
from autograd.extend import Box, VSpace, defvjp_argnums, primitive

from gradbridge.borders import INEXACT
from gradbridge.errors import Unsupported
from gradbridge.execution import batched
from gradbridge.execution.evaluation import Evaluation
from gradbridge_autograd.traces import plain

_boxes = Box.types

#: (evaluation, wrt, arguments) ↦ gradients, lifted.
Differentiated = Callable[[Evaluation, tuple[int, ...], Sequence[Any]], list[Any]]


class Token:
    """What a call recorded, as a value of autograd's graph; as a cotangent, what is left to do there.

    Attributes:
        left: for `Evaluation.pull`.
        gradients: {argument: gradient} that are known already.
    """

    def __init__(self, left: tuple[Any, ...] = (), gradients: tuple[dict[int, Any], ...] = ()) -> None:
        self.left, self.gradients = left, gradients


class TokenBox(Box):
    """A token under a trace."""

    __slots__ = ()


class TokenSpace(VSpace):
    """Tokens add up by doing both."""

    iscomplex = False
    size = 0

    def __init__(self, value: Any = None) -> None:
        pass

    def zeros(self) -> Token:
        return Token()

    def _add(self, a: Token, b: Token) -> Token:
        return Token((*a.left, *b.left), (*a.gradients, *b.gradients))

    _mut_add = _add

    def __eq__(self, other: object) -> bool:
        return type(other) is TokenSpace

    def __hash__(self) -> int:
        return 0


TokenBox.register(Token)
TokenSpace.register(Token)


def pays(evaluation: Evaluation, arguments: Sequence[Any]) -> bool:
    """Whether an evaluation that two traces look on is to have a token: where all of them go backward."""
    if not evaluation.merges:
        return False
    for value in arguments:
        while type(value) in _boxes:
            if type(value._node) is not VJPNode:
                return False
            value = value._value
    return True


def lifted(evaluation: Evaluation, arguments: Sequence[Any], differentiated: Differentiated) -> list[Any]:
    """The output leaves as a node with a token.

    Args:
        evaluation: that is lifted.
        arguments: of it.
        differentiated: how its pullback is lifted the plain way.
    """
    value = _recorded(differentiated, evaluation, *arguments)
    return [value[i] if y.dtype.kind in INEXACT else y for i, y in enumerate(evaluation.outputs)]


@primitive
def _recorded(differentiated: Differentiated, evaluation: Evaluation, *arguments: Any) -> Any:
    return (*evaluation.outputs, Token())


def _recorded_pullback(
    argnums: Sequence[int], ans: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    differentiated, evaluation, *arguments = args
    count = len(evaluation.outputs)
    wrt = tuple([argnum - 2 for argnum in argnums])

    def pull(g: Any) -> Any:
        token: Token = plain(g[count])
        cotangents = [
            g[i] if y.dtype.kind in INEXACT else plain(g[i]) for i, y in enumerate(evaluation.outputs)
        ]
        boxed = [a for a in (*arguments, *cotangents) if type(a) in _boxes]
        if not boxed:
            gradients = evaluation.pull(cotangents, wrt, token.left)
        elif type(ans) is not SequenceBox or any(type(a._value) in _boxes for a in boxed):
            gradients = differentiated(evaluation, wrt, (*arguments, *cotangents))
        else:
            gradients = _by_token(evaluation, wrt, arguments, cotangents, ans[count], differentiated)
        for known in token.gradients:
            gradients = [g + known[i] if i in known else g for i, g in zip(wrt, gradients)]
        return gradients

    return pull


def _by_token(
    evaluation: Evaluation,
    wrt: tuple[int, ...],
    arguments: Sequence[Any],
    cotangents: Sequence[Any],
    token: Any,
    differentiated: Differentiated,
) -> list[Any]:
    """The gradients as a node that depends on the token and the cotangents."""
    values = [plain(a) for a in (*arguments, *cotangents)]
    floating = [len(arguments) + i for i, y in enumerate(evaluation.outputs) if y.dtype.kind in INEXACT]
    every = (*evaluation.wrt, *floating)
    inner = evaluation.differentiated(wrt).evaluate(values, every)
    value = _gradients(inner, evaluation.wrt, token, (arguments, differentiated), *cotangents)
    return [value] if len(inner.outputs) == 1 else [value[i] for i in range(len(wrt))]


@primitive
def _gradients(
    inner: Evaluation, wrt: tuple[int, ...], token: Any, context: tuple[Any, ...], *cotangents: Any
) -> Any:
    return inner.outputs[0] if len(inner.outputs) == 1 else inner.outputs


#: Where the token, and the first cotangent, stand among the arguments of `_gradients`.
_TOKEN, _FIRST = 2, 4


def _gradients_pullback(
    argnums: Sequence[int], ans: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    inner, wrt, _, (arguments, differentiated), *cotangents = args
    first = len(arguments)

    def pull(g: Any) -> Any:
        tangents = [g] if len(inner.outputs) == 1 else [g[i] for i in range(len(inner.outputs))]
        positions = (*wrt, *(i for i in inner.wrt if i >= first))
        if any(type(a) in _boxes for a in (*tangents, *cotangents)):  # a third trace looks on
            every = ([plain(a) for a in arguments], cotangents, tangents)
            pulled = differentiated(inner, positions, [a for group in every for a in group])
            gradients, token = dict(zip(positions, pulled)), None
        else:
            try:
                gradients, left = batched.pull_to_boundary(inner, tangents)
                token = Token((left,))
            except Unsupported:
                gradients, token = dict(zip(positions, inner.pull(tangents, positions))), None
        if token is None:
            token = Token(gradients=({i: gradients[i] for i in wrt},))
        return [
            token
            if argnum == _TOKEN
            else gradients.get(first + argnum - _FIRST, np.zeros(np.shape(cotangents[argnum - _FIRST])))
            for argnum in argnums
        ]

    return pull


defvjp_argnums(_recorded, _recorded_pullback)
defvjp_argnums(_gradients, _gradients_pullback)
