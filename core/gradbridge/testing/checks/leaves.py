"""Laws 6 and 7 at the leaves: what they may come as, what is known of them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import optree

from gradbridge import trees
from gradbridge.call_spec import CallSpec
from gradbridge.errors import GradientMismatchError, HigherOrderError, Unsupported
from gradbridge.execution import batched
from gradbridge.execution.arguments import Arguments
from gradbridge.layout import Array
from gradbridge.protocol import Adapter, ArraySpec
from gradbridge.testing import derivatives
from gradbridge.testing.backend import NotOfferedError
from gradbridge.testing.checks.catalogue import PLAIN, SHAPED, check, optional
from gradbridge.testing.checks.orders import floating, wide
from gradbridge.testing.compare import expect_close, expect_gradients, expect_outputs
from gradbridge.testing.points import drawn, forward, overwrite, views
from gradbridge.testing.subject import Subject

#: The scenarios with parameters.
WITH_WEIGHTS = tuple(name for name in PLAIN if name != "energy")


class Foreign:
    """An array of another library, as far as a guest may know: DLPack and no more.

    Args:
        array: that it shares its memory with.
    """

    def __init__(self, array: Array) -> None:
        self._array, self.shape, self.dtype = array, array.shape, array.dtype

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


@check(6)
def foreign_arrays(subject: Subject) -> None:
    """Inputs, weights and cotangents come by DLPack from any library, and may be overwritten once they were used."""
    point = subject.point(110)
    outputs, gradients = subject.outputs_at(point), subject.gradients_at(point)
    foreign = replace(point, inputs=tuple(Foreign(x) for x in point.inputs))
    flight = subject.start(foreign)
    expect_outputs(flight.outputs, outputs, subject.tolerance, "of DLPack inputs")
    expect_gradients(flight.pull(), gradients, subject.tolerance, "at DLPack inputs")
    adapter, wrt = subject.adapter(), subject.differentiable(point.inputs)
    leaves = subject.leaves(adapter, point, wrt)
    loaded = adapter.update([Foreign(w) for w in adapter.layout.cut(point.params)])
    result, residuals = adapter.forward(loaded, foreign.inputs, CallSpec.of_arrays(len(point.inputs)), leaves)
    expect_outputs(views(adapter, result), outputs, subject.tolerance, "of DLPack weights")
    overwrite(point.arguments)
    adapter.zero(residuals)
    natives = adapter.backward(residuals, [Foreign(v) for v in point.cotangents], leaves)
    when = "at DLPack arrays that were overwritten"
    expect_gradients(subject.joined(adapter, point, natives, wrt), gradients, subject.tolerance, when)
    expect_gradients(flight.pull(), gradients, subject.tolerance, when)


@check(6, WITH_WEIGHTS)
def weights_one_by_one(subject: Subject) -> None:
    """A host that hands in each weight by itself gets the same, and the gradient of each, as with a flat vector."""
    point, adapter = subject.point(111), subject.adapter()
    weights, count = adapter.layout.cut(point.params), len(adapter.layout)
    vectors = (False,) * (count + len(point.inputs))
    call = replace(subject.call(point, packed=False), arguments=Arguments.of(vectors, count))
    wrt = subject.leaves(adapter, point, subject.differentiable(point.inputs))
    evaluation = call.evaluate([*weights, *point.inputs], wrt)
    expect_outputs(evaluation.outputs, subject.outputs_at(point), subject.tolerance, "of weights one by one")
    flat, *rest = subject.gradients_at(point).values()
    expected = [*adapter.layout.cut(flat), *rest]
    for leaf, got, right in zip(wrt, evaluation.pull(point.cotangents, wrt), expected, strict=True):
        expect_close(got, right, f"gradient of leaf {leaf}, weights one by one", subject.tolerance)


@check(6, WITH_WEIGHTS)
def packed_weights(subject: Subject) -> None:
    """Weights that cross as one leaf give the same numbers as one by one, to second order."""
    point, adapter = subject.point(112), subject.adapter()
    if not adapter.traits.packs:
        raise NotOfferedError(f"not offered, and another way is taken: {adapter.label} packs no weights")
    arguments = [*point.arguments, *point.cotangents]
    wrt = floating(arguments)
    for packed in (False, True):
        when = f"of {'packed' if packed else 'unpacked'} weights"
        flight = subject.start(point, packed=packed)
        expect_outputs(flight.outputs, subject.outputs_at(point), subject.tolerance, when)
        expect_gradients(flight.pull(), subject.gradients_at(point), subject.tolerance, when)
        try:
            evaluation = flight.differentiated().evaluate(arguments, wrt)
            directions = drawn(evaluation.outputs, 113)
            second = evaluation.pull(directions, wrt)
        except HigherOrderError:
            continue
        expected = derivatives.pullback(subject.gradient_function(), arguments, directions, wrt)
        for argument, got, right in zip(wrt, second, expected, strict=True):
            what = f"second derivative {when}, pulled back to {subject.named(argument)}"
            expect_close(got, right, what, wide(subject))


@check(7, (*PLAIN, *SHAPED))
@optional
def shapes_ahead(subject: Subject) -> None:
    """Shapes and dtypes that are told before a call, of the model and of its pullback, are those that it returns."""
    adapter, spec = subject.adapter(), CallSpec.of_arrays(len(subject.point().inputs))
    for rows in (4, 0):
        point = subject.point(114, rows)
        narrow = tuple(x.astype(np.float32) if x.dtype.kind == "f" else x for x in point.inputs)
        for inputs in (point.inputs, narrow):
            at = replace(point, inputs=inputs)
            leaves = subject.leaves(adapter, at, subject.differentiable(inputs))
            ahead = adapter.output_spec([ArraySpec.of(x) for x in inputs], spec)
            outputs, _ = forward(adapter, at)
            _expect_told(adapter, ahead, outputs, f"of {rows} rows")
            try:
                gradient = adapter.pullback(spec.replayed(), leaves)
            except HigherOrderError:
                continue
            both = replace(at, inputs=(*inputs, *point.cotangents))
            again = CallSpec.of_arrays(len(both.inputs))
            ahead = gradient.output_spec([ArraySpec.of(x) for x in both.inputs], again)
            _expect_told(gradient, ahead, forward(gradient, both)[0], f"of the gradient for {rows} rows")


@check(7)
def results_are_checked(subject: Subject) -> None:
    """What is not a gradient of each argument, or no tangent of each output, is refused before anybody uses it."""
    point, adapter = subject.point(115), subject.fresh()
    arguments, wrt = [*point.arguments, *point.cotangents], subject.differentiable(point.inputs)
    tangents = drawn([point.arguments[i] for i in wrt], 116)
    flight = subject.start(point, adapter=adapter, packed=False)
    many = [np.stack([v, v]) for v in point.cotangents]

    def refused(story: str, spoil: Spoil) -> None:
        with _spoilt(adapter, "backward", spoil):
            _expect_refused(flight.pull, f"{story}, of a gradient")
        with _spoilt(adapter, "backward_many", spoil), suppress(Unsupported):
            pull = lambda: batched.pull_many(flight.evaluation, many, wrt, "batched VJP")  # noqa: E731
            _expect_refused(pull, f"{story}, of a batched gradient")
        with _spoilt(adapter, "pushforward", spoil, 1), suppress(Unsupported):
            _expect_refused(lambda: batched.push(flight.evaluation, wrt, tangents), f"{story}, of a tangent")
        with suppress(HigherOrderError):
            gradient = flight.differentiated()
            with _spoilt(gradient.adapter, "evaluate", spoil, 0):
                _expect_refused(lambda: gradient.evaluate(arguments, ()), f"{story}, of a gradient's adapter")

    for story, spoil in (_SPOILT if adapter.results_are_typed else _SPOILT | _OF_OTHER_NUMBERS).items():
        refused(story, spoil)


#: What an adapter returned → something else.
Spoil = Callable[[list[Any]], Any]


@contextmanager
def _spoilt(adapter: Adapter, method: str, spoil: Spoil, part: int | None = None) -> Iterator[None]:
    """Change what a method of an adapter returns, or one of the two parts of it."""
    original = getattr(adapter, method)

    def spoiling(*args: Any) -> Any:
        result = original(*args)
        if part is None:
            return spoil(list(result))
        both = list(result)
        both[part] = spoil(list(both[part]))
        return tuple(both)

    setattr(adapter, method, spoiling)
    try:
        yield
    finally:
        delattr(adapter, method)


def _expect_refused(step: Callable[[], Any], story: str) -> None:
    try:
        results = step()
    except GradientMismatchError:
        return
    except Unsupported:
        raise
    except Exception as error:
        raise AssertionError(
            f"expected GradientMismatchError for {story}, got {type(error).__name__}: {error}"
        ) from error
    raise AssertionError(f"expected GradientMismatchError for {story}, got {results}")


def _expect_told(adapter: Adapter, ahead: Any, outputs: Any, what: str) -> None:
    specs, structure = optree.tree_flatten(
        ahead, is_leaf=lambda x: isinstance(x, ArraySpec), namespace=trees.NAMESPACE
    )
    _, came = trees.flatten(outputs)
    assert structure == came, f"outputs {what} were told to have the structure {structure}, got {came}"
    for index, (told, array) in enumerate(zip(specs, views(adapter, outputs), strict=True)):
        got = ArraySpec.of(array)
        assert told == got, f"output {index} {what} was told to be {told}, got {got}"


_SPOILT: dict[str, Spoil] = {
    "one array too few": lambda arrays: arrays[:-1],
    "one array too many": lambda arrays: [*arrays, arrays[-1]],
    "None in place of an array": lambda arrays: [None, *arrays[1:]],
    "None in place of all": lambda arrays: None,
    "an axis too many": lambda arrays: [np.ones((1, *arrays[0].shape)), *arrays[1:]],
    "an axis too few, or one for none": lambda arrays: [
        *arrays[:-1],
        np.ones(tuple(arrays[-1].shape)[1:] if len(arrays[-1].shape) else (1,)),
    ],
}

#: For adapters that may return arrays of any dtype.
_OF_OTHER_NUMBERS: dict[str, Spoil] = {
    "integers in place of floating numbers": lambda arrays: [np.ones(arrays[0].shape, int), *arrays[1:]],
}
