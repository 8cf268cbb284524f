"""The scenarios: small models with their values and gradients written out by hand in NumPy.

A backend builds each of them in its own framework, from the same arrays, and is held against the
closed form. All closed forms but that with complex numbers are analytic, so that `gradbridge.testing.derivatives` gives their
higher derivatives to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradbridge.layout import Array
from gradbridge.testing import waves

Params = Mapping[str, Array]
#: (params by name, inputs) ↦ the pytree that the model returns.
Value = Callable[[Params, Sequence[Array]], Any]
#: (params by name, inputs, cotangent leaves) ↦ (gradients by name, a gradient or None per input).
Gradients = Callable[[Params, Sequence[Array], Sequence[Array]], tuple[dict[str, Array], list[Array | None]]]

DROPOUT_RATE = 0.25
EPSILON = 1e-3


@dataclass(frozen=True)
class Scenario:
    """A model on paper.

    Attributes:
        name: of the factory that builds it, in `BackendUnderTest`.
        shapes: of the parameters by name, in the order of the factory's arguments.
        inputs: draws the inputs, ``(rng, rows) ↦ arrays``.
        value: the closed form.
        gradients: its closed-form VJP.
        constants: further keyword arguments of the factory.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    inputs: Callable[[np.random.Generator, int], tuple[Array, ...]]
    value: Value
    gradients: Gradients
    constants: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def unravel(self, vector: Any) -> dict[str, Any]:
        """Flat vector in the scenario's own order → arrays by name."""
        arrays, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + int(np.prod(shape))
            arrays[name] = vector[start:stop].reshape(shape)
            start = stop
        return arrays

    def ravel(self, arrays: Mapping[str, Any]) -> Any:
        """Arrays by name → flat vector in the scenario's own order."""
        return np.concatenate([np.empty(0), *(np.ravel(arrays[name]) for name in self.shapes)])

    def draw_params(self, rng: np.random.Generator) -> dict[str, Array]:
        """Parameters whose last bits matter: none of them is a float32."""
        return {name: rng.normal(size=shape) for name, shape in self.shapes.items()}


def _mlp_hidden(p: Params, x: Any) -> Any:
    return np.tanh(x @ p["weight1"] + p["bias1"])


def _mlp_gradients(p: Params, inputs: Sequence[Any], cotangents: Sequence[Any]) -> Any:
    (x,), (v,) = inputs, cotangents
    h = _mlp_hidden(p, x)
    before = (v @ p["weight2"].T) * (1 - h**2)
    params = {
        "weight1": x.T @ before,
        "bias1": before.sum(0),
        "weight2": h.T @ v,
        "bias2": v.sum(0),
    }
    return params, [before @ p["weight1"].T]


MLP = Scenario(
    "mlp",
    {"weight1": (3, 4), "bias1": (4,), "weight2": (4, 2), "bias2": (2,)},
    lambda rng, rows: (rng.normal(size=(rows, 3)),),
    lambda p, inputs: _mlp_hidden(p, inputs[0]) @ p["weight2"] + p["bias2"],
    _mlp_gradients,
)


def _embedding_gradients(p: Params, inputs: Sequence[Any], v: Sequence[Any]) -> Any:
    table = np.zeros(p["table"].shape, np.result_type(v[0], np.float64))
    np.add.at(table, inputs[0], v[0])  # a row that was looked up twice is pulled back to twice
    return {"table": table}, [None]


EMBEDDING = Scenario(
    "embedding",
    {"table": (5, 2)},
    # Row 4 is never looked up; its gradient is exactly zero.
    lambda rng, rows: (rng.integers(0, 4, size=(rows, 3)),),
    lambda p, inputs: p["table"][inputs[0]],
    _embedding_gradients,
)

ENERGY = Scenario(
    "energy",
    {},
    lambda rng, rows: (rng.normal(size=(rows, 2)), rng.normal(size=(rows, 2))),
    lambda p, inputs: np.sum(inputs[0] ** 2 * inputs[1]),
    lambda p, inputs, v: ({}, [2 * v[0] * inputs[0] * inputs[1], v[0] * inputs[0] ** 2]),
)

# optree lists a dict by its sorted keys: the leaves are rest[0], rest[1], scaled.
OUTPUTS = Scenario(
    "outputs",
    {"scale": (2,)},
    lambda rng, rows: (rng.normal(size=(rows, 2)),),
    lambda p, inputs: {
        "scaled": inputs[0] * p["scale"],
        "rest": (inputs[0] ** 2, np.sum(p["scale"] ** 2)),
    },
    lambda p, inputs, v: (
        {"scale": (v[2] * inputs[0]).sum(0) + 2 * v[1] * p["scale"]},
        [v[2] * p["scale"] + 2 * v[0] * inputs[0]],
    ),
)


