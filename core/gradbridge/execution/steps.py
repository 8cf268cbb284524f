"""The protocol's steps as they are made: with observers told, where there are any, and results checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.audit.forward_mode import passes_adjoint_test
from gradbridge.declarations import Step
from gradbridge.errors import GradientMismatchError, InputError, OutputError, Unsupported
from gradbridge.protocol import Adapter
from gradbridge.wording import described


def evaluated(call: Any, values: Sequence[Any], wrt: tuple[int, ...]) -> tuple[Any, Any]:
    """Steps update and forward.

    Args:
        call: what.
        values: the host's arguments.
        wrt: leaves.
    """
    weights, flat, inputs = arguments_of(call, values)
    adapter = call.adapter
    if not call.settings.observers.observed:
        return _pair(adapter, adapter.evaluate(weights, inputs, call.spec, wrt, flat))
    if adapter.step == "backward":  # a derivative from a recorded forward loads nothing, and is not a forward
        loaded = adapter.update_flat(weights, call.spec.packed) if flat else adapter.update(weights)
        step = "backward"
    else:
        loaded, step = _load(call, weights, flat), "forward"
    return _pair(
        adapter, _observe(call, step, _shapes(inputs), adapter.forward, loaded, inputs, call.spec, wrt)
    )


def pulled(
    evaluation: Any, cotangents: Sequence[Any], wrt: tuple[int, ...], left: Sequence[Any] = ()
) -> list[Any]:
    """Steps zero and backward: natives, one per leaf of the arguments."""
    call, residuals = evaluation.call, evaluation.residuals
    adapter, more = call.adapter, (left,) if left else ()
    backward: Any = adapter.backward_merged if left else adapter.backward
    cotangents, leaves = _cotangents(call, cotangents), call.arguments.leaves(wrt)
    if not leaves:  # by the params of a model without any
        return []
    if not call.settings.observers.observed:
        adapter.zero(residuals)
        return backward(residuals, cotangents, leaves, *more)  # type: ignore[no-any-return]
    _observe(call, "zero", (), adapter.zero, residuals)
    shapes = _shapes(cotangents)
    gradients: list[Any] = _observe(call, "backward", shapes, backward, residuals, cotangents, leaves, *more)
    return gradients


def pulled_to_boundary(evaluation: Any, cotangents: Sequence[Any]) -> tuple[dict[int, Any], Any]:
    """Step backward of a recorded derivative, but for the walk through the graph that it came from."""
    call, residuals = evaluation.call, evaluation.residuals
    cotangents, adapter = _cotangents(call, cotangents), call.adapter
    pull: Any = adapter.pull_to_boundary
    gradients: tuple[dict[int, Any], Any] = _observed(
        call, "backward", _shapes(cotangents), pull, residuals, cotangents
    )
    return gradients


def pulled_many(evaluation: Any, cotangents: Sequence[Any], wrt: tuple[int, ...], how: str) -> list[Any]:
    """Step zero, and a backward of many."""
    call = evaluation.call
    adapter, leaves = call.adapter, call.arguments.leaves(wrt)
    cotangents = _cotangents(call, cotangents)
    adapter.zero(evaluation.residuals)
    gradients: list[Any] = _observed(
        call,
        "backward",
        _shapes(cotangents),
        adapter.backward_many,
        evaluation.residuals,
        cotangents,
        leaves,
        how=f", {how}",
    )
    return gradients


def row_jacobians(
    evaluation: Any, values: Sequence[Any], wrt: tuple[int, ...], has_rows: tuple[bool, ...]
) -> list[list[Any]]:
    """Per-example Jacobians: natives for each output, one per leaf of the arguments."""
    call = evaluation.call
    adapter = call.adapter
    weights, flat, inputs = arguments_of(call, values)
    loaded = adapter.update_flat(weights, call.spec.packed) if flat else adapter.update(weights)
    jacobians: list[list[Any]] = _observed(
        call,
        "backward",
        _shapes(inputs),
        adapter.row_jacobians,
        loaded,
        inputs,
        call.spec.replayed(),
        call.arguments.leaves(wrt),
        has_rows,
        how=", per-example",
    )
    return jacobians


def pushed(
    call: Any, values: Sequence[Any], wrt: tuple[int, ...], tangents: Sequence[Any]
) -> tuple[Any, list[Any]]:
    """A forward with tangents; the first of them compared with a backward.

    Raises:
        Unsupported: there is none, or it disagrees with the backward.
    """
    return _pushed(call, "pushforward", values, wrt, tangents)  # type: ignore[no-any-return]


def pushed_many(call: Any, values: Sequence[Any], wrt: tuple[int, ...], tangents: Sequence[Any]) -> list[Any]:
    """Tangents with a leading axis; the first of them compared with a backward.

    Raises:
        Unsupported: there is none, or it disagrees with the backward.
    """
    return _pushed(call, "pushforward_many", values, wrt, tangents)  # type: ignore[no-any-return]


def check_results(
    adapter: Adapter,
    natives: Any,
    indices: Sequence[int],
    shapes: Sequence[tuple[int, ...]],
    what: str = "gradient",
    of: str = "argument",
    kinds: Sequence[str] = (),
) -> None:
    """Refuse what is not a gradient for each argument, or no tangent for each output: nobody is to use it.

    Args:
        adapter: that returned it.
        natives: what it returned.
        indices: the leaves that it was asked for.
        shapes: that they are to have.
        what, of: words for errors.
        kinds: of the dtypes that each may have, ``"f"`` or ``"fc"``; real floating ones where none are given.

    Raises:
        GradientMismatchError
    """
    if not isinstance(natives, (list, tuple)):
        raise GradientMismatchError(
            f"{adapter.label} returned {described(natives)} as its {what}s; its backend must return a list "
            f"with an array for each {of} that was asked for"
        )
    if len(natives) != len(indices):
        raise GradientMismatchError(
            f"{adapter.label} returned {len(natives)} {what}s for {len(indices)} {of}s; its backend must return "
            f"one for each that was asked for"
        )
    for place, (native, shape, index) in enumerate(zip(natives, shapes, indices)):
        came = getattr(native, "shape", None)
        if came is None:
            raise GradientMismatchError(
                f"{adapter.label} returned {described(native)} as the {what} of {of} {index}; its "
                f"backend must return an array, zeros where there is no influence"
            )
        if tuple(came) != shape:
            raise GradientMismatchError(
                f"{adapter.label} returned a {what} of shape {tuple(came)} for {of} {index}, "
                f"which has shape {shape}; its backend must return one of the {of}'s shape"
            )
        if not adapter.results_are_typed:
            try:
                came = f"a {what} of dtype {adapter.border.view(native).dtype}"
                fits = adapter.border.view(native).dtype.kind in (kinds[place] if kinds else "f")
            except InputError as error:  # masked, or more than its numbers in another way
                came, fits = f"{error}", False
            if not fits:
                raise GradientMismatchError(
                    f"{adapter.label} returned {came} for {of} {index}; its backend must return floating numbers, "
                    f"complex ones for what is complex"
                )


def _pushed(
    call: Any, operation: str, values: Sequence[Any], wrt: tuple[int, ...], tangents: Sequence[Any]
) -> Any:
    adapter, audit, many = call.adapter, call.settings.audit, operation == "pushforward_many"
    if audit.is_wrong(call.order, "pushforward"):
        raise Unsupported(f"the forward mode of {adapter.label} disagrees with its gradient")
    reason = adapter.refusal(operation)
    if reason:
        raise Unsupported(reason)
    weights, flat, inputs = arguments_of(call, values)
    if call.settings.observers.observed and not call.spec.replay:  # it is the evaluation itself
        loaded = _load(call, weights, flat)
    else:
        loaded = adapter.update_flat(weights, call.spec.packed) if flat else adapter.update(weights)
    leaves, layout = call.arguments.leaves(wrt), adapter.layout
    if not leaves:
        raise Unsupported(f"{adapter.label} has no parameters that could move")
    cut = _uncut if call.spec.packed else layout.cut
    natives = [
        leaf for i, t in zip(wrt, tangents) for leaf in (cut(t) if call.arguments.vectors[i] else (t,))
    ]
    pushed = _observed(
        call,
        "forward",
        _shapes(tangents),
        getattr(adapter, operation),
        loaded,
        inputs,
        call.spec,
        leaves,
        natives,
        how=f", {'batched JVP' if many else 'JVP'}",
    )
    if not many:
        _check_tangents(adapter, pushed)
    else:
        lead, several = natives[0].shape[0], pushed if isinstance(pushed, (list, tuple)) else (pushed,)
        shapes = [(lead, *tuple(getattr(t, "shape", (0,)))[1:]) for t in several]
        check_results(adapter, pushed, range(len(shapes)), shapes, "tangent", "output", ["fc"] * len(shapes))
    step = "pushforward", many, call.spec.packed, leaves
    if not adapter.traits.checks_jvp or not audit.awaits(call.order, step):
        return pushed
    moved, reached = (
        ([np.asarray(t[0]) for t in natives], [y[0] for y in pushed]) if many else (natives, pushed[1])
    )
    passes = _observed(
        call,
        "backward",
        _shapes(reached),
        passes_adjoint_test,
        adapter,
        loaded,
        inputs,
        call.spec.replayed(),
        leaves,
        moved,
        reached,
        audit.precision,
        how=", JVP checked",
    )
    audit.found(call.order, step, passes is not False)
    if passes is False:
        raise Unsupported(f"the forward mode of {adapter.label} disagrees with its gradient")
    return pushed


def _check_tangents(adapter: Adapter, pushed: Any) -> None:
    """Before anything is compared with them."""
    outputs, tangents = _pair(adapter, pushed)
    leaves = trees.flatten(outputs)[0]
    shapes = [tuple(getattr(y, "shape", ())) for y in leaves]
    kinds = ["fc" if "complex" in str(getattr(y, "dtype", "")) else "f" for y in leaves]
    check_results(adapter, tangents, range(len(shapes)), shapes, "tangent", "output", kinds)


def arguments_of(call: Any, values: Sequence[Any]) -> tuple[Any, bool, Sequence[Any]]:
    """The host's arguments → (weights or their vector, whether it is that, input leaves)."""
    arguments = call.arguments
    if arguments.first_only:
        return values[0], True, values[1:]
    if not any(arguments.vectors):
        k = len(call.adapter.layout)
        return values[:k], False, values[k:]
    cut = _uncut if call.spec.packed else call.adapter.layout.cut
    flat = arguments.vectors[0]
    k = 1 if flat else len(call.adapter.layout)
    inputs: list[Any] = []
    for is_vector, value in zip(arguments.vectors[k:], values[k:]):
        inputs += cut(value) if is_vector else (value,)
    return values[0] if flat else values[:k], flat, inputs


