"""tesseract-jax: a Tesseract in JAX, here a local one with the recipe for PyTorch that tesseract-core comes with."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from tesseract_core import Tesseract
from tesseract_core.runtime import Array, Differentiable, Float32
from tesseract_jax import apply_tesseract

from benchmarks.host_programs.in_torch import module
from benchmarks.host_programs.system import Weights


class InputSchema(BaseModel):
    """Weights in the order of the module, and the input."""

    params: list[Differentiable[Array[..., Float32]]]
    x: Array[(None, None), Float32]


class OutputSchema(BaseModel):
    """The network's output."""

    y: Differentiable[Array[(None, None), Float32]]


def make(weights: Weights, X: np.ndarray) -> tuple[Callable[[Any, Any], Any], Any]:
    """See `benchmarks.host_programs.peers.Make`."""
    model = module(weights, str(X.dtype))
    names = [name for name, _ in model.named_parameters()]
    outputs = len(weights[-1][1])

    def network(params: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, dict(zip(names, params)), (x,))

    def apply(inputs: InputSchema) -> OutputSchema:
        with torch.no_grad():
            y = network([torch.from_numpy(p) for p in inputs.params], torch.from_numpy(inputs.x))
        return OutputSchema(y=y.numpy())

    def vector_jacobian_product(
        inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
    ) -> dict[str, Any]:
        x, params = torch.from_numpy(inputs.x), [torch.from_numpy(p) for p in inputs.params]
        pull = torch.func.vjp(lambda p: network(p, x), params)[1]
        (gradients,) = pull(torch.from_numpy(cotangent_vector["y"]))
        return {f"params.[{i}]": gradients[i].numpy() for i in range(len(names))}

    def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
        return {"y": {"shape": (abstract_inputs.x.shape[0], outputs), "dtype": "float32"}}

    api = types.ModuleType("tesseract_api")
    for part in (InputSchema, OutputSchema, apply, vector_jacobian_product, abstract_eval):
        setattr(api, part.__name__, part)
    tesseract = Tesseract.from_tesseract_api(api)

    def f(params: Any, x: Any) -> Any:
        return apply_tesseract(tesseract, {"params": params, "x": x})["y"]

    return f, [p.detach().numpy() for p in model.parameters()]
