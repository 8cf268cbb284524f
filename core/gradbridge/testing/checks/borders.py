"""Law 6: casts happen at the border only, and every kind of NumPy array passes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from gradbridge.layout import Array
from gradbridge.testing.checks.catalogue import PLAIN, SHAPED, check
from gradbridge.testing.compare import expect_close, expect_gradients, expect_outputs
from gradbridge.testing.points import ScenarioPoint, forward, views
from gradbridge.testing.subject import TOLERANCES, Subject


@check(6, (*PLAIN, *SHAPED))
def arrays_leave(subject: Subject) -> None:
    """What leaves the adapter is one array per leaf, of its shape, that the border makes NumPy's."""
    point, adapter = subject.point(40), subject.adapter()
    weights = adapter.layout.cut(point.params)
    leaves = subject.leaves(adapter, point, subject.differentiable(point.inputs))
    outputs, residuals = forward(adapter, point, leaves)
    arrays = views(adapter, outputs)
    assert len(arrays) == len(point.cotangents), (
        f"expected {len(point.cotangents)} outputs, got {len(arrays)}"
    )
    adapter.zero(residuals)
    gradients = adapter.backward(residuals, [np.ones(y.shape) for y in arrays], leaves)
    assert len(gradients) == len(leaves), (
        f"expected {len(leaves)} gradients, for {leaves}, got {len(gradients)}"
    )
    shapes = [np.shape([*weights, *point.inputs][leaf]) for leaf in leaves]
    pulled = [adapter.border.view(g) for g in gradients]
    for what, array, shape in [
        *((f"output {i}", y, v.shape) for i, (y, v) in enumerate(zip(arrays, point.cotangents))),
        *((f"gradient of leaf {leaf}", g, s) for leaf, g, s in zip(leaves, pulled, shapes)),
    ]:
        assert type(array) is np.ndarray, (
            f"the border made a {type(array).__name__} of the {what}, no numpy.ndarray"
        )
        assert array.dtype.kind == "f", f"the {what} must be floating, got dtype {array.dtype}"
        assert array.dtype.isnative, f"the {what} must have native byte order, got dtype {array.dtype}"
        assert array.shape == shape, f"the {what} must have shape {shape}, got {array.shape}"


@check(6, ("mlp", "energy", "outputs"))
def host_dtype(subject: Subject) -> None:
    """Outputs and gradients come back in the host's dtype, whichever the guest computes in."""
    for guest in subject.under_test.dtypes:
        adapter = subject.adapter(guest)
        for host in ("float64", "float32"):
            point = _as(host, subject.point(41))
            flight = subject.start(point, adapter=adapter, dtype=host)
            gradients = flight.pull()
            for array in (*flight.outputs, *gradients.values()):
                assert array.dtype == host, f"expected {host} from a guest in {guest}, got {array.dtype}"
            tolerance = max(TOLERANCES[guest], TOLERANCES[host])
            when = f"of a {guest} guest in a {host} host"
            expect_outputs(flight.outputs, subject.outputs_at(point), tolerance, when)
            expect_gradients(gradients, subject.gradients_at(point), tolerance, when)


@check(6, ("mlp", "energy", "outputs"))
def float32_inputs_are_exact(subject: Subject) -> None:
    """A guest that computes in float64 takes float32 inputs at their exact value and loses nothing."""
    point = subject.point(42)
    point = replace(point, inputs=tuple(x.astype(np.float32) for x in point.inputs))
    wide = replace(point, inputs=tuple(x.astype(np.float64) for x in point.inputs))
    flight = subject.start(point)
    expect_outputs(flight.outputs, subject.outputs_at(wide), subject.tolerance, "of float32 inputs")
    expect_gradients(flight.pull(), subject.gradients_at(wide), subject.tolerance, "at float32 inputs")


@check(6, ("mlp", "embedding", "energy", "outputs"))
def memory_layouts(subject: Subject) -> None:
    """Fortran order, negative and wide strides, and foreign byte order change no number."""
    point = subject.point(43)
    outputs, gradients = subject.outputs_at(point), subject.gradients_at(point)
    for name, lay in _LAYOUTS.items():
        laid = ScenarioPoint(
            lay(point.params), tuple(map(lay, point.inputs)), tuple(lay(v) for v in point.cotangents)
        )
        flight = subject.start(laid)
        expect_outputs(flight.outputs, outputs, subject.tolerance, f"with {name}")
        expect_gradients(flight.pull(), gradients, subject.tolerance, f"with {name}")


@check(6, ("mlp", "outputs", "tied"))
def broadcast_cotangents(subject: Subject) -> None:
    """A cotangent that is one number seen everywhere, with strides of zero, is pulled back as its full array."""
    point = subject.point(44)
    wide = tuple(np.broadcast_to(np.array(0.5), v.shape) for v in point.cotangents)
    full = replace(point, cotangents=tuple(np.full(v.shape, 0.5) for v in wide))
    got = subject.start(point).pull(wide)
    expect_gradients(got, subject.gradients_at(full), subject.tolerance, "of a broadcast cotangent")


@check(6, (*PLAIN, *SHAPED))
def zero_rows(subject: Subject) -> None:
    """No rows are not an error: outputs without rows, and gradients that are sums over nothing."""
    point = subject.point(45, rows=0)
    flight = subject.start(point)
    expect_outputs(flight.outputs, subject.outputs_at(point), subject.tolerance, "of zero rows")
    expect_gradients(flight.pull(), subject.gradients_at(point), subject.tolerance, "of zero rows")
    asked = subject.ask_adapter(point)
    expect_gradients(asked, subject.gradients_at(point), subject.tolerance, "of zero rows, of the adapter")


@check(6, ("energy",))
def zero_dimensions(subject: Subject) -> None:
    """0-d arrays go in and come out as 0-d arrays."""
    point = subject.point(46)
    point = replace(point, inputs=(np.array(1.25), np.array(-0.3)))
    flight = subject.start(point)
    expect_outputs(flight.outputs, subject.outputs_at(point), subject.tolerance, "of 0-d inputs")
    expect_gradients(flight.pull(), subject.gradients_at(point), subject.tolerance, "of 0-d inputs")


@check(6, ("embedding",))
def integers_untouched(subject: Subject) -> None:
    """Integer inputs keep their meaning in every width that indices come in."""
    point = subject.point(47)
    for dtype in (np.int64, np.int32):
        indices = replace(point, inputs=(point.inputs[0].astype(dtype),))
        flight = subject.start(indices)
        when = f"of {np.dtype(dtype)} inputs"
        expect_outputs(flight.outputs, subject.outputs_at(point), subject.tolerance, when)
        expect_gradients(flight.pull(), subject.gradients_at(point), subject.tolerance, when)
        expect_close(indices.inputs[0], point.inputs[0], "the indices afterwards", 0.0)


def _as(dtype: str, point: ScenarioPoint) -> ScenarioPoint:
    inputs = tuple(x.astype(dtype) if x.dtype.kind == "f" else x for x in point.inputs)
    return ScenarioPoint(point.params.astype(dtype), inputs, tuple(v.astype(dtype) for v in point.cotangents))


def _backwards(array: Array) -> Array:
    flipped = tuple(slice(None, None, -1) for _ in array.shape)
    return array[flipped].copy()[flipped]


def _spread(array: Array) -> Array:
    return np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array


def _foreign(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder("S"))


_LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "Fortran order": lambda array: np.array(array, order="F"),
    "negative strides": _backwards,
    "wide strides": _spread,
    "foreign byte order": _foreign,
}
