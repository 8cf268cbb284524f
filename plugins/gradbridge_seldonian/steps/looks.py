"""Whether the gradient that a class of five methods gives is that of its predictions.

Two of the methods must agree on what theta means: update_model_params cuts it, and backward_pass joins its
gradient. Nothing fails where they do not. The framework can be asked for the gradient of what forward_pass
computes, and update_model_params for where it puts theta; together they say what it must be, to rounding. Where
one of them does not tell, differences of the values do, coarsely.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradbridge.errors import AuditError, GradbridgeError, GuestError
from gradbridge.layout import Array
from gradbridge.notices import notice
from gradbridge_seldonian.steps.framework import BACKWARD, UPDATE, ZERO, is_inherited
from gradbridge_seldonian.steps.gradient_check import Differences
from gradbridge_seldonian.steps.placement import placement
from gradbridge_seldonian.steps.run import Run, Runner

#: How many gradients are looked at: what was kept from the first one shows at another cotangent, or another theta.
GRADIENTS = 3
_LEAVE = "audit = 'off' in the class takes a gradient that is meant to be another as it is"


class GradientLook:
    """Holds the first gradients of one model to what they must be.

    Args:
        adapter: runs its methods.
    """

    def __init__(self, adapter: Runner) -> None:
        self._adapter, self._owner, self._framework = adapter, adapter.owner, adapter.framework
        self._failure = ""
        self._seen: list[tuple[Array, Array]] = []

    def look(self, record: Run, cotangent: Array, gradient: Array) -> None:
        """Tell, or refuse, what is wrong with a gradient of a run.

        Raises:
            AuditError: it is another; from then on at every gradient.
        """
        if not self._failure and self._awaits(record, cotangent):
            state = self._framework.state()
            try:
                self._failure = self._found(record, cotangent, gradient)
            finally:
                self._adapter.run_again(record)  # leaves theta in the native model
                self._framework.restore(state)
        self.refuse_known()

    def refuse_known(self) -> None:
        """Raise what an earlier look has found.

        Raises:
            AuditError
        """
        if self._failure:
            raise AuditError(self._failure)

    def _awaits(self, record: Run, cotangent: Array) -> bool:
        here = self._adapter.array(record)
        if here.dtype.kind != "f" or not cotangent.any() or len(self._seen) >= GRADIENTS:
            return False
        seen = any(np.array_equal(record.theta, t) and np.array_equal(cotangent, c) for t, c in self._seen)
        if not seen:
            self._seen.append((record.theta.copy(), cotangent.copy()))
        return not seen

    def _found(self, record: Run, cotangent: Array, gradient: Array) -> str:
        """What is wrong, in words; "" where nothing is."""
        if not np.isfinite(gradient).all():
            return ""
        if is_inherited(self._owner, UPDATE) and is_inherited(self._owner, BACKWARD):
            return self._found_moving(record, cotangent, gradient, is_given=True)
        rounding = float(np.finfo(self._adapter.array(record).dtype).eps)
        sizes = self._framework.sizes()
        own, places, expected = self._own_gradient(record, cotangent), None, None
        if own is not None and np.isfinite(own).all():
            places = self._places(record)
        if own is not None and places is not None and places.shape == own.shape:
            expected = np.zeros(gradient.size)
            np.add.at(expected, places[places >= 0], own[places >= 0])
        else:
            places = None
        blocks = _blocks(places, sizes, gradient.size)

        def close(a: Array, b: Array) -> bool:
            return _agree(a, b, blocks, rounding)

        label = self._adapter.label
        try:
            again = self._pulled(record, cotangent)
        except GuestError as error:
            return (
                f"{BACKWARD} of {label} fails when a run is made again: it works from other predictions than those of its "
                f"run, or the gradient keeps something of it ({error})"
            )
        if not close(again, gradient):
            cleared = close(self._pulled(record, cotangent, clear=True), gradient)
            at = (
                f"{ZERO} of {label} does not clear"
                if cleared
                else f"{ZERO} and {BACKWARD} of {label} do not forget"
            )
            return (
                f"{BACKWARD} of {label} gives another gradient when it is called again for the same predictions and the "
                f"same external_grad: {at} what {BACKWARD} has gathered before. Clear it in {ZERO} "
                f"(in torch, self.pytorch_model.zero_grad())"
            )
        is_given = False
        if expected is not None and places is not None:
            covered = np.isin(np.arange(gradient.size), places)
            expected = np.where(covered, expected, gradient)  # of the rest it knows nothing
            is_given = close(gradient, expected)
            # A backward may know of what the framework has not recorded.
            if not is_given and not self._differences(record, cotangent).favours(gradient, expected):
                return self._reason(record, cotangent, gradient, expected, blocks, rounding)
            is_given = is_given and bool(covered.all())
        return self._found_moving(record, cotangent, gradient, is_given)

    def _found_moving(self, record: Run, cotangent: Array, gradient: Array, is_given: bool) -> str:
        """The same by how the predictions move; only told where the gradient is the framework's own."""
        label = self._adapter.label
        far = self._differences(record, cotangent).apart(
            gradient, None if is_given else self._framework.sizes()
        )
        if far is None:
            return ""
        found = (
            f"the gradient that {label} gives is not how its predictions move with theta ({100 * far:.0f} % apart in "
            f"random directions): "
        )
        if not is_given:
            return (
                f"{found}{BACKWARD} orders the parameters otherwise than {UPDATE} reads them from theta, leaves some "
                f"out, or works from other predictions than those of its run. Write both in the same order; {_LEAVE}"
            )
        # The framework's own gradient of what it recorded: a part that is held constant may be meant.
        if not vars(self._owner).get("_told_constant"):
            vars(self._owner)["_told_constant"] = True
            notice(
                f"{found}a part of it is computed from detached values, without a record, or has a gradient of its "
                f"own, and is held constant; {_LEAVE}"
            )
        return ""

    def _own_gradient(self, record: Run, cotangent: Array) -> Array | None:
        """What the framework says of the native model's parameters, joined; None where it says nothing."""
        again = record.anew()
        with self._framework.surroundings(record.spec.noise):
            return self._framework.own_gradient(lambda: self._adapter.run_again(again), cotangent)

    def _places(self, record: Run) -> Any:
        """Where each number of the native model's parameters stands in theta; None where that cannot be told."""
        if is_inherited(self._owner, UPDATE):
            return np.arange(record.theta.size)
        try:
            return placement(
                lambda theta: self._adapter.load(theta, record), self._framework.parameters, record.theta.size
            )
        except GradbridgeError:  # it looks at the numbers, and does not take these
            return None

    def _pulled(self, record: Run, cotangent: Array, clear: bool = False) -> Array:
        """The gradient of the same run, made again."""
        again = record.anew()
        self._adapter.run_again(again)
        if clear:
            self._framework.clear()
        return self._adapter.gradient(again, cotangent)

    def _differences(self, record: Run, cotangent: Array) -> Differences:
        here = self._adapter.array(record)
        return Differences(record.theta, here, cotangent, lambda t: self._elsewhere(record, t))

    def _elsewhere(self, record: Run, theta: Array) -> Array | None:
        moved = record.anew(theta)
        try:
            self._adapter.run_again(moved)
            array = self._adapter.array(moved)
        except GradbridgeError:
            return None
        return array.astype(np.float64) if np.isfinite(array).all() else None

    def _reason(
        self,
        record: Run,
        cotangent: Array,
        gradient: Array,
        expected: Array,
        blocks: list[Any],
        rounding: float,
    ) -> str:
        """What is wrong with a gradient that the framework's own contradicts."""
        label, everything = self._adapter.label, [np.arange(gradient.size)]

        def close(a: Array, b: Array) -> bool:
            return _agree(a, b, blocks, rounding)

        times = float(gradient @ expected) / (float(expected @ expected) or 1.0)
        start = f"the gradient that {BACKWARD} of {label} gives is not that of its predictions: "
        wrong = [b for b in blocks if not _agree(gradient[b], expected[b], [np.arange(b.size)], rounding)]
        if not is_inherited(self._owner, ZERO) and close(
            self._pulled(record, cotangent, clear=True), expected
        ):
            what = f"{ZERO} does not clear what {BACKWARD} has gathered before, which is added to it"
        elif times and close(gradient, times * expected):
            what = "its sign is reversed" if abs(times + 1) < 1e-3 else f"it is {times:.4g} times as large"
        elif gradient.any() and close(self._pulled(record, 2.0 * cotangent), gradient):
            what = f"it does not change with external_grad, or is that of other predictions than those of its run: {BACKWARD} keeps it or ignores external_grad"
        elif len(wrong) < len(blocks) and not any(gradient[b].any() for b in wrong):
            what = f"{BACKWARD} leaves out {_which(blocks, wrong)}"
        elif _agree(np.sort(gradient), np.sort(expected), everything, rounding):
            what = f"{BACKWARD} orders the parameters otherwise than {UPDATE} reads them from theta. Write both in the same order"
        else:
            what = (
                f"{BACKWARD} changes it on the way, orders or cuts the parameters otherwise than {UPDATE} reads them from "
                f"theta, or works from other predictions than those of its run (it is wrong for {_which(blocks, wrong)})"
            )
        return f"{start}{what}; {_LEAVE}"


