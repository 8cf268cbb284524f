"""The scenarios of the conformance kit in tinygrad."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from tinygrad import Tensor, dtypes, nn
from tinygrad.helpers import TRAINING, Context

from gradbridge.extend import Array
from gradbridge.testing import BackendUnderTest, Native
from gradbridge_tinygrad.isolation import turns


class UnderTest(BackendUnderTest):
    """The scenarios, as models and functions of tinygrad."""

    backend: ClassVar[str] = "tinygrad"
    reasons: ClassVar[dict[str, str]] = {
        "dropout": "tinygrad's random numbers are one global sequence, in which a backward cannot find its forward's",
        "batchnorm": "this backend keeps no moving statistics",
        "wave": "tinygrad has no complex numbers",
    }

    def mlp(self, weight1: Array, bias1: Array, weight2: Array, bias2: Array) -> Any:
        """A model as tinygrad's users write them."""
        return Layers(_linear(weight1, bias1), _linear(weight2, bias2))

    def embedding(self, table: Array) -> Any:
        """A lookup."""
        return Native(lambda p, x: p[x], params=table)

    def energy(self) -> Any:
        """A function of tensors."""
        return lambda x, y: (x**2 * y).sum()

    def outputs(self, scale: Array) -> Any:
        """A dict with a tuple in it."""
        return Native(lambda p, x: {"scaled": x * p, "rest": (x**2, (p**2).sum())}, params=scale)

    def tied(self, weight: Array) -> Any:
        """One tensor, in two places of a model."""
        shared = Tensor(weight)
        return Tied(shared, shared)

    def unused(self, weight: Array, spare: Array) -> Any:
        """A parameter and an input without influence."""
        return Native(lambda p, x, y: (x @ p["weight"] / 4).exp(), params={"weight": weight, "spare": spare})

    def broadcast(self, scale: Array) -> Any:
        """A vector, a matrix and a row."""
        return Native(lambda p, t, x, m: (p * x + m).tanh() * t.unsqueeze(1), params=scale)

    def masked(self) -> Any:
        """Booleans and integers."""
        return lambda x, m, k: m.where(k * x**2, x)

    def root(self, scale: Array) -> Any:
        """A derivative that may be infinite."""
        return Native(lambda p, x: p * x.sqrt(), params=scale)

    def labels(self, scale: Array) -> Any:
        """Integers beside what has a derivative."""
        return Native(lambda p, x: (p * x, x.argmax(1)), params=scale)

    def switch(self) -> Any:
        """A string and a number."""
        return lambda x, name, k: k * x**3 if name == "cube" else k * x**2

    def state(self, model: Any) -> Any:
        """The numbers in a model, and tinygrad's flags and random state."""
        with turns:
            tensors = nn.state.get_state_dict(model).items()
            arrays = {name: tensor.contiguous().numpy().tobytes() for name, tensor in tensors}
        return arrays, Tensor._seed, sorted(Tensor._device_seeds), TRAINING.value, str(dtypes.default_float)

    def surroundings(self) -> Iterable[tuple[str, AbstractContextManager[Any]]]:
        """tinygrad's train mode."""
        return [("in Context(TRAINING=1)", Context(TRAINING=1))]


class Layers:
    """Two layers and a tanh."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        self.layers = [first, second]

    def __call__(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x).tanh())


class Tied:
    """Two matrices, perhaps one tensor."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first, second

    def __call__(self, x: Tensor) -> Tensor:
        return (x @ self.first).tanh() @ self.second


def _linear(weight: Array, bias: Array) -> nn.Linear:
    layer = nn.Linear(*weight.shape)
    layer.weight, layer.bias = Tensor(weight.T.copy()), Tensor(bias)
    return layer
