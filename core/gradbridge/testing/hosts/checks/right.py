"""Laws 1, 2 and 5: values and gradients are right, the same when asked again, and touch nothing of the user's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gradbridge import trees
from gradbridge.borders import is_inexact
from gradbridge.testing.compare import expect_outputs, expect_same
from gradbridge.testing.hosts.cell import TOLERANCES, HostCell
from gradbridge.testing.hosts.checks.catalogue import PLAIN, SMOOTH, check


@check(1, (*PLAIN, "labels"))
def host_value(cell: HostCell) -> None:
    """A call that nobody differentiates gives the closed form's outputs, in its tree, as arrays of the host."""
    point = cell.point(200)
    leaves, structure = trees.flatten(cell.function(*cell.arguments(point, cell.arrays(point))))
    expected = trees.flatten(cell.value_at(point))[1]
    assert structure == expected, f"expected outputs in the structure {expected}, got {structure}"
    for index, leaf in enumerate(leaves):
        assert cell.is_own(leaf), f"output {index}: expected an array of {cell.host.name}, got {type(leaf)}"
    got, right = cell.numpy(leaves), cell.outputs_at(point)
    for index, (y, like) in enumerate(zip(got, right)):
        assert is_inexact(y) == is_inexact(like), f"output {index}: expected {like.dtype}, got {y.dtype}"
    expect_outputs(got, right, TOLERANCES[0])


@check(1, (*PLAIN, "labels"))
def host_gradients(cell: HostCell) -> None:
    """One pullback gives the closed-form gradients of params and inputs together; integers beside are constants."""
    point = cell.point(201)
    outputs, pull = cell.host.vjp(cell.floating(point), cell.arrays(point))
    cell.expect_outputs(outputs, point)
    cell.expect_pulled(pull, point)


@check(1, SMOOTH)
def host_chain_rule(cell: HostCell) -> None:
    """A program goes on before the bridge and after it: the gradient of Σ c sin(f(sin a)) is right."""
    host, point = cell.host, cell.point(202)
    inner, cotangents = cell.floating(point), cell.cotangents(point)

    def program(*arrays: object) -> object:
        outputs = inner(*[host.sin(a) for a in arrays])
        return cell.dot([host.sin(y) for y in outputs], cotangents)

    arrays = cell.arrays(point)
    got = host.gradient(program, tuple(range(len(arrays))))(*arrays)
    own = [np.asarray(point.arguments[i]) for i in cell.wrt(point)]
    moved = cell.at(point, [np.sin(a) for a in own])
    weights = tuple(c * np.cos(y) for c, y in zip(point.cotangents, cell.outputs_at(moved)))
    expected = cell.gradients_at(replace(moved, cotangents=weights))
    slopes = cell.gradients(list(expected), [g * np.cos(a) for g, a in zip(expected.values(), own)])
    cell.expect(got, slopes, 1, "through a program on both sides")


@check(1, ("labels",))
def host_integers_are_constants(cell: HostCell) -> None:
    """What is computed with an integer output counts it as a constant: Σ k y has the gradient k ∂y, of integers k."""
    host, point = cell.host, cell.point(203)

    def program(*arrays: object) -> object:
        values, labels = cell.function(*cell.arguments(point, arrays))
        return host.sum(host.multiply(host.sum(values), host.sum(labels)))

    arrays = cell.arrays(point)
    got = host.gradient(program, tuple(range(len(arrays))))(*arrays)
    values, labels = cell.outputs_at(point)
    weights = np.full(values.shape, float(labels.sum())), np.zeros(labels.shape)
    cell.expect(got, cell.gradients_at(replace(point, cotangents=weights)), 1, "of Σ k y")


@check(1, ("wave",), "complex")
def host_complex_numbers(cell: HostCell) -> None:
    """Complex outputs and inputs are pulled back by the host's own convention; gradients of real ones stay real."""
    host, point = cell.host, cell.point(204)
    outputs, pull = host.vjp(cell.floating(point), cell.arrays(point))
    cell.expect_outputs(outputs, point)
    cotangents = [np.conj(c) for c in point.cotangents] if host.conjugates else point.cotangents
    got = pull([host.array(np.array(c)) for c in cotangents])
    expected = cell.gradients_at(point)
    if host.conjugates:
        expected = cell.gradients(list(expected), [np.conj(g) for g in expected.values()])
    cell.expect(got, expected, 1)


@check(1, ("mlp",))
def host_takes_numpy(cell: HostCell) -> None:
    """An input that is NumPy's, and read-only, is a constant of the program, and stays as it was."""
    host, point, _ = cell.host, cell.point(205), cell.bridge
    before = [x.copy() for x in point.inputs]
    for x in point.inputs:
        x.flags.writeable = False
    outputs, pull = host.vjp(lambda p: (cell.function(p, *point.inputs),), [host.array(point.params)])
    cell.expect_outputs(outputs, point, "with an input of NumPy")
    expected = cell.gradients_at(point)
    cell.expect(
        pull(cell.cotangents(point)), cell.gradients((0,), [expected[0]]), 1, "with an input of NumPy"
    )
    for now, then in zip(point.inputs, before):
        expect_same(now, then, "an input of NumPy after forward and backward")


@check(2)
def host_pulled_twice(cell: HostCell) -> None:
    """Pulling back twice gives the same, for other cotangents as well; nothing accumulates, nothing is used up."""
    one = cell.point(206)
    other = cell.with_cotangents(one, 207)
    _, pull = cell.host.vjp(cell.floating(one), cell.arrays(one))
    for point, when in ((one, "once"), (one, "the second time"), (other, "with other cotangents")):
        cell.expect_pulled(pull, point, f"pulled back {when}")


@check(5, ("mlp", "embedding", "energy"))
def host_arrays_intact(cell: HostCell) -> None:
    """Arrays of the user are as they were after a gradient: arguments, constants and cotangents."""
    host, point = cell.host, cell.point(208)
    arrays, cotangents = cell.arrays(point), cell.cotangents(point)
    before = [a.copy() for a in cell.numpy([*arrays, *cotangents])]
    _, pull = host.vjp(cell.floating(point), arrays)
    pull(cotangents)
    for now, then in zip(cell.numpy([*arrays, *cotangents]), before):
        expect_same(now, then, f"an array of {host.name} after forward and backward")


@check(7, ("unused", "embedding"))
def host_no_influence(cell: HostCell) -> None:
    """What has no influence gets zeros, exactly, in its own shape; it is neither None nor an error."""
    point = cell.point(209)
    _, pull = cell.host.vjp(cell.floating(point), cell.arrays(point))
    expected = cell.gradients_at(point)
    got = cell.numpy(pull(cell.cotangents(point)))
    for argument, gradient in zip(expected, got, strict=True):
        zeros = expected[argument] == 0
        assert is_inexact(gradient), f"expected an array for {expected.name(argument)}, got {gradient!r}"
        assert gradient.shape == zeros.shape, (
            f"expected shape {zeros.shape} for {expected.name(argument)}, got {gradient.shape}"
        )
        assert not np.any(gradient[zeros]), (
            f"expected zeros in {expected.name(argument)}, got {gradient[zeros]}"
        )
