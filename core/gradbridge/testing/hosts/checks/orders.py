"""Law 7 for derivatives of derivatives: right, or refused with the reason; never zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge.bridge import Bridge
from gradbridge.errors import NOT_OFFERED
from gradbridge.protocol import Adapter, GuestOptions
from gradbridge.testing import derivatives
from gradbridge.testing.backend import NotOfferedError
from gradbridge.testing.compare import expect_close, expect_outputs
from gradbridge.testing.hosts.cell import TOLERANCES, HostCell
from gradbridge.testing.hosts.checks.catalogue import SMOOTH, check, refusal_in
from gradbridge.testing.hosts.under_test import Function
from gradbridge.testing.paper import ReferenceAdapter


@check(7, SMOOTH, "second order")
def host_second_order(cell: HostCell) -> None:
    """The gradient of Σ u ∇f is the Hessian times u, of params and inputs together."""
    point = cell.point(210)
    u, arrays = cell.directions(point, 211), cell.arrays(point)
    product = cell.product(cell.scalar(point), u)
    got = cell.host.gradient(product, tuple(range(len(arrays))))(*arrays)
    cell.expect(got, cell.second(point, u), 2, "of Σ u ∇f")


@check(7, (*SMOOTH, "outputs", "unused"), "second order")
def host_pullback_of_a_pullback(cell: HostCell) -> None:
    """A pullback within a pullback is pulled back to the arguments and to its cotangents: H u, and J u."""
    host, point = cell.host, cell.point(212)
    u, arrays, cotangents = cell.directions(point, 213), cell.arrays(point), cell.cotangents(point)
    count = len(arrays)

    def gradients(*every: Any) -> tuple[Any, ...]:
        _, pull = host.vjp(cell.floating(point), every[:count])
        return tuple(pull(every[count:]))

    outputs, pull = host.vjp(gradients, [*arrays, *cotangents])
    cell.expect(outputs, cell.gradients_at(point), 1, "in a program that is differentiated")
    got = pull([host.array(direction) for direction in u])
    cell.expect(got[:count], cell.second(point, u), 2, "of a pullback")
    moved = [np.asarray(t) for t in cell.moved(point, u)]
    expect_outputs(
        cell.numpy(got[count:]),
        [moved[i] for i in cell.floating_outputs(point)],
        TOLERANCES[2],
        "as J u",
    )


@check(7, SMOOTH, "Hessian")
def host_hessian(cell: HostCell) -> None:
    """The host's own Hessian, by the first argument, is the closed form's."""
    point = cell.point(214)
    arrays = cell.arrays(point)
    shape = np.shape(point.arguments[0])
    scalar = cell.scalar(point)
    if len(shape) > 1:
        _expect_hessian_of_energy(cell)
        return
    got = cell.numpy([cell.host.hessian(lambda first: scalar(first, *arrays[1:]))(arrays[0])])[0]
    expect_close(got, _hessian(cell, point), "the Hessian by the params", TOLERANCES[2])


def _expect_hessian_of_energy(cell: HostCell) -> None:
    """Its inputs may have one axis, as a Hessian is of."""
    host, point = cell.host, cell.point(214)
    x, y = (np.ravel(a) for a in point.inputs)
    vectors = [host.array(x), host.array(y)]
    got = host.hessian(lambda first: cell.function(first, vectors[1]))(vectors[0])
    expect_close(cell.numpy([got])[0], np.diag(2 * y), "the Hessian of Σ x² y by x", TOLERANCES[2])


def _hessian(cell: HostCell, point: Any) -> Any:
    """Of Σ c y by the first argument, by the complex step."""
    arguments = [*point.arguments, *point.cotangents]
    units = np.eye(arguments[0].size)
    columns = []
    for unit in units:
        tangents = [unit, *(np.zeros(np.shape(a)) for a in arguments[1:])]
        columns.append(derivatives.pushforward(cell.gradient_function(), arguments, tangents)[0])
    return np.stack(columns, 1)


@check(7, SMOOTH, "third order")
def host_third_order(cell: HostCell) -> None:
    """The gradient of Σ w H u is the third derivative along u and w, of params and inputs together."""
    point = cell.point(215)
    u, w, arrays = cell.directions(point, 216), cell.directions(point, 217), cell.arrays(point)
    product = cell.product(cell.product(cell.scalar(point), u), w)
    got = cell.host.gradient(product, tuple(range(len(arrays))))(*arrays)
    cell.expect(got, cell.third(point, u, w), 3, "of Σ w H u")


@check(1, (*SMOOTH, "outputs", "unused"), "forward mode")
def host_tangents(cell: HostCell) -> None:
    """Forward mode gives the outputs and J t, where params and inputs move together and each alone."""
    host, point = cell.host, cell.point(218)
    every, arrays = cell.directions(point, 219), cell.arrays(point)
    for only in (None, *range(len(every))):
        t = [d if only in (None, i) else np.zeros_like(d) for i, d in enumerate(every)]
        outputs, tangents = host.jvp(cell.floating(point), arrays, [host.array(d) for d in t])
        cell.expect_outputs(outputs, point, "of forward mode")
        moved = cell.moved(point, t)
        expected = [moved[i] for i in cell.floating_outputs(point)]
        when = "of all arguments" if only is None else f"of argument {only} alone"
        expect_outputs(cell.numpy(tangents), expected, TOLERANCES[1], f"as moved by the tangents {when}")


@check(7, SMOOTH, "forward over reverse")
def host_forward_over_reverse(cell: HostCell) -> None:
    """Forward mode of a gradient is the Hessian times the tangents."""
    host, point = cell.host, cell.point(220)
    u, arrays = cell.directions(point, 221), cell.arrays(point)
    gradient = host.gradient(cell.scalar(point), tuple(range(len(arrays))))
    outputs, tangents = host.jvp(gradient, arrays, [host.array(d) for d in u])
    cell.expect(outputs, cell.gradients_at(point), 1, "within forward mode")
    cell.expect(tangents, cell.second(point, u), 2, "as the tangents of a gradient")


@check(7, SMOOTH, "reverse over forward")
def host_reverse_over_forward(cell: HostCell) -> None:
    """The gradient of ⟨c, J u⟩, of what forward mode gives, is the Hessian of ⟨c, f⟩ times u."""
    host, point = cell.host, cell.point(222)
    u, arrays, cotangents = cell.directions(point, 223), cell.arrays(point), cell.cotangents(point)
    own = [host.array(d) for d in u]

    def moved(*every: Any) -> Any:
        return cell.dot(host.jvp(cell.floating(point), every, own)[1], cotangents)

    got = host.gradient(moved, tuple(range(len(arrays))))(*arrays)
    cell.expect(got, cell.second(point, u), 2, "of ⟨c, J u⟩")


class _FirstOrder(ReferenceAdapter):
    """Has first derivatives only, and says so."""

    def pullback(self, spec: Any, wrt: tuple[int, ...], residuals: Any = None) -> Adapter:
        return Adapter.pullback(self, spec, wrt, residuals)


@check(7, ("mlp",), on_paper=True)
def host_missing_order_is_refused(cell: HostCell) -> None:
    """Where a guest has no second order the host raises HigherOrderError with the guest's reason; no zeros."""
    first, gradient, arrays = _of_first_order(cell)
    _, pull = cell.host.vjp(first.floating(first.point(224)), arrays)
    first.expect_pulled(pull, first.point(224), "of a guest of first order")
    _expect_refused(first, gradient, arrays, "the gradient of a gradient")


