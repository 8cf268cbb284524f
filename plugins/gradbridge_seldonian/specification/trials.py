"""Functions of the user's, called once where training starts, as the engine will call them.

What they raise in the engine may be counted as a trial without a solution; here it is a `SpecError`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gradbridge.errors import GradbridgeError
from gradbridge.layout import Array
from gradbridge.wording import in_short
from gradbridge_seldonian.engine import CustomDataSet, ParseTree
from gradbridge_seldonian.outputs import SpecError

_NAMES = {1: ("data",), 2: ("X", "Y")}


def try_objective(
    objective: Any, model: Any, start: Array, seen: Sequence[Any], options: Mapping[str, Any]
) -> None:
    """Evaluate an objective: it returns one number."""
    value = _called("primary_objective", lambda: objective(model, start.copy(), *seen, **options))
    _check_number("primary_objective", value)


def try_gradient(gradient: Any, model: Any, start: Array, seen: Sequence[Any]) -> None:
    """Evaluate the gradient of an objective, which the engine calls with names: it has a component for each parameter."""
    named = dict(zip(_NAMES[len(seen)], seen))
    value = _called("custom_primary_gradient_fn", lambda: gradient(model=model, theta=start.copy(), **named))
    if np.shape(value) != start.shape:
        raise SpecError(
            f"custom_primary_gradient_fn must return the gradient of theta, shape {start.shape}, got shape "
            f"{np.shape(value)}"
        )


def try_regularizer(regularizer: Any, start: Array) -> None:
    """Evaluate a function of the parameters: it returns one number."""
    name = "regularization_hyperparams['reg_func']"
    _check_number(name, _called(name, lambda: regularizer(start.copy())))


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
        # A power of a negative interval, say, is no mistake: the engine finds no solution there.
        with contextlib.suppress(ArithmeticError):
            _called(f"the constraint {tree.constraint_str!r}", bounds, passed=(ArithmeticError,))


def _called(name: str, call: Callable[[], Any], passed: tuple[type[Exception], ...] = ()) -> Any:
    try:
        return call()
    except (GradbridgeError, *passed):
        raise
    except Exception as error:
        raise SpecError(f"{name} failed at the initial solution: {in_short(error)}") from error


def _check_number(name: str, value: Any) -> None:
    if np.shape(value) != () or np.asarray(value).dtype.kind not in "fiub":
        shape = f" of shape {value.shape}" if hasattr(value, "shape") else ""
        raise SpecError(
            f"{name} must return one number, got a {type(value).__name__}{shape} at the initial solution; return its "
            f"mean or sum"
        )
