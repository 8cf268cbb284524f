"""A Jacobian that is asked for: where, of what, by what, and the evaluation that all strategies start from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge.audit.comparison import precision_of, rounding
from gradbridge.derivatives.points import EvaluationPoint
from gradbridge.errors import DerivativeError, GradbridgeError, GuestError, NotDifferentiableError
from gradbridge.execution.evaluation import Evaluation
from gradbridge.layout import Array
from gradbridge.placed import PlacedArray, dtype_of


class JacobianProblem:
    """One Jacobian.

    A flat Jacobian is (M, *argument shape), M the numbers in all floating outputs one after the other.

    Args:
        point: where; it is evaluated here.
        wrt: the arguments.
        max_chunk: bytes that the cotangents and gradients of one chunk may take.
        checks_rows: whether rows may be taken for independent if the model's own backward agrees.

    Attributes:
        evaluation: at the point.
        shapes, sizes: of the floating outputs.
        total: M.
        arguments: how many numbers there are in the arguments.
    """

    def __init__(
        self, point: EvaluationPoint, wrt: tuple[int, ...], max_chunk: int, checks_rows: bool
    ) -> None:
        self.point, self.wrt, self.max_chunk = point, wrt, max_chunk
        self.checks_rows = checks_rows and point.is_eval_mode
        self.evaluation = self._evaluate()
        self._refuse_complex()
        self.checks_rows = self.checks_rows and not point.call.adapter.stochastic
        self.dtype = point.call.dtype
        self.shapes = [y.shape for y in self.evaluation.outputs if y.dtype.kind == "f"]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        self.total = sum(self.sizes)
        self.arguments = sum(int(np.prod(point.shape(i))) for i in wrt)

    def assemble(self, flat: Array) -> Any:
        """A flat Jacobian → the tree of the outputs."""
        rest = flat.shape[1:]
        leaves: list[Any] = []
        start = 0
        for y in self.evaluation.outputs:
            if y.dtype.kind != "f":
                leaves.append(None)
                continue
            leaves.append(flat[start : start + y.size].reshape((*y.shape, *rest)))
            start += y.size
        return self.evaluation.assemble_derivatives(leaves)

    def agrees_with_backward(self, jacobians: Sequence[Array]) -> bool:
        """Whether flat Jacobians are what one backward of a random cotangent says.

        Source:
            R. Freivalds (1977), Probabilistic machines can use less running time.
        """
        v = np.random.default_rng(0).normal(size=self.total)
        ends = np.cumsum(self.sizes)[:-1]
        parts = [c.reshape(1, *shape) for c, shape in zip(np.split(v, ends), self.shapes)]
        cotangents = [c[0].astype(self.dtype) for c in self.with_flat_outputs(parts, 1)]
        try:
            pulled = self.evaluation.pull(cotangents, self.wrt)
        except (DerivativeError, GuestError):
            return True  # a guest that can push alone: there is nothing to compare with
        return all(
            self.is_close(i, v[None, None], flat.reshape(1, self.total, -1), gradient.reshape(1, -1))
            for i, flat, gradient in zip(self.wrt, jacobians, pulled)
        )

    def is_close(self, argument: int, v: Array, blocks: Array, pulled: Array) -> bool:
        """Whether cotangents pull back by Jacobians to what a backward gave.

        Args:
            argument: whose Jacobians.
            v: (groups, 1, outputs).
            blocks: (groups, outputs, numbers of the argument).
            pulled: (groups, numbers of the argument).
        """
        expected = (v @ blocks)[:, 0]
        precision = precision_of(self.evaluation)
        with np.errstate(over="ignore"):
            scale = np.linalg.norm(v, axis=2) * np.sqrt(np.einsum("gka,gka->ga", blocks, blocks))
        # Rounding follows the largest numbers that are summed up, which are those of one array.
        arrays = self._arrays(argument)
        whole = [np.full(scale[:, part].shape, np.max(scale[:, part], initial=0.0)) for part in arrays]
        bound = precision**0.7 * (scale + 1e-3 * np.concatenate(whole, axis=1))
        if not np.isfinite(bound).all():
            return False  # what overflows here says nothing
        error = np.abs(expected - pulled)
        return bool(
            np.all(error <= bound) or np.all(error <= bound + 16 * self._noise(argument).reshape(error.shape))
        )

    def _noise(self, argument: int) -> Array:
        """How far rounding moves the gradient by an argument, for each number of it: what is zero but for rounding shows there."""
        call, values = self.point.call, self.point.values
        quiet = replace(call, settings=call.settings.quiet, spec=call.spec.replayed())
        draw = np.random.default_rng(3)
        cotangents = [
            draw.normal(size=y.shape).astype(self.dtype) * (y.dtype.kind == "f")
            for y in self.evaluation.outputs
        ]
        here = self.evaluation.pull(cotangents, (argument,))

        def compute(moved: list[Any], pulled: list[Any]) -> list[Array]:
            return quiet.evaluate_at(moved, (argument,)).pull(pulled, (argument,))

        precision = precision_of(self.evaluation)
        flat = rounding(compute, values, cotangents, here, precision, draw, 6)[0].reshape(-1)
        if not self.point.call.arguments.vectors[argument]:
            return np.full(flat.shape, np.max(flat, initial=0.0))
        for part in self._arrays(argument):
            flat[part] = np.max(flat[part], initial=0.0)
        return flat

    def _arrays(self, argument: int) -> list[slice]:
        """Where the arrays lie that make up an argument: the parameters are several in one vector."""
        is_vector = self.point.call.arguments.vectors[argument]
        slices = self.point.call.adapter.layout.slices if is_vector else ()
        return list(slices) or [slice(None)]

    def unit_cotangents(self, chunk: int) -> Iterator[list[Array]]:
        """The identity over all outputs as cotangents, so many at a time."""
        for first in range(0, self.total, chunk):
            stop = min(first + chunk, self.total)
            yield self.with_flat_outputs(unit_arrays(self.shapes, first, stop, self.dtype), stop - first)

    def with_flat_outputs(self, floating: list[Array], count: int) -> list[Array]:
        """Cotangents of the floating outputs → of all outputs; those of integers are zeros."""
        rest = iter(floating)
        return [
            next(rest) if y.dtype.kind == "f" else np.zeros((count, *y.shape), self.dtype)
            for y in self.evaluation.outputs
        ]

    def chunk(self, numbers: int) -> int:
        """How many at a time, where each takes so many numbers."""
        return max(1, self.max_chunk // (8 * max(1, numbers)))

    def empty(self, argument: int) -> Array:
        """A flat Jacobian, not filled."""
        return np.empty((self.total, *self.point.shape(argument)), self.dtype)

    def _refuse_complex(self) -> None:
        kinds = {dtype_of(self.point.values[i]).kind for i in self.wrt}
        if "c" in kinds or any(y.dtype.kind == "c" for y in self.evaluation.outputs):
            raise NotDifferentiableError(
                f"the Jacobian of {self.point.label} was asked for, and complex numbers are among its outputs or the "
                f"arguments asked for; a function of complex numbers that is not holomorphic has none: ask for "
                f"f.jvp and f.vjp, or for that of its real and imaginary parts"
            )

    def _evaluate(self) -> Evaluation:
        # For the check of rows the cotangents are also pulled back to the inputs, where they may be.
        first = self.point.call.first_input
        more = [
            i
            for i, leaf in enumerate(self.point.values)
            if i >= first and may_have_rows(leaf) and leaf.dtype.kind == "f"
        ]
        wider = tuple(sorted({*self.wrt, *more}))
        if self.checks_rows and wider != tuple(sorted(self.wrt)):
            try:
                return self.point.evaluate(wider)
            except GradbridgeError:
                self.checks_rows = False  # some models can be differentiated by their params alone
        return self.point.evaluate(self.wrt)


def may_have_rows(leaf: Any) -> bool:
    """Whether the first axis of an argument may be rows."""
    return (type(leaf) is np.ndarray and leaf.ndim > 0) or (type(leaf) is PlacedArray and leaf.has_rows)


def unit_arrays(
    shapes: Sequence[tuple[int, ...]], first: int, stop: int, dtype: np.dtype[Any]
) -> list[Array]:
    """Rows first … stop of the identity over several arrays laid one after the other."""
    parts, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        part = np.zeros((stop - first, size), dtype)
        low, high = max(first, start), min(stop, start + size)
        if low < high:
            part[np.arange(low, high) - first, np.arange(low, high) - start] = 1.0
        parts.append(part.reshape(stop - first, *shape))
        start += size
    return parts
