"""The first derivative of a derivative, compared with a difference of gradients (law 10).

A backward that is not recorded (NumPy inside, `no_grad`, an adjoint solver), a rule that is right in
first order alone, an operation whose second derivative a framework has wrong: all give zeros, or some of
the terms, in silence. A Hessian is symmetric, so its product with v must be how the gradient moves along
v, in every number of it; and its derivative by the cotangents must be the transposed of the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge.audit.comparison import both_sides, precision_of, rounding
from gradbridge.borders import INEXACT
from gradbridge.errors import GradbridgeError, HigherOrderError
from gradbridge.execution import derivation, steps
from gradbridge.layout import Array

_NAMES = {0: "second", 1: "third", 2: "fourth"}


class StaleError(Exception):
    """The arrays of an evaluation are not what they were."""


def refuse_wrong(evaluation: Any, derivative: Any, wrt: tuple[int, ...], products: bool = True) -> None:
    """Compare once for each order of a bridge, and again where the call was made of other operations.

    Args:
        evaluation: whose gradient is differentiated.
        derivative: the call that computes that gradient, as it will be pulled back.
        wrt: the arguments of the gradient.
        products: whether its products with vectors are looked at, or only what JVPs are made from.

    Raises:
        HigherOrderError: what the guest gives is not the derivative of its gradient.
    """
    call, audit = evaluation.call, evaluation.call.settings.audit
    if not audit.is_on:
        return
    made_of = call.adapter.operations(evaluation.residuals)
    step = ("derivative" if products else "transposed"), call.spec.packed, wrt, made_of
    if not call.adapter.traits.is_gradient_cheap or not audit.awaits(call.order, step):
        if audit.is_wrong(call.order, step[0]):
            raise HigherOrderError(
                _told(call, "its product with a vector differs from differences of its gradient", made_of)
            )
        return
    try:
        with call.root.adapter.steady:
            apart = difference(evaluation, derivative, wrt, products)
    except StaleError:
        return  # the next one is looked at
    except GradbridgeError:
        apart = None  # the guest says itself that it cannot, if the host comes to ask for that
    audit.found(call.order, step, not apart)
    if apart:
        raise HigherOrderError(_told(call, apart, made_of))


def _told(call: Any, apart: str, made_of: Any) -> str:
    names = sorted(map(str, made_of)) if isinstance(made_of, frozenset) else []
    made = f" ({', '.join(names[:12])}{', …' if len(names) > 12 else ''})" if names else ""
    name = _NAMES.get(call.order, "next")
    return (
        f"a {name} derivative of {call.root.adapter.label} was asked for, and what its framework gives is wrong: "
        f"{apart}. Something in the model{made} has a gradient that cannot be differentiated again (a backward that is not "
        f"recorded, NumPy in it, a hook, detach or stop_gradient, an operation that the framework has wrong); write that part with a "
        f"differentiable backward, or use derivatives up to the {_NAMES.get(call.order - 1, 'first')}; "
        f"audit='off' takes it as it is"
    )


def difference(evaluation: Any, derivative: Any, wrt: tuple[int, ...], products: bool = True) -> str | None:
    """What is wrong with the derivative of a gradient, in words; "" where nothing is, None where nobody can tell.

    Raises:
        StaleError: a caller has changed the arrays of the evaluation since.
        GradbridgeError: the guest cannot differentiate it, or not evaluate it beside the point.
    """
    moving = tuple(
        i for i in wrt if i < len(evaluation.call.root.arguments.vectors) and np.size(evaluation.values[i])
    )
    if not moving:
        return ""
    probe = _Probe(evaluation, derivative, wrt, moving)
    if probe.is_stale():
        raise StaleError("the same call gives other outputs by now")
    pulled = probe.pulled(products)
    apart = probe.difference(pulled, products)
    is_told = bool(apart) or all(np.isfinite(one).all() for one in pulled)
    return apart if is_told else None


class _Probe:
    """A derivative of a gradient along one direction, by the guest and by differences.

    Args:
        evaluation, derivative, wrt: as for `refuse_wrong`.
        moving: arguments of the model among `wrt`.
    """

    def __init__(
        self, evaluation: Any, derivative: Any, wrt: tuple[int, ...], moving: tuple[int, ...]
    ) -> None:
        call, values, draw = evaluation.call, evaluation.values, np.random.default_rng(2)
        settings = call.settings.quiet
        self._call, self._moving, self._wrt = call, moving, wrt
        self._evaluation = replace(evaluation, call=replace(call, settings=settings))
        self._derivative = replace(derivative, settings=settings)
        self._rounding: dict[int, float] | None = None
        self._anywhere = replace(derivation.anywhere(call), settings=settings, spec=call.spec.replayed())
        inexact = [y.dtype.kind in INEXACT for y in evaluation.outputs]
        self._behind = tuple(len(values) + i for i, yes in enumerate(inexact) if yes)
        self._cotangents, self._probes = (
            [draw.normal(size=y.shape) * yes for y, yes in zip(evaluation.outputs, inexact)] for _ in range(2)
        )
        self._directions = {
            i: draw.normal(size=np.shape(values[i])) * max(float(np.abs(values[i]).mean()), 1e-3)
            for i in moving
        }
        self._coarse = precision_of(evaluation)

    def is_stale(self) -> bool:
        """Whether a caller has changed the arrays of the call since."""
        evaluation = self._evaluation
        now = self._anywhere.evaluate_at(evaluation.values, evaluation.wrt)  # nothing is compiled anew
        pairs = [(a, b) for a, b in zip(now.outputs, evaluation.outputs) if b.dtype.kind in INEXACT]
        return any(a.shape != b.shape or _far(a, b, self._tolerance) for a, b in pairs)

    def pulled(self, wants_products: bool) -> Sequence[Array]:
        """The product with the direction by the guest, and by the cotangents."""
        evaluation = self._evaluation
        wanted = (*self._moving, *self._behind) if wants_products else self._behind
        self._inner = self._derivative.evaluate_at([*evaluation.values, *self._cotangents], wanted)
        self._along = [self._directions.get(i, np.zeros(np.shape(evaluation.values[i]))) for i in self._wrt]
        return self._inner.pull(self._along, wanted)  # type: ignore[no-any-return]

    def difference(self, pulled: Sequence[Array], wants_products: bool) -> str | None:
        """What is wrong, in words; "" where nothing is, None where nobody can tell."""
        evaluation, moving = self._evaluation, self._moving
        apart = self._transposed(pulled[len(pulled) - len(self._behind) :])
        if apart or not wants_products:
            return apart
        products = [pulled[: len(moving)]]
        if evaluation.merges:
            _, left = steps.pulled_to_boundary(self._inner, self._along)
            products.append(evaluation.pull(evaluation.zero_cotangents(), moving, (left,)))
        step = self._step
        if not self._apart(products, self._moves(step)):
            return ""
        # A kink, or steepness: then another step gives another difference, and nothing can be told.
        wide, narrow = self._moves(step * 4), self._moves(step / 4)
        if any(_far(a, b, 10 * self._tolerance) for a, b in zip(wide, narrow)):
            return None
        return self._apart(products, self._moves(step / 2))

    @property
    def _step(self) -> float:
        return float(self._coarse ** (1 / 3))

    @property
    def _tolerance(self) -> float:
        return float(30 * self._coarse**0.5)

    def _transposed(self, transposed: Sequence[Array]) -> str:
        """Whether by the cotangents it is differentiated to how the gradient moves with them, transposed."""
        first = len(self._evaluation.values)
        ahead = [self._probes[i - first] * t for i, t in zip(self._behind, transposed)]
        apart = ""
        # Nearly every gradient is linear in the cotangent, where a large step has no rounding; some rules clip it.
        for step in (1.0, self._step):
            ends = [
                self._evaluation.pull(
                    [c + sign * step * p for c, p in zip(self._cotangents, self._probes)], self._moving
                )
                for sign in (1.0, -1.0)
            ]
            back = [
                (one - other) / (2 * step) * self._directions[i] for i, one, other in zip(self._moving, *ends)
            ]
            a, b, size = both_sides(ahead, back)
            if not np.isfinite(size) or abs(a - b) <= self._tolerance * size:
                return ""
            floor = sum(n * float(np.abs(self._directions[i]).sum()) for i, n in self._noise().items())
            if abs(a - b) <= 16 * (floor + self._coarse * self._natural(self._probes)):
                return ""  # zero, but for rounding
            apart = apart or (
                f"its product with a cotangent and a tangent is {a:.4g}, that of the gradient itself {b:.4g}"
            )
        return apart

    def _noise(self) -> dict[int, float]:
        """How far rounding moves the gradient by each argument: what is zero but for that shows there."""
        if self._rounding is None:
            draw, values, moving = np.random.default_rng(3), self._evaluation.values, self._moving
            here = self._evaluation.pull(self._cotangents, moving)

            def compute(moved: list[Any], pulled: list[Any]) -> Sequence[Array]:
                return self._anywhere.evaluate_at(moved, moving).pull(pulled, moving)  # type: ignore[no-any-return]

            noise = rounding(compute, values, self._cotangents, here, self._coarse, draw, 4)
            self._rounding = {i: float(np.max(n, initial=0.0)) for i, n in zip(moving, noise)}
        return self._rounding

    def _natural(self, cotangents: Sequence[Array]) -> float:
        """The size that the outputs give to a product with cotangents: what is far below it is their rounding."""
        pairs = [(c, y) for c, y in zip(cotangents, self._evaluation.outputs)]
        size = float(sum(np.sum(np.abs(c * y)) for c, y in pairs))
        if self._call.parent is None:
            return size
        # Gradients may be rounding themselves, of what the model's outputs were multiplied by.
        root, values = self._call.root, self._evaluation.values
        count = len(root.arguments.vectors)
        outputs = replace(root, settings=root.settings.quiet, spec=root.spec.replayed()).evaluate_at(
            values[:count], ()
        )
        own = sum(float(np.sum(np.abs(v * y))) for v, y in zip(values[count:], outputs.outputs))
        return max(size, own * max(float(np.max(np.abs(c), initial=0.0)) for c in cotangents))

    def _moves(self, step: float) -> list[Array]:
        """How the gradient moves along the direction, by a central difference."""
        ends = []
        for sign in (1.0, -1.0):
            values = list(self._evaluation.values)
            for i, direction in self._directions.items():
                values[i] = (values[i] + sign * step * direction).astype(values[i].dtype)
            ends.append(self._anywhere.evaluate_at(values, self._moving).pull(self._cotangents, self._moving))
        return [(a - b) / (2 * step) for a, b in zip(*ends)]

    def _apart(self, every: Sequence[Sequence[Array]], moves: Sequence[Array]) -> str:
        root = self._call.root
        layout, vectors = root.adapter.layout, root.arguments.vectors
        for products in every:
            whole = max(float(np.max(np.abs(x), initial=0.0)) for x in (*products, *moves))
            for i, product, move in zip(self._moving, products, moves):
                parts = (
                    list(zip(layout.names, layout.cut(product), layout.cut(move)))
                    if vectors[i]
                    else [(f"argument {i}", product, move)]
                )
                for name, ours, theirs in parts:
                    if not _far(ours, theirs, self._tolerance, whole):
                        continue
                    size = max(float(np.abs(self._evaluation.values[i]).mean()), 1e-3)
                    natural = self._coarse * self._natural(self._cotangents) / size
                    floor = 16 * (self._noise()[i] * ours.size**0.5 + natural) / self._step
                    if _norm(ours - theirs) > floor:
                        return (
                            f"by {name} its product with a vector has norm {_norm(ours):.4g}, a central difference of "
                            f"the gradient {_norm(theirs):.4g}, and they differ by {_norm(ours - theirs):.2g}"
                        )
        return ""


def _far(ours: Array, theirs: Array, tolerance: float, whole: float = 0.0) -> bool:
    scale = max(_norm(ours), _norm(theirs))
    if not np.isfinite(scale):
        return False
    return bool(_norm(ours - theirs) > max(tolerance, 1e-3) * scale + tolerance * whole * ours.size**0.5)


def _norm(x: Array) -> float:
    return float(np.linalg.norm(np.ravel(x)))
