"""Value and gradient of a network in the programs of every host: its own, ours, and those of others.

A program takes the sum of squares of the network's outputs, and its gradient by all parameters. The host's and the
guest's own programs, the bridge's and the peers' alternate in one run, and every one of them must give the same value
and gradient before it is timed. Ratios are to the guest's and the host's own program, and of the bridge to a peer.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import autograd.numpy as anp
import numpy as np
import optree
from autograd import value_and_grad

import gradbridge as gb
from benchmarks.figures import Figure, Report, ratio, seconds
from benchmarks.host_programs.in_autograd import network
from benchmarks.host_programs.peers import PEERS
from benchmarks.host_programs.system import Step, System, Weights, cast, random_weights
from benchmarks.networks import SIZES
from benchmarks.timing import best_of_each, clock_name
from gradbridge.wording import first_line

SYSTEMS = {
    "autograd": "in_autograd:Autograd",
    "torch": "in_torch:Torch",
    "jax": "in_jax:JAX",
    "tensorflow": "in_tensorflow:TensorFlow",
}
HEADINGS = ("way", "guest", "program", "time", "÷ guest", "÷ host", "ours ÷ it")

#: Largest ratios, by (host, way, guest, size): of the bridge to the guest alone …
TO_GUEST = {
    ("jax", "jitted", "torch", "large"): 1.15,
    ("torch", "eager", "jax", "large"): 1.15,
    ("jax", "jitted", "jax", "tiny"): 1.05,
    ("jax", "jitted", "jax", "large"): 1.05,
    ("torch", "eager", "torch", "tiny"): 1.10,
    ("torch", "eager", "torch", "large"): 1.03,
}
#: … and to a peer.
TO_PEER = {
    ("jax", "jitted", "wrap-torch2jax", "tiny"): 0.75,
    ("jax", "jitted", "wrap-torch2jax", "large"): 0.75,
    ("torch", "eager", "DLPack by hand", "tiny"): 0.7,
    ("torch", "eager", "DLPack by hand", "large"): 1.0,
}
#: How far a value and the norm of a gradient may be from the others' in single precision, relatively.
TOLERANCE = 1e-3
#: What programs are called in the tables.
EMPTY, ALONE = "its own no-op", "alone"
TREE, VECTOR = "gradbridge, tree", "gradbridge, vector"


class Timed(NamedTuple):
    """A program that is timed, by its words in the table: how it runs, whose network it takes, and how that is called."""

    way: str
    guest: str
    program: str


def run(report: Report, *hosts: str, sizes: tuple[str, ...] = ("tiny", "large"), length: float = 1.0) -> None:
    """Print a table for each host and size.

    Args:
        report: to print with.
        *hosts: names of some; all that are installed if there are none.
        sizes: of `benchmarks.networks.SIZES`.
        length: how long to measure each program for, in seconds, about.
    """
    systems = {name: system(name) for name in available()}
    for host in hosts or systems:
        for size in sizes:
            _table(report, systems, systems[host], size, length)
        for peer in PEERS:
            if peer.host == host and peer.missing:
                report.say(f"not installed: {peer.label}, which calls {peer.guest} in {host}: {peer.install}")
        report.say("")


def available() -> list[str]:
    """The systems that work here."""
    return [name for name in SYSTEMS if gb.backends()[name].available]


def system(name: str) -> System:
    """One of `SYSTEMS`."""
    module, _, kind = SYSTEMS[name].partition(":")
    made: System = getattr(importlib.import_module(f"benchmarks.host_programs.{module}"), kind)()
    return made


def _table(report: Report, systems: dict[str, System], host: System, size: str, length: float) -> None:
    sizes, rows = SIZES[size]
    weights = random_weights(sizes)
    X = np.random.default_rng(0).normal(size=(rows, sizes[0])).astype(host.dtype)
    expected = _value_and_norm(value_and_grad(lambda p: anp.sum(network(p, X) ** 2))(weights))
    steps: dict[Timed, Step] = {}
    reasons: dict[Timed, str] = {}
    for timed, make in _programs(systems, host, weights, X):
        try:
            step = make()
            value = step()
        except Exception as error:  # said below the table; the other programs are timed all the same
            reasons[timed] = f"{type(error).__name__}: {first_line(error)}"
            continue
        if timed.program != EMPTY and not np.allclose(_value_and_norm(value), expected, rtol=TOLERANCE):
            raise AssertionError(f"{', '.join(timed)}: value and gradient are not those of the same network")
        steps[timed] = step
    times = best_of_each(steps, length)
    params = sum(weight.size + bias.size for weight, bias in weights)
    title = (
        f"{host.label} host, {size}: value and gradient by {params:,} params, {rows} rows, {host.dtype}, one thread, "
        f"{clock_name()}"
    )
    with report.table(title, *HEADINGS, of=f"{host.label} host, {size}") as table:
        for timed, taken in times.items():
            table.row(*timed, seconds(taken), *_ratios(timed, times, systems, host, size))
        for timed in reasons:
            table.row(*timed, "raises", *["–"] * 3)
    for timed, reason in reasons.items():
        report.say(f"{', '.join(timed)} raises {reason}")


def _programs(
    systems: dict[str, System], host: System, weights: Weights, X: np.ndarray
) -> Iterator[tuple[Timed, Callable[[], Step]]]:
    """What is timed, and what makes it, in the order of the table."""
    for way in host.ways:
        yield Timed(way, "", EMPTY), partial(host.empty, way)
        yield Timed(way, host.name, ALONE), partial(host.alone, weights, X, way)
    for name, guest in systems.items():
        if guest is not host:
            yield Timed(guest.usual, name, ALONE), partial(guest.alone, weights, X, guest.usual)
    for name, guest in systems.items():
        bridge, tree = guest.guest(weights)
        forms = {TREE: cast(tree, host.dtype)}
        if host.passes_vectors:
            forms[VECTOR] = bridge.params.astype(host.dtype)
        for way in host.ways:
            for form, params in forms.items():
                yield Timed(way, name, form), partial(host.program, bridge, params, X, way)
            for peer in PEERS:
                if (peer.host, peer.guest) == (host.name, name) and way in peer.ways and not peer.missing:
                    f, params = peer.made(weights, X)
                    yield Timed(way, name, peer.label), partial(host.program, f, params, X, way)
        if host.layer:
            yield Timed(host.ways[0], name, host.layer), partial(host.as_layer, bridge, X)


def _ratios(
    timed: Timed, times: dict[Timed, float], systems: dict[str, System], host: System, size: str
) -> list[str | Figure]:
    """A cell for each of the last three headings."""
    way, guest, program = timed
    if program in (EMPTY, ALONE):
        return ["–"] * 3
    taken, ours = times[timed], times.get(Timed(way, guest, TREE))
    by_leaves = program == TREE
    to_guest = TO_GUEST.get((host.name, way, guest, size)) if by_leaves else None
    to_peer = TO_PEER.get((host.name, way, program, size))
    return [
        ratio(taken / times[Timed(systems[guest].usual, guest, ALONE)], at_most=to_guest),
        ratio(taken / times[Timed(way, host.name, ALONE)]),
        ratio(ours / taken, at_most=to_peer) if ours and not program.startswith("gradbridge") else "–",
    ]


def _value_and_norm(result: tuple[Any, Any]) -> tuple[float, float]:
    """A value, and the norm of its gradient: the same in whatever order and shape the parameters are."""
    value, gradients = result
    squares = (np.sum(np.square(np.asarray(g, np.float64))) for g in optree.tree_leaves(gradients))
    return float(value), math.sqrt(sum(squares))
