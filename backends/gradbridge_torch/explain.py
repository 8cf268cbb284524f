"""Why a model failed, in terms of the layer that refused and what it expects, or of the derivative that torch has not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
import torch.fx
import torch.utils.checkpoint
from torch import nn

from gradbridge.errors import GradbridgeError, GuestError, HigherOrderError, InputError
from gradbridge.wording import first_line, given, in_short
from gradbridge_torch.replicas import Replica

# Attribute that a layer's input must match, and how to write the shape it wants.
_EXPECTED = (
    (nn.Linear, lambda m: f"(…, {m.in_features})"),
    (nn.Conv1d, lambda m: f"(N, {m.in_channels}, L)"),
    (nn.Conv2d, lambda m: f"(N, {m.in_channels}, H, W)"),
    (nn.Conv3d, lambda m: f"(N, {m.in_channels}, D, H, W)"),
    (nn.LayerNorm, lambda m: f"(…, {', '.join(map(str, m.normalized_shape))})"),
    (nn.BatchNorm1d, lambda m: f"(N, {m.num_features}) or (N, {m.num_features}, L)"),
    (nn.BatchNorm2d, lambda m: f"(N, {m.num_features}, H, W)"),
    (nn.RNNBase, lambda m: f"(…, {m.input_size})"),
    (nn.Embedding, lambda m: f"integers below {m.num_embeddings}"),
)


def steers(error: Exception) -> bool:
    """Whether torch raises this to steer what runs around us, so that it is to go on as it came."""
    compiler: Any = sys.modules.get("torch._dynamo.exc")
    return isinstance(error, torch.utils.checkpoint._StopRecomputationError) or (
        compiler is not None and isinstance(error, compiler.TorchDynamoException)
    )


def explain_forward(error: Exception, label: str, inputs: Sequence[Any]) -> GradbridgeError:
    """The error of ours that says which layer refused what.

    Args:
        error: what the model raised.
        label: the model's name.
        inputs: the leaves that the model was given.
    """
    came_in = given(inputs, lambda x: str(x.dtype).removeprefix("torch."))
    said = in_short(error)
    if getattr(torch.fx._symbolic_trace, "_is_fx_tracing_flag", False):
        return GuestError(
            f"{label} was called while torch.fx traces the program around it, which replaces how modules are called; "
            f"compute it before, and hand the numbers in ({said})"
        )
    root, layer, came = _refusing_layer(error.__traceback__)
    if layer is None or root is None:
        return GuestError(f"{label} failed on {came_in}: {said}")
    name = next((n for n, m in root.named_modules() if m is layer), "")
    where = f"layer {name!r} ({type(layer).__name__})" if name else type(layer).__name__
    expects = next((describe(layer) for kind, describe in _EXPECTED if isinstance(layer, kind)), None)
    if expects is None:
        return GuestError(f"{label} failed in {where} on {came_in}: {said}")
    if came is not None and not came.is_floating_point() and not isinstance(layer, nn.Embedding):
        return InputError(
            f"the bridge over {label}: {where} expects floating inputs, got {came.dtype}; integers pass the "
            f"bridge untouched, so cast them with X.astype(float) ({said})"
        )
    got = f", got {tuple(came.shape)}" if came is not None else ""
    return InputError(
        f"the bridge over {label}: {where} expects {expects}{got}; the model was given "
        f"{came_in} ({said}); check the number of columns and the axes of the inputs"
    )


def explain_backward(error: Exception, label: str, of_gradient: bool) -> GradbridgeError:
    """The error of ours for a derivative that torch has not.

    Args:
        error: torch's.
        label: the model's name.
        of_gradient: whether it is a gradient that was differentiated.
    """
    first = first_line(error)
    if not of_gradient:
        way = "look for operations in it that torch cannot differentiate"
        if "inplace" in first:
            way = "the model writes to what its derivative needs: write to a clone()"
        if "use_reentrant" in first:
            way = "call torch.utils.checkpoint.checkpoint with use_reentrant=False"
        return GuestError(f"the derivative of {label} failed in torch: {first}; {way}")
    way = "use first-order derivatives only, or write the model without the operation that it names"
    if "scaled_dot_product" in first:
        way = (
            "torch's fused attention has first derivatives only; call the model within "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH), in a module around it"
        )
    return HigherOrderError(
        f"a derivative of the gradient of {label} was asked for, and torch has none: {first}; {way}"
    )


def _refusing_layer(
    traceback: TracebackType | None,
) -> tuple[nn.Module | None, nn.Module | None, torch.Tensor | None]:
    """(the module that ran, the innermost of its parts in the traceback, the first tensor it was called with)."""
    root: nn.Module | None = None
    layer: nn.Module | None = None
    came: torch.Tensor | None = None
    parts: set[int] = set()
    while traceback is not None:
        values = traceback.tb_frame.f_locals
        replica, owner = values.get("replica"), values.get("self")
        if isinstance(replica, Replica):
            root = replica.module
            parts = set(map(id, root.modules()))
        if isinstance(owner, nn.Module) and id(owner) in parts:
            if owner is not layer:
                layer, came = owner, None
            if came is None:
                came = next((v for v in values.values() if isinstance(v, torch.Tensor)), None)
        traceback = traceback.tb_next
    return root, layer, came
