"""The first derivative of a derivative, compared with a difference of gradients (law 10).

A backward that is not recorded (NumPy inside, `no_grad`, an adjoint solver), a rule that is right in
first order alone, an operation whose second derivative a framework has wrong: all give zeros, or some of
the terms, in silence. A Hessian is symmetric, so its product with v must be how the gradient moves along
v, in every number of it; and by the cotangents the derivative must be how the outputs move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge.borders import INEXACT
from gradbridge.errors import DerivativeError, GradbridgeError, HigherOrderError
from gradbridge.layout import Array

_NAMES = {0: "second", 1: "third", 2: "fourth"}


def refuse_wrong(evaluation: Any, derivative: Any, wrt: tuple[int, ...]) -> None:
    """Compare once for each order of a bridge.

    Args:
        evaluation: whose gradient is differentiated.
        derivative: the call that computes that gradient, as it will be pulled back.
        wrt: the arguments of the gradient.

    Raises:
        HigherOrderError: what the guest gives is not the derivative of its gradient.
    """
    call, audit = evaluation.call, evaluation.call.settings.audit
    step = "derivative", call.spec.packed, wrt
    if audit is None or not audit.awaits(call.order, step):
        if audit is not None and audit.is_wrong(call.order, "derivative"):
            raise HigherOrderError(_told(call, "what it gives differs from how its gradient moves"))
        return
    apart = _difference(evaluation, derivative, wrt)
    audit.found(call.order, step, not apart)
    if apart:
        raise HigherOrderError(_told(call, apart))


def _told(call: Any, apart: str) -> str:
    name = _NAMES.get(call.order, "next")
    return (
        f"a {name} derivative of {call.root.adapter.label} was asked for, and what its framework gives is wrong: "
        f"{apart}. Something in the model has a gradient that cannot be differentiated again (a backward that is not "
        f"recorded, NumPy in it, a hook, an operation that the framework has wrong); write that part with a "
        f"differentiable backward, or use derivatives up to the {_NAMES.get(call.order - 1, 'first')}; "
        f"audit='off' takes it as it is"
    )


def _difference(evaluation: Any, derivative: Any, wrt: tuple[int, ...]) -> str:
    """What is wrong with the derivative of a gradient, in words; "" where nothing is, or nothing can be told."""
    call = evaluation.call
    settings = call.settings.quiet
    root = call.root.arguments
    moving = tuple(i for i in wrt if i < len(root.vectors) and np.size(evaluation.values[i]))
    if not moving:
        return ""
    draw = np.random.default_rng(2)
    cotangents = [draw.normal(size=y.shape) * (y.dtype.kind in INEXACT) for y in evaluation.outputs]
    directions = {
        i: draw.normal(size=np.shape(evaluation.values[i]))
        * max(float(np.abs(evaluation.values[i]).mean()), 1e-3)
        for i in moving
    }
    try:
        quiet = replace(derivative, settings=settings)
        first = len(evaluation.values)
        behind = tuple(first + i for i, y in enumerate(evaluation.outputs) if y.dtype.kind in INEXACT)
        inner = quiet.evaluate_at([*evaluation.values, *cotangents], (*moving, *behind))
        pulled = [directions[i] if i in directions else np.zeros(np.shape(evaluation.values[i])) for i in wrt]
        products = inner.pull(pulled, (*moving, *behind))
        anywhere = replace(call.anywhere(), settings=settings, spec=call.spec.replayed())
        coarse = max(
            (float(np.finfo(d).eps) for d in evaluation.guest_dtypes if d.kind in INEXACT),
            default=2.0**-52,
        )

        def moves(step: float) -> list[Array]:
            ends = []
            for sign in (1.0, -1.0):
                values = list(evaluation.values)
                for i, direction in directions.items():
                    values[i] = (values[i] + sign * step * direction).astype(values[i].dtype)
                end = anywhere.evaluate_at(values, moving)
                floating = [y for y in end.outputs if y.dtype.kind in INEXACT]
                ends.append([*end.pull(cotangents, moving), *floating])
            return [(a - b) / (2 * step) for a, b in zip(*ends)]

        step = coarse ** (1 / 3)
        tolerance = 30 * coarse ** (1 / 2)
        apart = _apart(products, moves(step), tolerance, call, moving)
        if not apart:
            return ""
        # A kink, or steepness: then another step gives another difference, and nothing can be told.
        wide, narrow = moves(step * 4), moves(step / 4)
        if any(_far(a, b, 10 * tolerance) for a, b in zip(wide, narrow)):
            return ""
        return _apart(products, moves(step / 2), tolerance, call, moving)
    except DerivativeError:
        return ""  # it says itself that it cannot, where the host asks
    except GradbridgeError:
        return ""


def _apart(
    products: Sequence[Array], moves: Sequence[Array], tolerance: float, call: Any, moving: tuple[int, ...]
) -> str:
    layout, vectors = call.root.adapter.layout, call.root.arguments.vectors
    whole = max(
        float(np.max(np.abs(x), initial=0.0)) for x in (*products[: len(moving)], *moves[: len(moving)])
    )
    for index, (product, move) in enumerate(zip(products, moves)):
        if index >= len(moving):
            whole, parts = 0.0, [(f"the cotangent of output {index - len(moving)}", product, move)]
        elif vectors[moving[index]]:
            parts = list(zip(layout.names, layout.cut(product), layout.cut(move)))
        else:
            parts = [(f"argument {moving[index]}", product, move)]
        for name, ours, theirs in parts:
            if not np.isfinite(ours).all() or not np.isfinite(theirs).all():
                continue
            if _far(ours, theirs, tolerance, whole):
                return (
                    f"by {name} its product with a vector is {_norm(ours):.4g} (norm), and the gradient moves "
                    f"by {_norm(theirs):.4g}, {_norm(ours - theirs):.2g} apart"
                )
    return ""


def _far(ours: Array, theirs: Array, tolerance: float, whole: float = 0.0) -> bool:
    scale = max(_norm(ours), _norm(theirs))
    if not np.isfinite(scale):
        return False
    return bool(_norm(ours - theirs) > max(tolerance, 1e-3) * scale + tolerance * whole * ours.size**0.5)


def _norm(x: Array) -> float:
    return float(np.linalg.norm(np.ravel(x)))
