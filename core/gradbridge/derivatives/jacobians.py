"""Jacobians at concrete arrays, and products with them: what stands behind the methods of `Bridge`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge import borders, trees
from gradbridge.admission import as_array
from gradbridge.derivatives.points import EvaluationPoint, Linearization
from gradbridge.derivatives.problem import JacobianProblem
from gradbridge.derivatives.strategies import Solver
from gradbridge.errors import CotangentMismatchError, HigherOrderError, OptionError, Unsupported
from gradbridge.execution import batched
from gradbridge.execution.cotangents import tangents_to_guest
from gradbridge.execution.evaluation import Evaluation
from gradbridge.layout import Array
from gradbridge.option_values import check_options
from gradbridge.wording import first_line

#: Bytes that the cotangents and gradients of one chunk may take, besides the Jacobian itself.
MAX_CHUNK = 1 << 24


class Derivatives(ABC):
    """Derivatives at concrete arrays, computed outside of any host's graph: the half of `Bridge` that has them."""

    _latest = ""  # how the latest Jacobian was computed

    @abstractmethod
    def _point(self, params: Any, inputs: Sequence[Any], kwargs: dict[str, Any]) -> EvaluationPoint:
        """The arguments of a call as a point to differentiate at.

        Raises:
            NotDifferentiableError: the host is differentiating one of them.
        """

    def jacobian(
        self,
        params: Any,
        *inputs: Any,
        wrt: Any = 0,
        strategy: str = "auto",
        max_chunk: int = MAX_CHUNK,
        **kwargs: Any,
    ) -> Any:
        """d outputs / d argument at concrete arrays, by the cheapest way that the structure allows.

        ``gradbridge.trace()`` shows which way was taken: per-example, rows at once, batched VJP,
        batched JVP, or one backward after the other.

        Args:
            params, *inputs, **kwargs: as for a call.
            wrt: 0 for the params, i for the i-th input array; or a tuple of such.
            strategy: ``"auto"``; or ``"rows"``, which declares that every row of the outputs depends
                on its own row of the inputs alone; ``"vjp"``, ``"jvp"`` (batched), ``"loop"``.
                Left to itself it finds out, but never takes rows for independent in train mode.
            max_chunk: bytes that the cotangents and gradients of one chunk may take; the result, and
                what the guest keeps in between, come on top.

        Returns:
            (*output shape, *argument shape), in the dtype of `params`; a tree of them if the model
            returns a tree (None in place of integers), and a tuple of these if `wrt` is one.

        Raises:
            NotDifferentiableError: an argument that is not floating, or that the host is
                differentiating itself.
            OptionError: a strategy that cannot be followed here, or a `wrt` that there is not.
        """
        return self._jacobian(self._point(params, inputs, kwargs), wrt, strategy, max_chunk)

    def _jacobian(self, point: EvaluationPoint, wrt: Any, strategy: str, max_chunk: int) -> Any:
        result = jacobian(point, wrt, strategy, max_chunk)
        self._latest = point.strategies_used[-1] if point.strategies_used else self._latest
        return result

    def row_gradients(
        self,
        params: Any,
        *inputs: Any,
        strategy: str = "auto",
        max_chunk: int = MAX_CHUNK,
        **kwargs: Any,
    ) -> Any:
        """The gradient of each row's output with respect to the params, (n, P).

        Args:
            params, *inputs, **kwargs: as for a call; the model returns (n,) or (n, 1).
            strategy, max_chunk: as for `jacobian`.

        Raises:
            OptionError: the model does not return one number per row.
        """
        point = self._point(params, inputs, kwargs)
        gradients = row_gradients(point, strategy, max_chunk)
        self._latest = point.strategies_used[-1] if point.strategies_used else self._latest
        return gradients

    def vjp(self, params: Any, *inputs: Any, cotangent: Any, wrt: Any = 0, **kwargs: Any) -> Any:
        """Vector-Jacobian product vᵀJ at concrete arrays: one forward, one backward.

        Args:
            params, *inputs, **kwargs: as for a call.
            cotangent: v, like the outputs.
            wrt: as for `jacobian`.

        Returns:
            An array of the argument's shape; a tuple of them if `wrt` is one.

        Raises:
            CotangentMismatchError: v does not fit the outputs.
        """
        return vjp(self._point(params, inputs, kwargs), cotangent, wrt)

    def jvp(self, params: Any, *inputs: Any, tangent: Any, wrt: Any = 0, **kwargs: Any) -> Any:
        """Jacobian-vector product Jt at concrete arrays, by the guest's forward mode.

        Where it has none, by the pullback of the pullback.

        Args:
            params, *inputs, **kwargs: as for a call.
            tangent: t, of the argument's shape; a tuple of them if `wrt` is one.
            wrt: as for `jacobian`.

        Returns:
            Like the outputs.

        Raises:
            CotangentMismatchError: t does not fit the argument.
            HigherOrderError: the guest has no forward mode, and cannot differentiate its gradient.
        """
        return jvp(self._point(params, inputs, kwargs), tangent, wrt)

    def ggn(
        self, params: Any, *inputs: Any, vector: Any, wrt: Any = 0, hessian: Any = None, **kwargs: Any
    ) -> Any:
        """Gauss-Newton product JᵀHJv at concrete arrays, without J.

        Args:
            params, *inputs, **kwargs: as for a call.
            vector: v, of the argument's shape; a tuple of them if `wrt` is one.
            wrt: as for `jacobian`.
            hessian: H, that of a loss in the outputs: an array of output shape + output shape, or a
                function that applies it. Left out it is the identity: the loss is half a sum of squares.

        Returns:
            An array of the argument's shape; a tuple of them if `wrt` is one.

        Raises:
            HigherOrderError: the guest has no forward mode, and cannot differentiate its gradient.
        """
        return ggn(self._point(params, inputs, kwargs), vector, wrt, hessian)


