"""A step of a model in its isolation: run again where that is asked for, and its errors explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gradbridge.errors import GradbridgeError
from gradbridge.model import Model
from gradbridge.program import RunAgain

T = TypeVar("T")


def run_isolated(
    model: Model,
    step: Callable[[], T],
    inputs: Sequence[Any],
    noise: int | None,
    record: bool,
    doing: str = "",
    renew: Callable[[RunAgain], None] | None = None,
) -> T:
    """Run a step.

    Args:
        model: whose step it is; isolates, and explains what is raised.
        step: may be run twice.
        inputs, noise, record: for `Model.isolated`.
        doing: for `Model.explain`.
        renew: what is done before it is run again; nothing where it is to be run anew as it is.

    Raises:
        GradbridgeError: the model failed. What its framework raises to steer a program around us, which
            the model explains by itself, goes on as it came.
    """
    try:
        try:
            return model.isolated(step, inputs, noise, record)
        except RunAgain as request:
            if renew is not None:
                renew(request)
            return model.isolated(step, inputs, noise, record)
    except GradbridgeError:
        raise
    except Exception as error:
        explained = model.explain(error, inputs, doing)
        if explained is error:
            raise
        raise explained from error
