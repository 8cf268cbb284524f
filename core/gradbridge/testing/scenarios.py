"""The scenarios, as data: small models with their values and gradients written out by hand in NumPy.

A backend builds each of them in its own framework, from the same arrays, and is held against the
closed form. All closed forms but that with complex numbers are analytic, so that
`gradbridge.testing.derivatives` gives their higher derivatives to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge.testing import waves
from gradbridge.testing.networks import BUILT
from gradbridge.testing.scenario import Params, Scenario

DROPOUT_RATE = 0.25
EPSILON = 1e-3


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


#: The same two layers with one column in and one column out: axes of size one at both ends.
COLUMN = replace(
    MLP,
    name="column",
    factory="mlp",
    shapes={"weight1": (1, 4), "bias1": (4,), "weight2": (4, 1), "bias2": (1,)},
    inputs=lambda rng, rows: (rng.normal(size=(rows, 1)),),
)


def _broadcast(p: Params, inputs: Sequence[Any]) -> Any:
    t, x, m = inputs
    return np.tanh(p["scale"] * x + m) * t[:, None]


def _broadcast_gradients(p: Params, inputs: Sequence[Any], cotangents: Sequence[Any]) -> Any:
    (t, x, m), (v,) = inputs, cotangents
    h = np.tanh(p["scale"] * x + m)
    before = v * t[:, None] * (1 - h**2)
    return {"scale": (before * x).sum(0)}, [(v * h).sum(1), before * p["scale"], before.sum(0)[None]]


#: A vector, a matrix, and one row that all rows share.
BROADCAST = Scenario(
    "broadcast",
    {"scale": (3,)},
    lambda rng, rows: (rng.normal(size=rows), rng.normal(size=(rows, 3)), rng.normal(size=(1, 3))),
    _broadcast,
    _broadcast_gradients,
)

# 200 is a negative number to whoever reads the byte as signed.
_SMALL = (0, 1, 3, 200)

#: Booleans choose, narrow integers count; the host has them in every width.
MASKED = Scenario(
    "masked",
    {},
    lambda rng, rows: (
        rng.normal(size=(rows, 2)),
        rng.integers(0, 2, (rows, 2)).astype(bool),
        rng.choice(np.array(_SMALL, np.uint8), (rows, 2)),
    ),
    lambda p, inputs: np.where(inputs[1], inputs[2] * inputs[0] ** 2, inputs[0]),
    lambda p, inputs, v: ({}, [v[0] * np.where(inputs[1], 2.0 * inputs[2] * inputs[0], 1.0), None, None]),
)

#: Its derivative is infinite at 0, and it has none below.
ROOT = Scenario(
    "root",
    {"scale": (2,)},
    lambda rng, rows: (0.5 + rng.random((rows, 2)),),
    lambda p, inputs: np.sqrt(inputs[0]) * p["scale"],
    lambda p, inputs, v: (
        {"scale": (v[0] * np.sqrt(inputs[0])).sum(0)},
        [v[0] * p["scale"] / (2 * np.sqrt(inputs[0]))],
    ),
)


def _switch(x: Any, name: str, times: int) -> tuple[Any, Any]:
    """(value, derivative)."""
    return (times * x**3, 3 * times * x**2) if name == "cube" else (times * x**2, 2 * times * x)


#: What is not an array decides what is computed; it goes through as it is.
SWITCH = Scenario(
    "switch",
    {},
    lambda rng, rows: (
        rng.normal(size=(rows, 2)),
        str(rng.choice(["cube", "square"])),
        int(rng.integers(2, 9)),
    ),
    lambda p, inputs: _switch(*inputs)[0],
    lambda p, inputs, v: ({}, [v[0] * _switch(*inputs)[1], None, None]),
)

#: Beside its floating output it returns integers, which have no derivative: the column of each row's largest.
LABELS = Scenario(
    "labels",
    {"scale": (2,)},
    lambda rng, rows: (rng.normal(size=(rows, 2)),),
    lambda p, inputs: (inputs[0] * p["scale"], np.argmax(np.real(inputs[0]), 1)),
    lambda p, inputs, v: ({"scale": (v[0] * inputs[0]).sum(0)}, [v[0] * p["scale"]]),
)

_ALL = (
    *(MLP, EMBEDDING, ENERGY, OUTPUTS, TIED, UNUSED, DROPOUT, BATCHNORM, WAVE),
    *(COLUMN, BROADCAST, MASKED, ROOT, SWITCH, LABELS),
    *BUILT,
)
SCENARIOS: dict[str, Scenario] = {s.name: s for s in _ALL}