def _tied_gradients(p: Params, inputs: Sequence[Any], cotangents: Sequence[Any]) -> Any:
    (x,), (v,), w = inputs, cotangents, p["weight"]
    h = np.tanh(x @ w)
    before = (v @ w.T) * (1 - h**2)
    return {"weight": h.T @ v + x.T @ before}, [before @ w.T]


TIED = Scenario(
    "tied",
    {"weight": (3, 3)},
    lambda rng, rows: (rng.normal(size=(rows, 3)),),
    lambda p, inputs: np.tanh(inputs[0] @ p["weight"]) @ p["weight"],
    _tied_gradients,
)

UNUSED = Scenario(
    "unused",
    {"weight": (3, 2), "spare": (4,)},
    lambda rng, rows: (rng.normal(size=(rows, 3)), rng.normal(size=(rows, 2))),
    lambda p, inputs: np.exp(inputs[0] @ p["weight"] / 4),
    lambda p, inputs, v: (
        {
            "weight": inputs[0].T @ (v[0] * np.exp(inputs[0] @ p["weight"] / 4)) / 4,
            "spare": np.zeros(4),
        },
        [
            (v[0] * np.exp(inputs[0] @ p["weight"] / 4)) @ p["weight"].T / 4,
            np.zeros(np.shape(inputs[1])),
        ],
    ),
)

# In eval mode dropout is the identity.
DROPOUT = Scenario(
    "dropout",
    {},
    lambda rng, rows: (rng.normal(size=(rows, 8)),),
    lambda p, inputs: inputs[0] * 1.0,
    lambda p, inputs, v: ({}, [v[0] * 1.0]),
    {"rate": DROPOUT_RATE},
)


def _stored(p: Params, x: Any) -> Any:
    return x / np.sqrt(1 + EPSILON)


# In eval mode, with the statistics of a new layer: mean 0 and variance 1.
BATCHNORM = Scenario(
    "batchnorm",
    {"scale": (3,), "shift": (3,)},
    lambda rng, rows: (2 + 3 * rng.normal(size=(rows, 3)),),
    lambda p, inputs: _stored(p, inputs[0]) * p["scale"] + p["shift"],
    lambda p, inputs, v: (
        {"scale": (v[0] * _stored(p, inputs[0])).sum(0), "shift": v[0].sum(0)},
        [_stored(p, v[0] * p["scale"])],
    ),
    {"epsilon": EPSILON},
)


def _batch_normal(x: Any) -> tuple[Any, Any]:
    deviation = np.sqrt(((x - x.mean(0)) ** 2).mean(0) + EPSILON)
    return (x - x.mean(0)) / deviation, deviation


def _batchnorm_train_gradients(p: Params, inputs: Sequence[Any], v: Sequence[Any]) -> Any:
    # Source: Ioffe & Szegedy (2015), Batch normalization, section 3, contracted.
    normal, deviation = _batch_normal(inputs[0])
    u = v[0] * p["scale"]
    x = (u - u.mean(0) - normal * (u * normal).mean(0)) / deviation
    return {"scale": (v[0] * normal).sum(0), "shift": v[0].sum(0)}, [x]


#: The same layer in train mode, where it normalizes by the batch; built by the same factory.
BATCHNORM_TRAIN = Scenario(
    "batchnorm",
    BATCHNORM.shapes,
    BATCHNORM.inputs,
    lambda p, inputs: _batch_normal(inputs[0])[0] * p["scale"] + p["shift"],
    _batchnorm_train_gradients,
    BATCHNORM.constants,
)


def _wave(p: Params, inputs: Sequence[Any]) -> Any:
    x, z = inputs
    real, imaginary, square = waves.value([p["scale"], x, z.real, z.imag])
    return real + 1j * imaginary, square


def _wave_gradients(p: Params, inputs: Sequence[Any], v: Sequence[Any]) -> Any:
    of_scale, of_x, of_z = waves.gradients_at(p["scale"], inputs, v)
    return {"scale": of_scale}, [of_x, of_z]


#: With complex numbers, and not analytic: its higher derivatives are those of `waves`.
WAVE = Scenario(
    "wave",
    {"scale": (2,)},
    lambda rng, rows: (
        rng.normal(size=(rows, 2)),
        rng.normal(size=(rows, 2)) + 1j * rng.normal(size=(rows, 2)),
    ),
    _wave,
    _wave_gradients,
)

SCENARIOS: dict[str, Scenario] = {
    s.name: s for s in (MLP, EMBEDDING, ENERGY, OUTPUTS, TIED, UNUSED, DROPOUT, BATCHNORM, WAVE)
}
