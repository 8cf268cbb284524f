"""Scenarios of the conformance kit as native functions of each host, with no bridge in them."""

import importlib
import math

import numpy as np

from gradbridge.testing.backend import NotOfferedError
from gradbridge.testing.hosts import Built, Guest


class NativeGuest(Guest):
    """What the host's users would write by hand: the closed forms, of the flat vector of params and inputs."""

    name = "native"

    def __init__(self, host):
        super().__init__()
        self.words = _WORDS[host]()

    def build(self, scenario):
        function = getattr(self, f"_{scenario.name}", None)
        if function is None:
            raise NotOfferedError(f"native: {scenario.name} is not written")

        def of_vector(params, *inputs):
            return function(self._arrays(scenario, params), *inputs)

        native = self.words.get("as_one", lambda f: f)(of_vector if scenario.size else function)
        return Built(native, np.arange(scenario.size))

    def _arrays(self, scenario, params):
        arrays, start = {}, 0
        for name, shape in scenario.shapes.items():
            stop = start + math.prod(shape)
            arrays[name] = self.words["reshape"](params[start:stop], shape)
            start = stop
        return arrays

    def _mlp(self, p, x):
        tanh, dot = self.words["tanh"], self.words["dot"]
        return dot(tanh(dot(x, p["weight1"]) + p["bias1"]), p["weight2"]) + p["bias2"]

    def _energy(self, x, y):
        return self.words["sum"](x**2 * y)

    def _embedding(self, p, x):
        return self.words["take"](p["table"], x)

    def _outputs(self, p, x):
        return {"scaled": x * p["scale"], "rest": (x**2, self.words["sum"](p["scale"] ** 2))}

    def _unused(self, p, x, y):
        return self.words["exp"](self.words["dot"](x, p["weight"]) / 4)

    def _labels(self, p, x):
        return p["scale"] * x, self.words["argmax"](x, 1)

    def _wave(self, p, x, z):
        real, conj, phase = self.words["real"], self.words["conj"], self.words["phase"]
        square = real(z * conj(z))
        return phase(p["scale"] * square, x) * z, square


def _like_numpy(module):
    np_ = importlib.import_module(module)
    names = ("tanh", "exp", "sum", "argmax", "dot", "reshape", "real", "conj")
    return {
        **{name: getattr(np_, name) for name in names},
        "take": lambda table, x: table[x],
        "phase": lambda r, x: r * np_.exp(1j * x),
    }


def _torch():
    import torch

    names = ("tanh", "exp", "sum", "argmax", "reshape", "real", "conj")
    return {
        **{name: getattr(torch, name) for name in names},
        "dot": torch.matmul,
        "take": lambda table, x: table[x],
        "phase": lambda r, x: r * torch.exp(1j * x),
    }


def _tensorflow():
    import tensorflow as tf

    return {
        **{name: getattr(tf, name) for name in ("tanh", "exp", "argmax", "reshape")},
        **{"sum": tf.reduce_sum, "dot": tf.matmul, "take": tf.gather},
        **{"real": tf.math.real, "conj": tf.math.conj},
        "phase": lambda r, x: tf.complex(r * tf.cos(x), r * tf.sin(x)),
    }


def _jax():
    import jax

    # Compiled as a whole: XLA takes its time for each operation that is met the first time.
    return {**_like_numpy("jax.numpy"), "as_one": jax.jit}


_WORDS = {
    "autograd": lambda: _like_numpy("autograd.numpy"),
    "jax": _jax,
    "torch": _torch,
    "tensorflow": _tensorflow,
}
