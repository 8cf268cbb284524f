"""Results that a module computed from its parameters and kept before it was bridged: they are forgotten.

A module that was evaluated, in eval mode and without gradients, may hold a factorization, a table, a
merged weight: at other params they are stale, and nothing in a graph tells. Such a result is known by
what happens without it: the module makes it again, the same at the same parameters whatever the inputs,
another at others, and its outputs do not change. State, statistics of a batch and constants fail one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from gradbridge_torch.replicas import Replica

#: More are not looked at: each costs a copy of the module and a forward.
_AT_MOST = 12

_MISSING = object()


def stale(
    make: Callable[[], Replica],
    weights: Sequence[torch.Tensor],
    places: Sequence[int],
    inputs: Sequence[Any],
    bind: Callable[..., Any],
) -> list[tuple[int, bool]]:
    """Which of the results that a module keeps (`Deep.kept`) it computed from its parameters.

    Args:
        make: a new replica.
        weights: at which it computed them.
        places: in `kept`, of those that may be results.
        inputs: of a call.
        bind: leaves → arguments.

    Returns:
        (place in `kept`, whether it is to be deleted rather than None) for each.
    """
    others = [_other(x) for x in inputs]
    if all(a is b for a, b in zip(inputs, others)):
        return []  # nothing to tell state from
    moved = [w + 0.1 * (1 + w.abs()) for w in weights]

    def run(
        weights: Sequence[torch.Tensor], inputs: Sequence[Any], place: int, deletes: bool
    ) -> tuple[Any, Any]:
        replica = make()
        for slots, key, index in replica.slots:
            slots[key] = weights[index]
        replica.lend_buffers()
        if place >= 0:
            holder, name, _ = replica.kept[place]
            if deletes:
                del holder[name]
            else:
                holder[name] = None
        args, kwargs = bind([x.clone() if isinstance(x, torch.Tensor) else x for x in inputs])
        try:
            output = replica.module(*args, **kwargs)
        except Exception:  # it cannot do without
            return _MISSING, _MISSING
        return output, (replica.kept[place][0].get(replica.kept[place][1], _MISSING) if place >= 0 else None)

    found = []
    with torch.no_grad():
        outputs, kept = run(weights, inputs, -1, False)[0], make().kept
        for place in places[:_AT_MOST]:
            value = kept[place][2]
            for deletes in (False, True):
                without, made = run(weights, inputs, place, deletes)
                if not (_same(outputs, without) and _same(value, made)):
                    continue
                if _same(value, run(weights, others, place, deletes)[1]) and not _same(
                    value, run(moved, inputs, place, deletes)[1]
                ):
                    found.append((place, deletes))
                break
    return found


def _other(value: Any) -> Any:
    """Another input of the same kind; itself where there is none to be had."""
    if not isinstance(value, torch.Tensor) or not value.numel():
        return value
    if value.is_floating_point() or value.is_complex():
        return 0.9 * value + 0.1
    return value if torch.equal(value, value.flip(0) if value.dim() else value) else value.flip(0)


def _same(ours: Any, theirs: Any) -> bool:
    """Whether two results are the same up to the rounding of float32."""
    ours, theirs = (torch.utils._pytree.tree_leaves(tree) for tree in (ours, theirs))
    return len(ours) == len(theirs) and all(map(_close, ours, theirs))


def _close(a: Any, b: Any) -> bool:
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return type(a) is type(b)
    if a.shape != b.shape or a.dtype.is_complex != b.dtype.is_complex:
        return False
    wide = torch.complex128 if a.dtype.is_complex else torch.float64
    a, b = a.detach().to_dense().to(wide), b.detach().to_dense().to(wide)
    return torch.allclose(
        a, b, rtol=0, atol=1e-5 * float(a.abs().max()) if a.numel() else 0.0, equal_nan=True
    )
