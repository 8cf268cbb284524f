"""Programs of torch differentiate through a guest of another framework, and of torch, as through torch itself."""

import functools

import pytest

torch = pytest.importorskip("torch")

import torch.autograd.forward_ad as forward_ad  # noqa: E402
from torch.autograd.functional import hessian as tape_hessian  # noqa: E402
from torch.autograd.functional import hvp, jacobian, vhp  # noqa: E402
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_programs import INPUTS, assert_same, bridge_over, native, vector  # noqa: E402

P, X = vector(), INPUTS
T = torch.cos(torch.arange(13.0, dtype=torch.float64))
PS, XS = torch.stack([P, 2 * P, -P]), torch.stack([X, X + 1])
UNITS = torch.eye(4, dtype=torch.float64).reshape(4, 4, 1)


@functools.cache
def bridge_of(guest):
    if guest == "jax":
        pytest.importorskip("jax")
    return bridge_over(guest, dtype="float64")


def loss_of(f):
    return lambda p, x: (torch.sin(f(p, x)) ** 2).sum()


def tracked():
    return P.clone().requires_grad_(), X.clone().requires_grad_()


def backward(f):
    p, x = tracked()
    loss_of(f)(p, x).backward()
    return p.grad, x.grad


def by_inputs_alone(f):
    x = X.clone().requires_grad_()
    return torch.autograd.grad(loss_of(f)(P, x), x)


def second_order_by_params_and_inputs(f):
    p, x = tracked()
    gradients = torch.autograd.grad(loss_of(f)(p, x), (p, x), create_graph=True)
    return torch.autograd.grad(sum((g**2).sum() for g in gradients), (p, x))


def tape_to_third_order(f):
    p, _ = tracked()
    found = []
    value = loss_of(f)(p, X)
    for _ in range(3):
        (g,) = torch.autograd.grad(value, p, create_graph=True)
        found.append(g)
        value = (g * T).sum()
    return found


def dual_numbers(f):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(loss_of(f)(forward_ad.make_dual(P, T), X)).tangent


def dual_numbers_over_the_tape(f):
    p, _ = tracked()
    with forward_ad.dual_level():
        (g,) = torch.autograd.grad(loss_of(f)(forward_ad.make_dual(p, T), X), p)
        return forward_ad.unpack_dual(g).tangent


def tape_over_dual_numbers(f):
    p, _ = tracked()
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(loss_of(f)(forward_ad.make_dual(p, T), X)).tangent
        return torch.autograd.grad(tangent, p)


def within_a_checkpoint(f, reentrant):
    p, _ = tracked()
    checkpoint(loss_of(f), p, X, use_reentrant=reentrant).backward()
    return p.grad


def second_order_with_what_is_saved_on_the_cpu(f):
    p, _ = tracked()
    with torch.autograd.graph.save_on_cpu():
        y = loss_of(f)(p, X)
        (g,) = torch.autograd.grad(y, p, create_graph=True)
    return torch.autograd.grad((g * T).sum(), p)


def batched_cotangents(f):
    p, _ = tracked()
    y = f(p, X)
    return torch.autograd.grad(y, p, UNITS, is_grads_batched=True)


def batched_cotangents_differentiated(f):
    p, _ = tracked()
    (rows,) = torch.autograd.grad(f(p, X), p, UNITS, is_grads_batched=True, create_graph=True)
    return torch.autograd.grad((rows**2).sum(), p)


def map_over_the_tape(f):
    p, _ = tracked()
    y = f(p, X)
    return vmap(lambda c: torch.autograd.grad(y, p, c, retain_graph=True)[0])(UNITS)


def vectorized_jacobian_differentiated(f):
    p, _ = tracked()
    rows = jacobian(lambda q: f(q, X), p, vectorize=True, create_graph=True)
    return torch.autograd.grad((rows**2).sum(), p)


def tape_over_a_map(f):
    p, _ = tracked()
    return torch.autograd.grad((vmap(f, (None, 0))(p, XS) ** 2).sum(), p)


