"""Private replicas of a module, whose parameter slots are filled for one forward at a time.

Filling slots costs about 50 µs less per call than `torch.func.functional_call`, and a replica is
held by one thread alone: functional_call on one shared module from two threads swaps the
parameters of one under the other, silently.
"""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import torch
from torch import nn

from gradbridge.errors import GuestError


class EmptiedError(RuntimeError):
    """A replica was computed with after its call: activation checkpointing does so, in the backward."""


class _Emptied(torch.Tensor):
    """Stands in a slot between calls. What computes with it is late, and would take it for the parameter."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise EmptiedError("parameters of a call that has ended were used again")


_EMPTIED = torch.Tensor._make_subclass(_Emptied, torch.empty(0))


class Replica:
    """One copy of the module, and where its parameters go."""

    def __init__(self, module: nn.Module, names: dict[int, int]) -> None:
        self.module = module
        # (slot dict, key, index of the parameter); tied parameters have several slots.
        self._slots = [
            (holder._parameters, key, names[id(value)])
            for holder in module.modules()
            for key, value in holder._parameters.items()
            if value is not None and id(value) in names
        ]

    def fill(self, pieces: list[torch.Tensor]) -> None:
        """Put these tensors where the parameters go."""
        for slots, key, index in self._slots:
            slots[key] = pieces[index]  # type: ignore[assignment]

    def empty(self) -> None:
        """Take the tensors out: a graph must not outlive its call by hanging in a slot."""
        for slots, key, _ in self._slots:
            slots[key] = _EMPTIED  # type: ignore[assignment]


class ReplicaPool:
    """As many replicas as there are forwards at once.

    Args:
        template: the module to copy; its trainable parameters are shared by all copies as
            placeholders and never read.
        trainable: those parameters, in the order of the layout.
        share_buffers: whether copies share the template's buffers, because nothing moves them.
    """

    def __init__(self, template: nn.Module, trainable: list[nn.Parameter], share_buffers: bool) -> None:
        self._template = template
        self._trainable = trainable
        self._share_buffers = share_buffers
        self._names = {id(p): i for i, p in enumerate(trainable)}
        # The template itself never runs: it would be copied while its slots are filled.
        self._idle: deque[Replica] = deque()

    def take(self) -> Replica:
        """A replica that nobody else holds, until it is given back."""
        try:
            return self._idle.pop()
        except IndexError:
            return self.new()

    def give_back(self, replica: Replica) -> None:
        """Let the next call have it."""
        self._idle.append(replica)

    def new(self) -> Replica:
        """A replica that is nobody else's, to be kept."""
        shared: list[torch.Tensor] = list(self._trainable)
        if self._share_buffers:
            shared += [*self._template.buffers(), *self._template.parameters()]
        return Replica(duplicate(self._template, shared), self._names)


def duplicate(module: nn.Module, shared: list[torch.Tensor]) -> nn.Module:
    """A deep copy of a module that shares some of its tensors.

    Tensors that a module computes and stores between calls (old-style weight norm does) cannot be
    deep-copied by torch; they are detached, because the next forward computes them anew.

    Raises:
        GuestError: the module cannot be copied.
    """
    memo: dict[int, Any] = {id(t): t for t in shared}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        twin: nn.Module = copy.deepcopy(module, memo)
    except Exception as error:
        raise GuestError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}), and a bridge works on "
            f"its own copy so that yours stays as it is; keep what cannot be copied (locks, files, loaders) "
            f"outside the module"
        ) from error
    return twin