def _which(blocks: list[Any], wrong: list[Any]) -> str:
    """Some of the native model's parameters, in words."""
    if len(wrong) == len(blocks):
        return "all parameters"
    named = [f"{b[0]}:{b[-1] + 1}" if b[-1] - b[0] + 1 == b.size else f"{b.size} places" for b in wrong]
    return f"theta[{'], theta['.join(named)}], {len(wrong)} of {len(blocks)} parameters"


def _blocks(places: Any, sizes: list[int], size: int) -> list[Any]:
    """The places of theta, parameter by parameter of the native model; those that are in none by themselves."""
    if places is None:
        return [np.arange(size)]
    cut = np.split(places, np.cumsum(sizes)[:-1]) if sizes else []
    blocks = [np.unique(block[block >= 0]) for block in cut]
    blocks.append(np.setdiff1d(np.arange(size), places))
    return [block for block in blocks if block.size]


def _agree(a: Array, b: Array, blocks: list[Any], rounding: float) -> bool:
    """Whether two gradients are the same to rounding, block by block."""
    relative, least = max(1e-3, 16 * rounding), 64 * max(rounding, float(np.finfo(np.float32).eps))
    whole = float(np.linalg.norm(b))
    return all(
        bool(np.linalg.norm(a[i] - b[i]) <= relative * np.linalg.norm(b[i]) + least * whole)
        or np.array_equal(a[i], b[i], equal_nan=True)
        for i in blocks
    )
