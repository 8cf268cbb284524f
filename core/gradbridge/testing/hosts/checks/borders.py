"""Laws 6 and 9 at the border between host and guest: dtypes, trees, and whose call it is."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.errors import HostError
from gradbridge.lifting.choosing import AUTOGRAD
from gradbridge.testing.backend import NotOfferedError
from gradbridge.testing.compare import expect_close, expect_outputs
from gradbridge.testing.hosts.cell import SINGLE, TOLERANCES, HostCell, single
from gradbridge.testing.hosts.checks.catalogue import SMOOTH, chain_of, check
from gradbridge.testing.hosts.finding import find_host
from gradbridge.testing.hosts.guests import pinned
from gradbridge.testing.hosts.paper import PAPER
from gradbridge.testing.hosts.paper.under_test import PaperHostUnderTest


@check(6, SMOOTH)
def host_float32(cell: HostCell) -> None:
    """A program in float32 gets outputs and gradients in float32, right to its rounding."""
    point = single(cell.point(270))
    outputs, pull = cell.host.vjp(cell.floating(point), cell.arrays(point))
    got = cell.numpy(outputs)
    for y in got:
        assert y.dtype == np.float32, f"expected outputs in float32, got {y.dtype}"
    expect_outputs(got, cell.outputs_at(point), SINGLE, "in float32")
    cell.expect(pull(cell.cotangents(point)), cell.gradients_at(point), 1, "in float32", dtype="float32")


@check(6, SMOOTH, "second order")
def host_float32_second_order(cell: HostCell) -> None:
    """A second derivative in float32 stays float32."""
    point = single(cell.point(271))
    u = [d.astype(np.float32) for d in cell.directions(point, 272)]
    arrays = cell.arrays(point)
    product = cell.product(cell.scalar(point), u)
    got = cell.host.gradient(product, tuple(range(len(arrays))))(*arrays)
    exact = cell.at(cell.point(271), [a.astype(np.float64) for a in cell.numpy(arrays)])
    expected = cell.second(exact, [d.astype(np.float64) for d in u])
    cell.expect(got, expected, 2, "of Σ u ∇f in float32", dtype="float32")


@check(6, ("mlp", "unused", "outputs"))
def host_trees(cell: HostCell) -> None:
    """Params may be the tree of arrays; each of its leaves has its own gradient, as the vector has."""
    host, point, layout = cell.host, cell.point(273), cell.bridge.layout
    names = layout.names
    weights = [host.array(np.array(w)) for w in layout.cut(point.params)]
    inputs = [host.array(x) for x in point.inputs]
    places = cell.floating_outputs(point)

    def function(*arrays: Any) -> tuple[Any, ...]:
        leaves = trees.flatten(cell.function(dict(zip(names, arrays)), *inputs))[0]
        return tuple(leaves[i] for i in places)

    outputs, pull = host.vjp(function, weights)
    cell.expect_outputs(outputs, point, "of params in a tree")
    got = cell.numpy(pull(cell.cotangents(point)))
    for name, gradient, shape in zip(names, got, layout.shapes, strict=True):
        assert gradient.shape == shape, f"gradient of {name}: expected shape {shape}, got {gradient.shape}"
    expect_close(
        layout.join(got), cell.gradients_at(point)[0], "gradient by the leaves of a tree", TOLERANCES[1]
    )


@check(9, ("mlp", "energy"))
def host_named(cell: HostCell) -> None:
    """With ``host=`` named NumPy's arrays are the host's as well, and outputs and `params` are the host's."""
    host, point, bridge = cell.host, cell.point(274), cell.bridge
    function = pinned(cell.built, host.host)
    named = cell.with_function(function)
    leaves = trees.flatten(function(*point.arguments))[0]
    for leaf in leaves:
        assert cell.is_own(leaf), f"expected arrays of {host.name} for NumPy's, got {type(leaf)}"
    expect_outputs(cell.numpy(leaves), cell.outputs_at(point), TOLERANCES[0], "with host= named")
    params = getattr(function, "params", None)
    if params is not None:
        assert cell.is_own(params), f"expected params as an array of {host.name}, got {type(params)}"
        expect_close(cell.numpy([params])[0], bridge.params, "params with host= named", 0.0)
    outputs, pull = host.vjp(named.floating(point), cell.arrays(point))
    cell.expect_outputs(outputs, point, "with host= named")
    cell.expect_pulled(pull, point, "with host= named")


@check(7, ("mlp",))
def host_two_hosts(cell: HostCell) -> None:
    """A call that two systems differentiate is refused, naming both."""
    host, point, bridge = cell.host, cell.point(275), cell.bridge
    other = _other(cell)
    others: list[Any] = []

    def theirs(x: Any) -> tuple[Any, ...]:
        return (bridge(mine[0], x),)

    def ours(p: Any) -> tuple[Any, ...]:
        mine[:] = [p]
        with other.active():
            others[:] = other.vjp(theirs, [other.array(point.inputs[0])])[0]
        raise AssertionError(
            f"a call that {host.name} and {other.name} both differentiate: expected HostError, got {others[0]!r}"
        )

    mine: list[Any] = []
    try:
        host.vjp(ours, [host.array(point.params)])
    except Exception as error:
        if isinstance(error, AssertionError):
            raise
        said = [str(e) for e in chain_of(error) if isinstance(e, HostError)]
        if not said or host.host not in said[0] or other.host not in said[0]:
            raise AssertionError(
                f"a call that two systems differentiate: expected HostError that names {host.host} and "
                f"{other.host}, got {type(error).__name__}: {error}"
            ) from error


def _other(cell: HostCell) -> Any:
    """Another host that is always there."""
    if cell.host.host != PAPER:
        return PaperHostUnderTest(cell.host.registry)
    try:
        return find_host(AUTOGRAD, cell.host.registry)
    except ImportError as error:
        raise NotOfferedError(str(error)) from error
