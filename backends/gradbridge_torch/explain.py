"""Why a model's forward failed, in terms of the layer that refused and what it expects."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from gradbridge.errors import GradbridgeError, GuestError, InputError

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


def explained(error: Exception, label: str, root: nn.Module | None, inputs: Sequence[Any]) -> GradbridgeError:
    """The error of ours that says which layer refused what.

    Args:
        error: what the model raised.
        label: the model's name.
        root: the module that ran, or None for a function.
        inputs: the leaves that the model was given.
    """
    given = ", ".join(
        f"input {i} of shape {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
        for i, x in enumerate(inputs)
        if isinstance(x, torch.Tensor)
    )
    said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    layer, came = _refusing_layer(error.__traceback__, root)
    if layer is not None and root is not None:
        name = next((n for n, m in root.named_modules() if m is layer), "")
        where = f"layer {name!r} ({type(layer).__name__})" if name else type(layer).__name__
        expects = next((describe(layer) for kind, describe in _EXPECTED if isinstance(layer, kind)), None)
        if (
            came is not None
            and not came.is_floating_point()
            and expects
            and not isinstance(layer, nn.Embedding)
        ):
            return InputError(
                f"the bridge over {label}: {where} expects floating inputs, got {came.dtype}; integers pass the "
                f"bridge untouched, so cast them with X.astype(float) ({said})"
            )
        if expects is not None:
            got = f", got {tuple(came.shape)}" if came is not None else ""
            return InputError(
                f"the bridge over {label}: {where} expects {expects}{got}; the model was given "
                f"{given or 'no array'} ({said}); check the number of columns and the axes of the inputs"
            )
        return GuestError(f"{label} failed in {where} on {given or 'no array'}: {said}")
    return GuestError(f"{label} failed on {given or 'no array'}: {said}")


def _refusing_layer(
    traceback: TracebackType | None, root: nn.Module | None
) -> tuple[nn.Module | None, torch.Tensor | None]:
    """The innermost module in the traceback, and the first tensor it was called with."""
    layer: nn.Module | None = None
    came: torch.Tensor | None = None
    parts = set(map(id, root.modules())) if root is not None else set()
    while traceback is not None:
        values = traceback.tb_frame.f_locals
        owner = values.get("self")
        if isinstance(owner, nn.Module) and id(owner) in parts:
            if owner is not layer:
                layer, came = owner, None
            if came is None:
                came = next((v for v in values.values() if isinstance(v, torch.Tensor)), None)
        traceback = traceback.tb_next
    return layer, came
