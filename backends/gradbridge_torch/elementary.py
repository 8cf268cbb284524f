"""Operations whose derivatives are wrong in torch beyond some order, by a formula of elementary ones.

torch's backward of a few fused operations takes statistics that the forward saved for constants, so
that the gradient can be differentiated, but not as often as it says: LayerNorm's and BatchNorm's
(in train mode; InstanceNorm's, too) third derivatives are wrong, and weight norm's second; a sparse gradient of
an embedding forgets the cotangent that it is of; and fused attention has one derivative. Against
central differences in float64 these were the only ones among torch's own list of 600 operations with samples
(2.13; but for a chunked loss that keeps its gradient, which is refused where it is compared); GroupNorm and
RMSNorm are right to every order.

So a gradient through one of them is not differentiated as it was recorded. It is computed anew, and
then the model runs within `Elementary`, which puts the formula in the operation's place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.autograd.graph import Node
from torch.nn import functional
from torch.overrides import TorchFunctionMode

#: A depth at which every operation is replaced by its formula.
ALL_FORMULAS = 2


class Elementary(TorchFunctionMode):
    """Computes with formulas where torch's own derivatives would be wrong.

    Args:
        depth: how often what runs within will be differentiated with a graph.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        self._formulas = {func: formula for func, (least, formula) in _FORMULAS.items() if least <= depth}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._formulas.get(func, func)(*args, **(kwargs or {}))


def has_sparse_gradients(nodes: Iterable[Node]) -> bool:
    """Whether the graph of a model gives sparse gradients, which few operations and optimizers take."""
    return any(getattr(node, "_saved_sparse", False) for node in nodes)


def fused_beyond_its_order(nodes: Iterable[Node]) -> str | None:
    """The operation in a graph whose gradients, recorded, would have a wrong derivative; None where there is none."""
    for node in nodes:
        name = node.name()
        if name.startswith("WeightNormInterfaceBackward"):
            return "weight norm"
        if name.startswith("ScaledDotProduct"):
            return "fused attention"
        if name.startswith("Embedding") and getattr(node, "_saved_sparse", False):
            return "an embedding with sparse=True"
        if "NormBackwardBackward" in name:
            # In eval mode the statistics are constants, and all is right.
            if name.startswith("NativeLayerNorm"):
                return "LayerNorm"
            if "BatchNorm" in name and getattr(node, "_saved_train", True):
                return "BatchNorm in train mode"
    return None


def _layer_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> torch.Tensor:
    return _affine(_standardized(x, tuple(range(-len(normalized_shape), 0)), eps), weight, bias)


def _batch_norm(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    own: Callable[..., torch.Tensor] = functional.batch_norm,
    first_axes: tuple[int, ...] = (0,),
) -> torch.Tensor:
    if not training:
        return own(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if running_mean is not None:
        with torch.no_grad():  # moves the statistics
            own(x, running_mean, running_var, None, None, training, momentum, eps)
    shape = (1, -1, *(1,) * (x.dim() - 2))
    normal = _standardized(x, (*first_axes, *range(2, x.dim())), eps)
    return _affine(normal, *(None if t is None else t.view(shape) for t in (weight, bias)))


def _instance_norm(
    x: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    own = functional.instance_norm
    return _batch_norm(
        x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, own, first_axes=()
    )


def _weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    axes = tuple(axis for axis in range(v.dim()) if axis != dim) if dim != -1 else tuple(range(v.dim()))
    # A square root rather than a norm: v is not zero where weight norm makes sense.
    return v * (g / (v * v).sum(axes, keepdim=True).sqrt() if axes else g / v.abs())


def _dense(own: Callable[..., Any]) -> Callable[..., Any]:
    """An embedding whose gradient is dense: a sparse one does not remember its cotangent."""
    parameters = inspect.signature(own)

    def embedding(*args: Any, **kwargs: Any) -> Any:
        bound = parameters.bind(*args, **kwargs)
        bound.arguments["sparse"] = False
        return own(*bound.args, **bound.kwargs)

    return embedding


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **rest: Any,
) -> torch.Tensor:
    if dropout_p:  # its mask is that of the kernel
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, **rest
        )
    result = torch._scaled_dot_product_attention_math(query, key, value, attn_mask, 0.0, is_causal, **rest)
    return result[0]  # type: ignore[no-any-return]


_multi_head = inspect.signature(functional.multi_head_attention_forward)


def _multi_head_attention(*args: Any, **kwargs: Any) -> Any:
    """Asked for the weights as well, which fused attention has not."""
    bound = _multi_head.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    if given["need_weights"] or (given["dropout_p"] and given["training"]):
        return functional.multi_head_attention_forward(*args, **kwargs)
    given["need_weights"] = True
    return functional.multi_head_attention_forward(*bound.args, **bound.kwargs)[0], None


def _standardized(x: torch.Tensor, axes: tuple[int, ...], eps: float) -> torch.Tensor:
    central = x - x.mean(axes, keepdim=True)
    return central * torch.rsqrt((central * central).mean(axes, keepdim=True) + eps)


def _affine(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


#: operation: (from how many derivatives with a graph on its own are wrong, its formula)
_FORMULAS: dict[Any, tuple[int, Callable[..., Any]]] = {
    torch._weight_norm: (1, _weight_norm),
    functional.layer_norm: (2, _layer_norm),
    torch.layer_norm: (2, _layer_norm),
    functional.batch_norm: (2, _batch_norm),
    functional.instance_norm: (2, _instance_norm),
    functional.scaled_dot_product_attention: (1, _attention),
    functional.multi_head_attention_forward: (1, _multi_head_attention),
    functional.embedding: (1, _dense(functional.embedding)),
    functional.embedding_bag: (1, _dense(functional.embedding_bag)),
}