def jacobian(point: EvaluationPoint, wrt: Any, strategy: str = "auto", max_chunk: int = MAX_CHUNK) -> Any:
    """d outputs / d arguments.

    Args:
        point: where.
        wrt: a position, or a tuple of them.
        strategy: as for `Bridge.jacobian`.
        max_chunk: bytes that the cotangents and gradients of one chunk may take.

    Returns:
        The output tree with output shape + argument shape in place of each array, None in place of
        an integer or boolean one; for a tuple `wrt` a tuple of such trees.

    Raises:
        OptionError: a strategy that there is not, or that cannot be followed here.
        NotDifferentiableError: an argument or all of the outputs are not floating.
    """
    check_options(strategy=strategy, max_chunk=max_chunk)
    arguments = point.arguments(wrt)
    moving = tuple(i for i in arguments if np.prod(point.shape(i))) or arguments
    problem = JacobianProblem(point, moving, int(max_chunk), checks_rows=strategy == "auto")
    flat = dict(zip(moving, Solver(problem).solve(strategy)))
    jacobians = tuple(problem.assemble(flat[i] if i in flat else problem.empty(i)) for i in arguments)
    return point.in_host(jacobians if isinstance(wrt, tuple) else jacobians[0])


def row_gradients(point: EvaluationPoint, strategy: str, max_chunk: int) -> Any:
    """Gradients with respect to the params of a model with one number per row, (n, P).

    Raises:
        OptionError: it does not return one number per row, or a strategy that there is not.
    """
    check_options(strategy=strategy, max_chunk=max_chunk)
    problem = JacobianProblem(point, point.arguments(0), int(max_chunk), checks_rows=strategy == "auto")
    evaluation = problem.evaluation
    outputs, shape = evaluation.outputs, evaluation.outputs[0].shape
    is_one = evaluation.structure is None and outputs[0].dtype.kind == "f"
    if not is_one or not shape or int(np.prod(shape[1:])) != 1:
        shapes = ", ".join(str(y.shape) for y in outputs)
        raise OptionError(
            f"row_gradients needs one array with one number per row, (n,) or (n, 1), and {point.label} returned "
            f"{shapes}; use f.jacobian, whose axes say which output is which"
        )
    gradients: Array = problem.assemble(Solver(problem).solve(strategy)[0])
    return point.in_host(gradients.reshape(shape[0], point.call.adapter.layout.size))


def vjp(point: EvaluationPoint, cotangent: Any, wrt: Any) -> Any:
    """vᵀ ∂f/∂argument: one forward, one backward.

    Raises:
        CotangentMismatchError: the cotangent does not fit the outputs.
    """
    arguments = point.arguments(wrt)
    evaluation = point.evaluate(arguments)
    gradients = evaluation.pull(_cotangents(evaluation, point.given(cotangent)), arguments)
    return point.in_host(tuple(gradients) if isinstance(wrt, tuple) else gradients[0])


