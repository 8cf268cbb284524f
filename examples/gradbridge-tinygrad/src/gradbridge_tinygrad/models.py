"""tinygrad's models: any callable object whose attributes are tensors, or hold some."""

from __future__ import annotations

import copy
from typing import Any

from tinygrad import Tensor, nn

from gradbridge_tinygrad.tensors import read


def states(model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """({name: parameter}, {name: buffer}) of a model; one that it holds twice appears once."""
    params: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in nn.state.get_state_dict(model).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            (params if tensor.is_param and tensor.is_floating_point() else buffers)[name] = tensor
    return params, buffers


def holding(model: Any, pieces: list[Tensor], own_buffers: bool = False) -> Any:
    """A copy of a model with other parameters in it; buffers are shared, unless it shall own them."""
    params, buffers = states(model)
    # What deepcopy finds in its memo it takes instead of copying.
    memo: dict[int, Any] = {id(old): new for old, new in zip(params.values(), pieces)}
    for buffer in buffers.values():
        memo[id(buffer)] = Tensor(read(buffer), device=buffer.device) if own_buffers else buffer
    return copy.deepcopy(model, memo)
