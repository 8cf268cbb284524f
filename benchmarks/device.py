"""Torch in JAX and JAX in torch: what stays on the accelerator, where there is one, and what memory is shared.

On an accelerator that both use: where outputs and gradients are, how many bytes a value with its gradient copies
between it and the host's memory, and how long it takes. Without one: which of the arrays that the guest computes with
lie where the host has its own, on the CPU.
"""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import gradbridge as gb
from benchmarks.figures import Report, count, mebibytes, seconds
from benchmarks.host_programs.system import Weights, cast, random_weights
from benchmarks.networks import SIZES
from benchmarks.timing import best_of_each, clock_name

WARM_UP = 3


class Program(NamedTuple):
    """A host's program over a guest.

    Attributes:
        host, guest: both, in words.
        weights, X: the host's own arrays.
        step: computes the output and the gradients by the weights.
    """

    host: str
    guest: str
    weights: list[Any]
    X: Any
    step: Callable[[], tuple[Any, list[Any]]]


def run(report: Report, size: str = "large") -> None:
    """Say what there is here, and print a table of what was measured on it.

    Args:
        report: to print with.
        size: of `benchmarks.networks.SIZES`; the large one's arrays lie as XLA wants to have them.
    """
    missing = [name for name in ("torch", "jax") if not gb.backends()[name].available]
    if missing:
        report.say(f"nothing to measure: {' and '.join(missing)} cannot be used here")
        return
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX leaves no memory to torch
    import jax
    import torch

    devices = {d.platform: d.device_kind for d in jax.devices()}
    theirs = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = (
        f"torch {torch.__version__}, which sees {theirs}, and JAX {jax.__version__}, which sees {devices}"
    )
    if torch.cuda.is_available() and "gpu" in devices:
        report.say(f"measured on the accelerator: {versions}")
        _on_the_accelerator(report, size)
    else:
        report.say(f"no accelerator that both can use: {versions}; measured: where arrays lie on the CPU")
        _on_the_cpu(report, size)


def _on_the_cpu(report: Report, size: str) -> None:
    from benchmarks.host_programs.pointers import network, noting_layers, pointer, seen

    headings = ("host", "guest", "what", "arrays", "shared", "copied")
    title = f"memory that guest and host share, {size}, float32, CPU"
    with report.table(title, *headings) as table, noting_layers():
        for program in _programs(size, "cpu", network):
            for _ in range(WARM_UP):
                for addresses in seen.values():
                    addresses.clear()
                output, _ = program.step()
            for what, own in {"weights": program.weights, "input": [program.X], "output": [output]}.items():
                shared = [pointer(array) in seen[what] for array in own]
                copied = sum(a.nbytes for a, is_shared in zip(own, shared) if not is_shared)
                figures = count(len(own), "arrays"), count(sum(shared), "shared"), mebibytes(copied / 2**20)
                table.row(program.host, program.guest, what, *figures)


def _on_the_accelerator(report: Report, size: str) -> None:
    from benchmarks.native_jax import network

    programs = _programs(size, "cuda", network)
    times = best_of_each({f"{p.host}, {p.guest}": _waited(p.step) for p in programs})
    headings = ("host", "guest", "time", "outputs", "gradients", "to the host", "to the device")
    title = f"value and gradient, {size}, float32, {clock_name()}; how many arrays are on the accelerator"
    with report.table(title, *headings) as table:
        for program in programs:
            output, gradients = program.step()
            to_host, to_device = _copied(_waited(program.step))
            table.row(
                program.host,
                program.guest,
                seconds(times[f"{program.host}, {program.guest}"]),
                count(_is_there(output), "outputs", at_least=1),
                count(sum(map(_is_there, gradients)), "gradients", at_least=len(gradients)),
                mebibytes(to_host / 2**20),
                mebibytes(to_device / 2**20),
            )


def _programs(size: str, place: str, network: Callable[[Any, Any], Any]) -> list[Program]:
    """The programs of both hosts over the other's guest, and over their own.

    Args:
        size: of the network.
        place: "cpu" or "cuda".
        network: in JAX.
    """
    import jax
    import jax.numpy as jnp
    import torch

    from benchmarks.host_programs.in_torch import module

    sizes, rows = SIZES[size]
    weights: Weights = cast(random_weights(sizes), "float32")
    X = np.random.default_rng(0).normal(size=(rows, sizes[0])).astype("float32")
    model = module(weights, "float32").to(place)
    in_torch = gb.bridge(model)
    in_jax = gb.bridge(network, params=weights, backend="jax")
    structure = jax.tree.structure(weights)

    def of_torch(f: gb.Bridge, guest: str, leaves: list[np.ndarray], tree: Callable[[Any], Any]) -> Program:
        own = [torch.tensor(array, device=place, requires_grad=True) for array in leaves]
        data = torch.tensor(X, device=place)

        def step() -> tuple[Any, list[Any]]:
            y = f(tree(own), data)
            return y, list(torch.autograd.grad((y**2).sum(), own))

        return Program("torch", guest, own, data, step)

    def of_jax(
        f: gb.Bridge, guest: str, leaves: list[np.ndarray], tree: Callable[[Any], Any], way: str
    ) -> Program:
        own, data = [jnp.array(array) for array in leaves], jnp.array(X)

        def loss(p: list[jax.Array], x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = f(tree(p), x)
            return jnp.sum(y**2), y

        through = jax.value_and_grad(loss, has_aux=True)
        through = jax.jit(through) if way == "jitted" else through

        def step() -> tuple[Any, list[Any]]:
            (_, y), gradients = jax.block_until_ready(through(own, data))
            return y, gradients

        return Program(f"JAX, {way}", guest, own, data, step)

    names = [name for name, _ in model.named_parameters()]
    arrays = [p.detach().cpu().numpy() for p in model.parameters()]
    by_name = lambda p: dict(zip(names, p))  # noqa: E731
    as_tree = lambda p: jax.tree.unflatten(structure, p)  # noqa: E731
    leaves = jax.tree.leaves(weights)
    return [
        of_torch(in_torch, "torch", arrays, by_name),
        of_torch(in_jax, "JAX", leaves, as_tree),
        *(of_jax(in_torch, "torch", arrays, by_name, way) for way in ("eager", "jitted")),
        *(of_jax(in_jax, "JAX", leaves, as_tree, way) for way in ("eager", "jitted")),
    ]


def _is_there(array: Any) -> bool:
    """Whether an array of either system is on the accelerator."""
    import torch

    return (
        array.is_cuda
        if isinstance(array, torch.Tensor)
        else all(d.platform == "gpu" for d in array.devices())
    )


def _waited(step: Callable[[], tuple[Any, list[Any]]]) -> Callable[[], None]:
    """The same until the accelerator is done."""
    import torch

    def waited() -> None:
        step()
        torch.cuda.synchronize()

    return waited


def _copied(step: Callable[[], None]) -> tuple[int, int]:
    """Bytes that a step copies (to the host, to the device), whichever library does it: the driver reports all."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        return bytes_copied(json.loads(path.read_text())["traceEvents"])


def bytes_copied(events: list[dict[str, Any]]) -> tuple[int, int]:
    """Of the events of a trace of torch's profiler: (to the host, to the device)."""
    copies = [event for event in events if event.get("cat") == "gpu_memcpy"]
    to_host, to_device = (
        sum(int(event["args"]["bytes"]) for event in copies if direction in event["name"])
        for direction in ("DtoH", "HtoD")
    )
    return to_host, to_device
