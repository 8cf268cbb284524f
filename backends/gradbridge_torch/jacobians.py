"""Many cotangents at once, and rows apart: torch's own vmap over a backward or over a whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_run_backward = getattr(getattr(torch.autograd.Variable, "_execution_engine", None), "run_backward", None)


def pulled_back(
    outputs: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor | None]:
    """Gradients for one cotangent per output, of its shape and dtype; None where there is no influence.

    ``torch.autograd.grad`` without its checks, which cost as much as the backward of a small model:
    28 of 110 µs for 10 parameters. The border has checked.
    """
    if _run_backward is not None and all(type(t) is torch.Tensor for t in outputs):
        found: Sequence[torch.Tensor | None] = _run_backward(
            tuple(outputs), tuple(cotangents), True, False, tuple(wanted), True, accumulate_grad=False
        )
        return found
    return torch.autograd.grad(outputs, wanted, cotangents, retain_graph=True, allow_unused=True)


def pulled_many(
    outputs: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor | None] | None:
    """Gradients for cotangents with a leading axis; None where torch cannot batch some operation.

    Args:
        outputs: with their graph, which is kept.
        wanted: leaves of the graph.
        cotangents: one per output, (many, *output shape).
    """
    try:
        return torch.autograd.grad(
            outputs, wanted, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return None


def jacobians_of_rows(
    compute: Callable[[list[torch.Tensor], list[Any]], list[torch.Tensor]],
    shared: list[torch.Tensor],
    leaves: list[Any],
    rowed: tuple[bool, ...],
) -> list[list[torch.Tensor]] | None:
    """Jacobians of each row with respect to the shared tensors; None where torch cannot.

    Args:
        compute: (shared, leaves) ↦ floating outputs, of a single row as a batch of one.
        shared: what is differentiated.
        leaves: inputs, tensors and others.
        rowed: which leaves have rows.

    Returns:
        For each output a tensor (rows, numbers in the output of one row, *shape) per shared tensor.
    """
    rows = [leaf for leaf, yes in zip(leaves, rowed) if yes]

    def one(shared: list[torch.Tensor], row: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        rest = iter(row)
        alone = [next(rest)[None] if yes else leaf for leaf, yes in zip(leaves, rowed)]
        return tuple(output.reshape(-1) for output in compute(shared, alone))

    def of_row(*row: torch.Tensor) -> list[list[torch.Tensor]]:
        outputs, vjp = torch.func.vjp(lambda s: one(s, row), shared)
        found = []
        for index, output in enumerate(outputs):
            if len(output) == 1:  # no inner vmap: half of the time of a model with one output
                units = [
                    torch.ones_like(o) if i == index else torch.zeros_like(o) for i, o in enumerate(outputs)
                ]
                (gradients,) = vjp(tuple(units))
                found.append([g[None] for g in gradients])
                continue
            many = [
                torch.eye(len(output), dtype=o.dtype, device=o.device)
                if i == index
                else torch.zeros(len(output), len(o), dtype=o.dtype, device=o.device)
                for i, o in enumerate(outputs)
            ]
            found.append(torch.func.vmap(lambda *c: vjp(c)[0])(*many))
        return found

    return torch.func.vmap(of_row)(*rows)
