"""Law 7: what has no derivative raises, what has no influence gives exact zeros; never the one for the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gradbridge.errors import GradbridgeError, NotDifferentiableError
from gradbridge.testing.checks.catalogue import check
from gradbridge.testing.compare import expect_gradients
from gradbridge.testing.subject import Subject


@check(7, ("embedding",))
def integer_gradient_refused(subject: Subject) -> None:
    """The derivative with respect to an integer input raises NotDifferentiableError; it is not zero."""
    point = subject.point(50)
    try:
        gradients = subject.start(point, wrt=(0, 1)).pull()
    except NotDifferentiableError:
        return
    raise AssertionError(f"expected NotDifferentiableError for integers, got the gradient {gradients[1]}")


@check(7, ("unused", "embedding"))
def no_influence_is_zero(subject: Subject) -> None:
    """What has no influence on the outputs gets zeros, exactly, in its own shape."""
    point = subject.point(51)
    expected = subject.gradients_at(point)
    gradients = subject.start(point).pull()
    for argument, gradient in gradients.items():
        assert gradient.shape == expected[argument].shape, (
            f"gradient of {gradients.name(argument)}: expected shape {expected[argument].shape}, got {gradient.shape}"
        )
        without = expected[argument] == 0
        assert not np.any(gradient[without]), (
            f"gradient of {gradients.name(argument)}: expected exact zeros where there is no influence, "
            f"got {gradient[without]}"
        )


@check(7, ("unused",))
def no_influence_alone(subject: Subject) -> None:
    """An input without influence gets its zeros also when nothing else is asked for."""
    point = subject.point(52)
    for wrt in ((2,), (2, 1)):
        got = subject.start(point, wrt=wrt).pull()
        expect_gradients(got, subject.gradients_at(point), subject.tolerance, f"asked for as {wrt}")


@check(7, ("outputs",))
def unused_outputs(subject: Subject) -> None:
    """Where one output alone matters, the others' zero cotangents add nothing and hide nothing."""
    point = subject.point(53)
    for index in range(len(point.cotangents)):
        alone = tuple(v if i == index else np.zeros(v.shape) for i, v in enumerate(point.cotangents))
        expected = subject.gradients_at(replace(point, cotangents=alone))
        got = subject.start(point).pull(alone)
        expect_gradients(got, expected, subject.tolerance, f"of output {index} alone")


@check(7, ("mlp",))
def misfit_refused(subject: Subject) -> None:
    """An input with a column too many is refused with an error of ours, not computed or passed through."""
    point = subject.point(54)
    wrong = replace(point, inputs=(np.ones((4, point.inputs[0].shape[1] + 1)),))
    try:
        outputs = subject.start(wrong).outputs
    except GradbridgeError as error:
        if not str(error):
            raise AssertionError(
                f"{type(error).__name__} says nothing; say what was expected and what came"
            ) from error
        return
    except Exception as error:
        raise AssertionError(
            f"expected InputError or GuestError for an input with a column too many, got the framework's own "
            f"{type(error).__name__}: {error}"
        ) from error
    raise AssertionError(f"an input with a column too many was computed, to shape {outputs[0].shape}")
