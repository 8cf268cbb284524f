"""autograd.numpy's words: what is expected is computed with these, in float64."""

from __future__ import annotations

from typing import Any

import autograd.numpy as np
from autograd.scipy.special import erf

from fuzz.built import Built, cast, function_of
from fuzz.networks import Network


class Words:
    """The operations of `interpreter`, written with the plainest ones that there are."""

    tanh, exp, sin, sqrt = (staticmethod(one) for one in (np.tanh, np.exp, np.sin, np.sqrt))
    reshape, where, stack = (staticmethod(one) for one in (np.reshape, np.where, np.stack))
    concat = staticmethod(np.concatenate)

    @staticmethod
    def constant(array: Any, like: Any) -> Any:
        return array

    @staticmethod
    def sigmoid(z: Any) -> Any:
        return 0.5 * (1 + np.tanh(0.5 * z))

    @staticmethod
    def softplus(z: Any) -> Any:
        return np.logaddexp(0.0, z)

    @staticmethod
    def relu(z: Any) -> Any:
        return np.where(z > 0, z, 0.0 * z)

    @staticmethod
    def gelu(z: Any) -> Any:
        return 0.5 * z * (1 + erf(z * 0.5**0.5))

    @staticmethod
    def sum(z: Any, axis: Any, keepdims: bool = False) -> Any:
        return np.sum(z, axis, keepdims=keepdims)

    @staticmethod
    def mean(z: Any, axis: Any, keepdims: bool) -> Any:
        return np.mean(z, axis, keepdims=keepdims)

    @staticmethod
    def max(z: Any) -> Any:
        return np.max(z, 1)

    @staticmethod
    def swapped(z: Any) -> Any:
        return np.swapaxes(z, -1, -2)

    @staticmethod
    def take(table: Any, ids: Any) -> Any:
        return table[ids]

    @staticmethod
    def cumsum(z: Any) -> Any:
        return np.cumsum(z, 1)

    @staticmethod
    def roll(z: Any) -> Any:
        return np.roll(z, 1, 1)

    @staticmethod
    def argmax(z: Any) -> Any:
        return np.argmax(z, -1)

    @staticmethod
    def logsumexp(z: Any, axis: int, keepdims: bool) -> Any:
        # |z| is small here: no largest one is taken away, whose choice would have no derivative.
        return np.log(np.sum(np.exp(z), axis, keepdims=keepdims))

    @staticmethod
    def softmax(z: Any) -> Any:
        exponentials = np.exp(z)
        return exponentials / np.sum(exponentials, -1, keepdims=True)

    @classmethod
    def attend(cls, q: Any, k: Any, v: Any, scale: float) -> Any:
        return cls.softmax(scale * (q @ cls.swapped(k))) @ v


class Autograd:
    """autograd as the guest: what is expected comes from the same words, but by no bridge."""

    styles: tuple[str, ...] = ("function",)
    queries = (3, 8)

    def build(self, network: Network, style: str, dtype: str, frozen: frozenset[str]) -> Built:
        weights = cast(network.weights(), dtype)
        return function_of(network, weights, Words, "autograd")
