"""How long our own path is: Python calls, files and moves between files in one value-and-gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad

import gradbridge as gb
from benchmarks.figures import Report, count
from benchmarks.networks import available, sum_of_squares
from benchmarks.own_calls import own_calls

#: Most calls, files and moves that it may take.
BUDGETS = {"torch": (50, 8, 24), "jax": (50, 9, 28)}
X = np.linspace(0, 1, 12).reshape(4, 3)


def run(report: Report) -> None:
    """Print the counts as a table, with the calls themselves if the report is verbose."""
    listed = []
    with report.table(
        "our own Python in one value-and-gradient of a sum of squares, float64, once warm",
        "guest",
        "model",
        "calls",
        "files",
        "moves",
    ) as table:
        for guest, model, step in _steps():
            for _ in range(3):
                step()
            own = own_calls(step)
            counted = {"calls": len(own), "files": own.files, "moves": own.moves}
            budgets = BUDGETS.get(guest, (None, None, None))
            figures = [count(n, of, at_most=most) for (of, n), most in zip(counted.items(), budgets)]
            table.row(guest, model, *figures)
            listed.append((f"{guest}, {model}", own))
    if report.verbose:
        for name, own in listed:
            report.say(f"\n{name}: {len(own)} calls of ours, in order\n{own}")


def _steps() -> Iterator[tuple[str, str, Callable[[], object]]]:
    """(guest, model, value-and-gradient by its params)."""
    makers = {"torch": _torch, "jax": _jax, "tensorflow": _keras}
    for guest in available():
        model, f = makers[guest]()
        through = value_and_grad(sum_of_squares(f, X))
        yield guest, model, lambda through=through, p=f.params: through(p)
    cube = gb.primitive(lambda x: x**3)
    cube.defvjp(lambda ans, x: lambda v: 3 * x**2 * v)
    through = value_and_grad(lambda x: anp.sum(cube(x) ** 2))
    yield "numpy", "written rule", lambda: through(X)


def _torch() -> tuple[str, gb.Bridge]:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return "MLP", gb.bridge(
        nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double(), dtype="float64"
    )


def _jax() -> tuple[str, gb.Bridge]:
    import jax.numpy as jnp

    params = {"v": np.ones(8), "w": np.ones((3, 8))}
    return "function", gb.bridge(
        lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], params=params, backend="jax", dtype="float64"
    )


def _keras() -> tuple[str, gb.Bridge]:
    import keras
    from keras.layers import Dense

    keras.utils.set_random_seed(0)
    options = {"dtype": "float64"}
    layers = [Dense(8, activation="tanh", **options), Dense(1, **options)]
    model = keras.Sequential([keras.Input((3,), **options), *layers])
    return "Keras MLP", gb.bridge(model, dtype="float64")