def jvp(point: EvaluationPoint, tangent: Any, wrt: Any) -> Any:
    """∂f/∂argument · t, by the guest's forward mode, or else by the pullback of the pullback.

    Raises:
        CotangentMismatchError: the tangent does not fit the arguments.
        HigherOrderError: the guest has no forward mode, and cannot differentiate its gradient.
    """
    arguments = point.arguments(wrt)
    tangents = _tangents(point, point.given(tangent), wrt, arguments)
    try:
        pushed = batched.evaluate_and_push(point.call, point.values, arguments, tangents)
        pushed.require_inexact_output()
        return point.in_host(pushed.assemble_derivatives(pushed.tangents or ()))
    except Unsupported:
        evaluation = point.evaluate(arguments)
    moved = Linearization(evaluation, arguments).push(tangents, own=False)
    return point.in_host(evaluation.assemble_derivatives(moved))


def ggn(point: EvaluationPoint, vector: Any, wrt: Any, hessian: Any) -> Any:
    """JᵀHJ · v, the (generalized) Gauss-Newton product; H is the identity without `hessian`.

    Args:
        point: where.
        vector: of the argument's shape; a tuple of them for a tuple `wrt`.
        wrt: a position, or a tuple of them.
        hessian: of a loss in the outputs: an array of shape output shape + output shape, or a
            function of (an output tree's) tangent.

    Source:
        N. Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent.
    """
    arguments = point.arguments(wrt)
    tangents = _tangents(point, point.given(vector), wrt, arguments)
    evaluation = point.evaluate(arguments)
    linear = Linearization(evaluation, arguments)
    try:  # from what the forward recorded, which is pulled back in the end, too: one forward in all
        pushed = evaluation.assemble_derivatives(linear.push(tangents, own=False))
    except HigherOrderError:
        pushed = evaluation.assemble_derivatives(linear.push(tangents))
    if callable(hessian):
        pushed = point.given(hessian(point.in_host(pushed)))
    elif hessian is not None:
        matrix = as_array(point.given(hessian), "hessian=")
        if not isinstance(pushed, np.ndarray):
            raise OptionError(
                f"hessian is an array for a model that returns one array, and {point.label} returns a tree of "
                f"{len(evaluation.outputs)}; pass a function that applies it to a tangent like the outputs"
            )
        if matrix.shape != pushed.shape * 2:
            raise OptionError(
                f"hessian is an array of output shape + output shape, {pushed.shape * 2} for {point.label}, got "
                f"{matrix.shape}; or pass a function that applies it to a tangent of the outputs"
            )
        pushed = np.tensordot(matrix, pushed, pushed.ndim)
    gradients = evaluation.pull(_cotangents(evaluation, pushed), arguments)
    return point.in_host(tuple(gradients) if isinstance(wrt, tuple) else gradients[0])


def _cotangents(evaluation: Evaluation, cotangent: Any) -> list[Any]:
    """A tree like the outputs, its dicts in any order → leaves in order; None is zeros."""
    outputs = evaluation.outputs
    like = evaluation.assemble_derivatives(range(len(outputs)))
    if not trees.is_container(like):
        return [cotangent]
    order, structure = trees.flatten(like)
    try:
        leaves = structure.flatten_up_to(cotangent)
    except ValueError as error:
        kinds = trees.unflatten(structure, [f"array {outputs[i].shape}" for i in order])
        raise CotangentMismatchError(
            f"the cotangent of {evaluation.adapter.label} must be a tree like its outputs, {kinds}, got "
            f"{type(cotangent).__name__}: {first_line(error)}"
        ) from error
    cotangents: list[Any] = [np.zeros(y.shape) for y in outputs]
    for index, leaf in zip(order, leaves):
        if leaf is not None:
            cotangents[index] = leaf
    return cotangents


def _tangents(point: EvaluationPoint, tangent: Any, wrt: Any, arguments: tuple[int, ...]) -> list[Array]:
    given = tangent if isinstance(wrt, tuple) else (tangent,)
    if not isinstance(given, (tuple, list)) or len(given) != len(arguments):
        raise CotangentMismatchError(
            f"wrt={wrt!r} asks for a tuple of {len(arguments)} tangents, one for each argument, got {type(tangent).__name__}"
        )
    borders.admit_differentiated(point.values, arguments, point.call)
    return tangents_to_guest(given, point.values, arguments, point.label)
