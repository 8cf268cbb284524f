"""What one would use without gradbridge: packages, where they are installed, and what is written by hand."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.host_programs.system import Weights

#: Makes, of the guest's weights and the inputs, a function of (weights, inputs) that the host differentiates, and
#: the weights in its form: arrays of NumPy.
Make = Callable[[Weights, np.ndarray], tuple[Callable[[Any, Any], Any], Any]]


class Peer(NamedTuple):
    """Another way to call a network of one system in a program of another.

    Attributes:
        label: in the tables.
        host, guest: names of systems.
        ways: of the host, that it can.
        needs: modules beside those of the two systems.
        install: what installs them.
        make: the module that has it, and its function there.
    """

    label: str
    host: str
    guest: str
    ways: tuple[str, ...]
    needs: tuple[str, ...]
    install: str
    make: str

    @property
    def missing(self) -> bool:
        """Whether a module that it needs is not installed."""
        return any(importlib.util.find_spec(name) is None for name in self.needs)

    def made(self, weights: Weights, X: np.ndarray) -> tuple[Callable[[Any, Any], Any], Any]:
        """See `Make`."""
        module, _, function = self.make.partition(":")
        make: Make = getattr(importlib.import_module(f"benchmarks.host_programs.{module}"), function)
        return make(weights, X)


PEERS = (
    Peer(
        "wrap-torch2jax",
        "jax",
        "torch",
        ("eager", "jitted"),
        ("wrap_torch2jax",),
        "pip install wrap-torch2jax",
        "peer_torch2jax:make",
    ),
    Peer(
        "tesseract-jax",
        "jax",
        "torch",
        ("eager", "jitted"),
        ("tesseract_jax", "tesseract_core", "fastapi", "lz4"),  # what its runtime needs, too
        "pip install tesseract-jax tesseract-core[runtime]",
        "peer_tesseract:make",
    ),
    Peer("agjax", "jax", "autograd", ("eager",), ("agjax",), "pip install agjax", "peer_agjax:make"),
    Peer("DLPack by hand", "torch", "jax", ("eager",), (), "", "peer_by_hand:make"),
)