def _cotangents(call: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
    results = call.results
    if results is None or not any(results.vectors):
        return cotangents
    split: Sequence[Any] = results.split(cotangents, _uncut if call.spec.packed else call.adapter.layout.cut)
    return split


def _pair(adapter: Adapter, result: Any) -> tuple[Any, Any]:
    if type(result) is not tuple or len(result) != 2:
        raise OutputError(
            f"the forward of {adapter.label} returned {described(result)}; its backend must return a tuple of the "
            f"outputs and what their pullback needs"
        )
    return result


def _uncut(vector: Any) -> tuple[Any]:
    return (vector,)


def _load(call: Any, weights: Any, flat: bool) -> Any:
    adapter = call.adapter
    if flat:
        return _observe(call, "update", _shapes([weights]), adapter.update_flat, weights, call.spec.packed)
    return _observe(call, "update", _shapes(weights), adapter.update, weights)


def _observed(call: Any, name: str, shapes: Any, step: Callable[..., Any], *args: Any, how: str = "") -> Any:
    """As a step of that name, if anybody looks, and the guest made it."""
    if not call.settings.observers.observed:
        return step(*args)
    return _observe(call, name, shapes, step, *args, how=how)


def _observe(call: Any, name: str, shapes: Any, step: Callable[..., Any], *args: Any, how: str = "") -> Any:
    start = time.perf_counter()
    result = step(*args)
    seconds = time.perf_counter() - start
    call.settings.observers.notify(Step(name, call.adapter.label + how, shapes, seconds))
    return result


def _shapes(arrays: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(np.shape(a) for a in arrays if hasattr(a, "shape"))