@check(7, ("mlp",), on_paper=True)
def host_missing_order_is_refused_compiled(cell: HostCell) -> None:
    """A compiled program that asks for a second order that is missing says our sentence, perhaps within its own."""
    first, gradient, arrays = _of_first_order(cell)
    _expect_refused(first, cell.host.compiled(gradient), arrays, "the compiled gradient of a gradient")


def _of_first_order(cell: HostCell) -> tuple[HostCell, Function, list[Any]]:
    """(a cell whose guest has no second order, the gradient of a gradient in it, arguments for it)."""
    subject = cell.subject
    native = subject.build(subject.initial())
    adapter = _FirstOrder(native.model, GuestOptions(None, None, None, "eval", {}))
    first = cell.with_function(Bridge(adapter, follows=True, registry=cell.host.registry))
    point = first.point(224)
    arrays = first.arrays(point)
    product = first.product(first.scalar(point), first.directions(point, 225))
    return first, cell.host.gradient(product, tuple(range(len(arrays)))), arrays


def _expect_refused(cell: HostCell, function: Function, arrays: Sequence[Any], what: str) -> None:
    try:
        got = cell.numpy(function(*arrays))
    except NotOfferedError:
        raise
    except Exception as error:
        said = refusal_in(error) or ""
        if _SENTENCE not in said and "HigherOrderError" not in said:
            raise AssertionError(
                f"{what}, which the guest has not: expected HigherOrderError with the guest's reason, got "
                f"{type(error).__name__}: {error}"
            ) from error
        return
    raise AssertionError(f"{what}, which the guest has not: expected HigherOrderError, got {got}")


_SENTENCE = NOT_OFFERED["pullback"]