FIRST = {
    "value": lambda f: f(P, X),
    "backward": backward,
    "by inputs alone": by_inputs_alone,
    "grad": lambda f: grad(loss_of(f))(P, X),
    "grad by inputs": lambda f: grad(loss_of(f), 1)(P, X),
    "vjp": lambda f: vjp(f, P, X)[1](torch.ones(4, 1, dtype=torch.float64)),
    "jvp": lambda f: jvp(lambda p: f(p, X), (P,), (T,)),
    "jvp by both": lambda f: jvp(f, (P, X), (T, X + 1)),
    "jacrev": lambda f: jacrev(f)(P, X),
    "jacfwd": lambda f: jacfwd(f, (0, 1))(P, X),
    "dual numbers": dual_numbers,
    "map over params": lambda f: vmap(f, (0, None))(PS, X),
    "map over inputs": lambda f: vmap(f, (None, 0))(P, XS),
    "map of a map": lambda f: vmap(vmap(f, (None, 0)), (0, None))(PS, XS),
    "map over another axis": lambda f: vmap(f, (1, None), 1)(PS.T, X),
    "per-example gradients": lambda f: vmap(grad(loss_of(f)), (None, 0))(P, X[:, None]),
    "map of a map of gradients": lambda f: vmap(vmap(grad(loss_of(f)), (None, 0)), (0, None))(PS, XS),
    "map of Jacobians": lambda f: vmap(jacrev(f), (None, 0))(P, XS),
    "gradient of a map": lambda f: grad(lambda p: (vmap(f, (None, 0))(p, XS) ** 2).sum())(P),
    "tape over a map": tape_over_a_map,
    "map over the tape": map_over_the_tape,
    "batched cotangents": batched_cotangents,
    "vectorized Jacobian": lambda f: jacobian(lambda p: f(p, X), P, vectorize=True),
    "vectorized Jacobian, forward": lambda f: jacobian(
        lambda p: f(p, X), P, vectorize=True, strategy="forward-mode"
    ),
    "checkpoint": lambda f: within_a_checkpoint(f, False),
    "checkpoint, re-entrant": lambda f: within_a_checkpoint(f, True),
}
SECOND = {
    "tape by params and inputs": second_order_by_params_and_inputs,
    "jvp of grad": lambda f: jvp(lambda p: grad(loss_of(f))(p, X), (P,), (T,)),
    "grad of jvp": lambda f: grad(lambda p: jvp(lambda q: loss_of(f)(q, X), (p,), (T,))[1])(P),
    "grad of grad": lambda f: grad(lambda p: (grad(loss_of(f))(p, X) * T).sum())(P),
    "tape over grad": lambda f: torch.autograd.grad(
        (grad(loss_of(f))(q := P.clone().requires_grad_(), X) * T).sum(), q
    ),
    "jvp of jvp": lambda f: jvp(lambda p: jvp(lambda q: loss_of(f)(q, X), (p,), (T,))[1], (P,), (T,)),
    "hessian": lambda f: hessian(loss_of(f))(P, X),
    "hessian of outputs": lambda f: hessian(f)(P, X),
    "jacrev of jacrev": lambda f: jacrev(jacrev(f))(P, X),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(loss_of(f)))(P, X),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(loss_of(f)))(P, X),
    "map of hessians": lambda f: vmap(hessian(loss_of(f)), (0, None))(PS, X),
    "tape's hessian": lambda f: tape_hessian(lambda p: loss_of(f)(p, X), P),
    "tape's hessian, vectorized": lambda f: tape_hessian(lambda p: loss_of(f)(p, X), P, vectorize=True),
    "tape's products": lambda f: (
        *hvp(lambda p: loss_of(f)(p, X), P, T),
        *vhp(lambda p: loss_of(f)(p, X), P, T),
    ),
    "saved on the CPU": second_order_with_what_is_saved_on_the_cpu,
    "batched cotangents, differentiated": batched_cotangents_differentiated,
    "vectorized Jacobian, differentiated": vectorized_jacobian_differentiated,
    "dual numbers over the tape": dual_numbers_over_the_tape,
    "tape over dual numbers": tape_over_dual_numbers,
}
THIRD = {
    "tape": tape_to_third_order,
    "grad of grad of grad": lambda f: grad(
        lambda q: (grad(lambda p: (grad(loss_of(f))(p, X) * T).sum())(q) * T).sum()
    )(P),
    "jvp of jvp of jvp": lambda f: jvp(
        lambda r: jvp(lambda q: jvp(lambda p: loss_of(f)(p, X), (q,), (T,))[1], (r,), (T,))[1], (P,), (T,)
    ),
    "jacfwd of jacrev of jacrev": lambda f: jacfwd(jacrev(jacrev(loss_of(f))))(P, X),
}
PROGRAMS = {**FIRST, **SECOND, **THIRD}
TOLERANCES = {**dict.fromkeys(FIRST, 1e-12), **dict.fromkeys(SECOND, 1e-10), **dict.fromkeys(THIRD, 1e-8)}
GUESTS = ("autograd", "jax", "torch")


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("guest", GUESTS)
def test_a_program_gives_what_it_gives_with_torch_alone(guest, name):
    f = bridge_of(guest)
    assert_same(PROGRAMS[name](f), PROGRAMS[name](native), TOLERANCES[name])


@pytest.mark.parametrize("guest", GUESTS)
def test_torchs_own_checks_of_gradients_pass(guest):
    f, point = bridge_of(guest), tracked()
    more = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(f, point, **more)


@pytest.mark.parametrize("guest", ["autograd", "torch"])
def test_torchs_own_checks_of_second_derivatives_pass(guest):
    f, point = bridge_of(guest), tracked()
    more = {"check_fwd_over_rev": True, "check_rev_over_rev": True, "check_batched_grad": True}
    assert torch.autograd.gradgradcheck(f, point, **more)
