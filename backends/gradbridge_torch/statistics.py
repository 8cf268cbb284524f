"""The buffers that a module in train mode moves: taken over, followed, and told by the names that its `state_dict` has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from gradbridge.layout import Array
from gradbridge_torch.replicas import lent
from gradbridge_torch.tensors import view_of


class MovesBuffers:
    """The half of a module's model that has its buffers.

    Attributes:
        moves: whether its forwards move them.
    """

    moves: bool
    _lock: Any
    _template: nn.Module

    def move(self, after: Sequence[Any]) -> None:
        with self._lock:
            for part, buffers in zip(self._template.modules(), after):
                for key, value in buffers.items():
                    part._buffers[key] = None if value is None else value.detach()
                    if value is not None:
                        lent(part._buffers[key])

    def follow(self, other: Self) -> None:
        with other._lock:
            theirs = [dict(part._buffers) for part in other._template.modules()]
        own = [part._buffers for part in self._template.modules()]
        with torch.no_grad():
            self.move([{k: _like(v, ours[k]) for k, v in b.items()} for ours, b in zip(own, theirs)])

    def statistics(self) -> dict[str, Array]:
        if not self.moves:
            return {}
        with self._lock:
            saved = self._template.state_dict(keep_vars=True)
            buffers = {name: b for name, b in self._template.named_buffers() if name in saved}
            return {name: np.array(view_of(buffer.detach())) for name, buffer in buffers.items()}

    def set_statistics(self, arrays: Mapping[str, Array]) -> None:
        def moved(name: str, own: torch.Tensor | None) -> torch.Tensor | None:
            return (
                own
                if own is None or name not in arrays
                else _like(torch.tensor(arrays[name]).to(own.device), own)
            )

        self.move(
            [
                {key: moved(f"{path}.{key}" if path else key, own) for key, own in part._buffers.items()}
                for path, part in self._template.named_modules()
            ]
        )


def _like(buffer: torch.Tensor | None, own: torch.Tensor | None) -> torch.Tensor | None:
    """A copy of a buffer in the dtype of the one that it replaces."""
    if buffer is None or own is None:
        return buffer
    return buffer.detach().to(own.dtype, copy=True)
