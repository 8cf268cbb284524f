"""Functions of the user's, called once where training starts, as the engine will call them.

What they raise in the engine may be counted as a trial without a solution; here it is a `SpecError`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from autograd import grad

from gradbridge.errors import GradbridgeError, ParamsShapeError
from gradbridge.layout import Array
from gradbridge.wording import in_short
from gradbridge_seldonian.engine import CustomDataSet, ParseTree
from gradbridge_seldonian.outputs import SpecError

# By how much a gradient may differ from another, relative to both: rounding in float32, finite differences.
_DIFFERENCE = 1e-3

_NAMES = {1: ("data",), 2: ("X", "Y")}


@dataclass(frozen=True)
class Minimized:
    """What the engine is to minimize, and along which gradient.

    Attributes:
        own: the user's objective; None where it is the sub-regime's.
        objective: that, or the sub-regime's.
        gradient: that was given, or is the engine's formula; None for autograd's.
        weight: reg_coef, by which gradient descent adds theta · theta.
        descends: whether gradients are asked for.
    """

    own: Callable[..., Any] | None
    objective: Callable[..., Any]
    gradient: Callable[..., Any] | None
    weight: float
    descends: bool

    def try_at(self, model: Any, start: Array, seen: Sequence[Any], options: Mapping[str, Any]) -> None:
        """Evaluate what is the user's; see the functions below."""
        if self.own is not None:
            try_objective(self.own, model, start, seen, options, self.descends and self.gradient is None)
        if self.gradient is not None:
            try_gradient(self.gradient, model, start, seen)
            if self.descends:
                compare_gradient(self.gradient, self.objective, model, start, seen, options, self.weight)


def try_objective(
    objective: Any, model: Any, start: Array, seen: Sequence[Any], options: Mapping[str, Any], traced: bool
) -> None:
    """Evaluate an objective: it returns one number; and, where autograd will follow it, its gradient."""
    value = called("primary_objective", lambda: objective(model, start.copy(), *seen, **options))
    _check_number("primary_objective", value)
    if traced:
        hint = "; autograd differentiates it: write it in autograd.numpy, or give custom_primary_gradient_fn="
        called(
            "the gradient of primary_objective",
            lambda: _gradient(objective, model, start, seen, options),
            hint,
            True,
        )


def try_gradient(gradient: Any, model: Any, start: Array, seen: Sequence[Any]) -> None:
    """Evaluate the gradient of an objective, which the engine calls with names: it has a component for each parameter."""
    value = _given(gradient, model, start, seen)
    if np.shape(value) != start.shape:
        raise SpecError(
            f"custom_primary_gradient_fn must return the gradient of theta, shape {start.shape}, got shape "
            f"{np.shape(value)}"
        )


def compare_gradient(
    gradient: Any,
    objective: Any,
    model: Any,
    start: Array,
    seen: Sequence[Any],
    options: Mapping[str, Any],
    weight: float,
) -> None:
    """Refuse a gradient that is not that of what the engine minimizes: at the start, and near it.

    Autograd's is the measure, where it has one that can be repeated and is not zero: a gradient is given by hand
    because autograd cannot follow, too.

    Args:
        gradient: as it was given, or the engine's formula.
        objective, model, start, seen: of the specification.
        options: that the engine gives the objective.
        weight: reg_coef, by which the engine adds theta · theta to the objective.
    """
    step = 0.1 * np.random.default_rng(0).normal(size=start.shape)
    for theta in (start, start + step):
        try:
            own, again = (_gradient(objective, model, theta, seen, options) for _ in range(2))
        except (
            Exception
        ):  # whatever autograd stumbles over in the user's code: the given gradient is all there is
            return
        if not np.array_equal(own, again) or not np.isfinite(own).all() or not own.any():
            return
        truth = own + 2.0 * weight * theta
        value = np.asarray(_given(gradient, model, theta, seen), dtype=np.float64)
        size = np.linalg.norm(truth) + np.linalg.norm(value)
        if value.shape != theta.shape or np.linalg.norm(value - truth) > _DIFFERENCE * size:
            added = " + reg_coef · theta · theta" if weight else ""
            raise SpecError(
                f"the gradient that was given (custom_primary_gradient_fn= or use_builtin_primary_gradient_fn=) is not that "
                f"of the objective{added}: its norm is {np.linalg.norm(value):.4g}, autograd's is "
                f"{np.linalg.norm(truth):.4g}, and they differ by {np.linalg.norm(value - truth):.4g} at or near the "
                f"initial solution; leave it out for autograd's gradient"
            )


def _gradient(
    objective: Any, model: Any, theta: Array, seen: Sequence[Any], options: Mapping[str, Any]
) -> Array:
    found: Array = grad(lambda t: objective(model, t, *seen, **options))(theta.copy())
    return found


def _given(gradient: Any, model: Any, theta: Array, seen: Sequence[Any]) -> Any:
    named = dict(zip(_NAMES[len(seen)], seen))
    return called(
        "custom_primary_gradient_fn",
        lambda: gradient(model=model, theta=theta.copy(), **named),
        "; leave it out for autograd's gradient",
    )


def try_regularizer(regularizer: Any, start: Array) -> None:
    """Evaluate a function of the parameters: it returns one number."""
    name = "regularization_hyperparams['reg_func']"
    _check_number(name, called(name, lambda: regularizer(start.copy())))


def try_measures(trees: Sequence[ParseTree], model: Any, start: Array, dataset: Any, data: Any) -> None:
    """Evaluate the bounds of the custom regime's constraints on the candidate data, in copies of their trees."""
    n = len(data)
    part = CustomDataSet(data, dataset.sensitive_attrs[:n], n, dataset.meta)
    for tree in copy.deepcopy(list(trees)):
        bounds = functools.partial(
            tree.propagate_bounds,
            theta=start.copy(),
            tree_dataset_dict={"all": part},
            model=model,
            branch="candidate_selection",
            n_safety=max(dataset.num_datapoints - n, 2),
            regime="custom",
            sub_regime=None,
        )
        # A power of a negative interval, say, is not a mistake: the engine finds no solution there.
        with contextlib.suppress(ArithmeticError):
            called(f"the constraint {tree.constraint_str!r}", bounds, passed=(ArithmeticError,))


def called(
    name: str,
    call: Callable[[], Any],
    hint: str = "",
    ours_too: bool = False,
    passed: tuple[type[Exception], ...] = (),
) -> Any:
    """Call something of the user's at the initial solution.

    Args:
        name: what it is, in the words of an argument.
        call: calls it.
        hint: is added to the error.
        ours_too: whether errors of ours are told in these words, too; those of a wrong start always are.
        passed: errors that are left as they are.

    Raises:
        SpecError: it failed.
    """
    try:
        return call()
    except passed:
        raise
    except Exception as error:
        if isinstance(error, ParamsShapeError):
            hint = "; the initial_solution must fit the model" + hint
        elif isinstance(error, GradbridgeError) and not ours_too:
            raise
        raise SpecError(f"{name} failed at the initial solution: {in_short(error)}{hint}") from error


def _check_number(name: str, value: Any) -> None:
    if np.shape(value) != () or np.asarray(value).dtype.kind not in "fiub":
        shape = f" of shape {value.shape}" if hasattr(value, "shape") else ""
        raise SpecError(
            f"{name} must return one number, got a {type(value).__name__}{shape} at the initial solution; return its "
            f"mean or sum"
        )
