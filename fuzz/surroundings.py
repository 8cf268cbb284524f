"""The program around a bridge, written in `autograd.numpy`: it does not know what it calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import autograd.numpy as np

#: How a call's params come from those that are differentiated.
PARAMS: dict[str, Callable[[Any], Any]] = {
    "as they are": lambda p: p,
    "as before": lambda p: 1.0 * p,
    "scaled": lambda p: 0.75 * p,
    "warped": np.sin,
    "turned twice": lambda p: p[::-1][::-1],
    "curved": lambda p: p + 0.125 * p * p,
}

#: How its inputs do: {name: (what is done to floating ones, what to all of them)}.
INPUTS: dict[str, tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None]] = {
    "as they are": (None, None),
    "scaled": (lambda x: 1.25 * x, None),
    "warped": (np.tanh, None),
    "fewer": (None, lambda x: x[: max(1, len(x) - 1)]),
    "one": (None, lambda x: x[:1]),
    "turned": (None, lambda x: x[::-1]),
    "twice": (None, lambda x: np.concatenate([x, x])),
    "same": (None, None),  # f(x, x), where both inputs have one shape
}


def _weights(y: Any) -> Any:
    return np.cos(1.0 + np.arange(y.size)).reshape(y.shape).astype(y.dtype)


#: How outputs become a number.
REDUCED: dict[str, Callable[[Any], Any]] = {
    "weighted": lambda y: np.sum(_weights(y) * y),
    "squares": lambda y: np.sum(y**2),
    "norm": lambda y: np.sqrt(np.sum(y * y) + 0.125),
    "entry": lambda y: np.ravel(y)[0] * np.ravel(y)[-1],
    "strided": lambda y: np.sum(_weights(y[::2]) * np.sin(y[::2])),
    "mean": lambda y: np.mean(np.tanh(y)) + np.mean(y),
    "logsumexp": lambda y: np.log(np.sum(np.exp(0.25 * y))),
    "gram": lambda y: np.sum(np.dot(y.reshape((len(y), -1)), y.reshape((len(y), -1)).T) ** 2) / len(y),
}

#: How several numbers become one.
JOINED: dict[str, Callable[[list[Any]], Any]] = {
    "sum": sum,
    "product": lambda terms: terms[0] * sum(terms[1:], 1.0),
    "sine": lambda terms: np.sin(sum(terms)),
}


@dataclass(frozen=True)
class Term:
    """One call and what becomes of its outputs: keys of `PARAMS`, `INPUTS` and `REDUCED`.

    Attributes:
        nested: whether the function is called again at its own output.
    """

    params: str
    inputs: str
    nested: bool
    reduced: str


def program(
    terms: Sequence[Term], joined: str, function: Callable[[Any, list[Any]], list[Any]]
) -> Callable[[Any, list[Any]], Any]:
    """A number as a function of (params, inputs).

    Args:
        terms, joined: what is computed.
        function: (params, inputs) ↦ its floating outputs.
    """

    def value(params: Any, inputs: list[Any]) -> Any:
        numbers = []
        for term in terms:
            floating, every = INPUTS[term.inputs]
            moved = [x if every is None else every(x) for x in inputs]
            moved = [x if floating is None or x.dtype.kind != "f" else floating(x) for x in moved]
            if term.inputs == "same" and len({(x.shape, x.dtype) for x in moved}) == 1:
                moved = [moved[0]] * len(moved)
            p = PARAMS[term.params](params)
            outputs = function(p, moved)
            if term.nested:
                outputs = function(p, [outputs[0], *moved[1:]])
            numbers.append(sum(REDUCED[term.reduced](y) for y in outputs))
        return JOINED[joined](numbers)

    return value
