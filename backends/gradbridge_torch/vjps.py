"""VJPs of functions of tensors, differentiable themselves: what derivatives that are computed anew consist of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from gradbridge.framework import Framework, Function, RunAgain
from gradbridge_torch.elementary import ALL_FORMULAS, Elementary, fused_beyond_its_order
from gradbridge_torch.graphs import Gradients, operations, recorded_gradients, refuse_fused
from gradbridge_torch.surroundings import transform


class _Nesting(threading.local):
    """How many VJPs are being computed around this place in the thread, and whether one was since it was asked."""

    depth = 0
    differentiated = False


nesting = _Nesting()


class RecordedVJPs(Framework):
    """The half of torch's framework that differentiates a function within a computation.

    Args:
        label: of the model, for errors.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        #: Kinds of operations that were seen to have a recorded backward: see `recorded_gradients`.
        self.checked: set[frozenset[str]] = set()
        #: How often what runs is differentiated at least, by the model itself and around it.
        self._least_depth = 0

    def vjp(self, fn: Function, primals: list[Any]) -> tuple[list[Any], Callable[[list[Any]], Sequence[Any]]]:
        is_mapped = transform() is not None
        nesting.depth += 1
        depth = max(nesting.depth, self._least_depth)
        try:
            if is_mapped:
                # A per-example first derivative needs no formulas, and would pay for the look-out for them.
                with Elementary(depth) if depth > 1 else nullcontext():
                    outputs, pull = torch.func.vjp(fn, list(primals))
                return outputs, lambda cotangents: pull(list(cotangents))[0]
            primals = [p if p.requires_grad else p.detach().requires_grad_() for p in primals]
            with torch.enable_grad(), Elementary(depth):
                outputs = fn(primals)
            if fused_beyond_its_order(operations(outputs)) is not None:
                if depth >= ALL_FORMULAS:
                    refuse_fused(outputs, self.label)
                # The model takes gradients itself: the whole computation again, since it draws its numbers anew.
                self._least_depth = ALL_FORMULAS
                raise RunAgain
        finally:
            nesting.depth -= 1
            nesting.differentiated = True

        def pull_recorded(cotangents: list[Any]) -> Gradients:
            with torch.enable_grad(), Elementary(depth):
                # Tracked, so that torch's own word is heard where a function has one derivative only.
                pairs = [
                    (y, c if c.requires_grad else c.detach().requires_grad_())
                    for y, c in zip(outputs, cotangents)
                    if y.requires_grad
                ]
                nodes = operations(y for y, _ in pairs)
                return recorded_gradients(pairs, primals, self.label, nodes, self.checked)

        return outputs, pull_recorded
