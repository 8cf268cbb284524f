"""PyTorch as a host: memory, what changes in place, what is refused, how often the guest runs."""

import gc
import weakref

import pytest

torch = pytest.importorskip("torch")

from threads import at_once  # noqa: E402
from torch_programs import INPUTS, X3, Net, assert_same, bridge_over, called_once, native, vector  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import (  # noqa: E402
    HostError,
    NotDifferentiableError,
)

P, X = vector(), INPUTS
T = torch.cos(torch.arange(13.0, dtype=torch.float64))


@pytest.fixture(scope="module")
def f():
    return bridge_over("autograd", dtype="float64")


def tracked():
    return P.clone().requires_grad_(), X.clone().requires_grad_()


# -- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [lambda t: t.add_(1.0), lambda t: t.data.add_(1.0)], ids=["in place", "data"]
)
def test_operands_may_change_before_a_first_backward(f, change):
    p, x = tracked()
    expected = torch.autograd.grad((native(p, x) ** 2).sum(), (p, x))
    loss = (f(p, x) ** 2).sum()
    with torch.no_grad():
        change(p), change(x)
    assert_same(torch.autograd.grad(loss, (p, x)), expected)


@pytest.mark.parametrize("when", ["before a gradient that is recorded", "before its own backward"])
def test_operands_that_change_before_a_second_backward_are_torchs_error(f, when):
    p, x = tracked()
    loss = (f(p, x) ** 2).sum()
    if when == "before its own backward":
        (g,) = torch.autograd.grad(loss, p, create_graph=True)
    with torch.no_grad():
        x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        if when == "before its own backward":
            torch.autograd.grad(g.sum(), p)
        else:
            torch.autograd.grad(loss, p, create_graph=True)


def test_second_derivatives_follow_what_hooks_have_saved_and_not_what_the_operands_became(f):
    def second(function, changes):
        p, x = tracked()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            (g,) = torch.autograd.grad((function(p, x) ** 2).sum(), p, create_graph=True)
        if changes:
            with torch.no_grad():
                p.add_(1.0), x.add_(1.0)
        return torch.autograd.grad((g * T).sum(), (p, x))

    assert_same(second(f, True), second(native, False), 1e-10)


def test_outputs_and_gradients_belong_to_the_caller(f):
    p, x = tracked()
    y = f(p, x)
    expected = torch.autograd.grad(native(p, x).sum(), (p, x))
    with torch.no_grad():
        y.zero_()
    ones = torch.ones_like(y)
    first = torch.autograd.grad(y, (p, x), ones, retain_graph=True)
    assert_same(first, expected)
    for g in first:
        g.fill_(7.0)
    assert_same(torch.autograd.grad(y, (p, x), ones), expected)


def test_what_is_the_same_number_has_memory_of_its_own():
    both = gb.primitive(backend="autograd")(lambda a, b: (a + b, a))
    a, b = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    total, same = both(a, b)
    cotangent = torch.ones(3)
    total.backward(cotangent)
    a.grad.mul_(5.0)
    assert b.grad.tolist() == cotangent.tolist() == [1.0, 1.0, 1.0]
    with torch.no_grad():
        same.add_(1.0)
    assert a.tolist() == [0.0, 0.0, 0.0]


def test_a_graph_that_torch_has_freed_holds_nothing_of_the_call_and_says_so(f):
    p, _ = tracked()
    y = f(p, X)
    record = weakref.ref(y.grad_fn.record())
    y.sum().backward()
    gc.collect()
    assert record() is None
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_calls_in_flight_do_not_see_each_other(f):
    p, q = tracked()[0], (2 * P).requires_grad_()
    first, second = f(p, X), f(q, X + 1)
    (h,) = torch.autograd.grad((second**2).sum(), q)
    (g,) = torch.autograd.grad((first**2).sum(), p)
    assert_same(g, torch.autograd.grad((native(p, X) ** 2).sum(), p))
    assert_same(h, torch.autograd.grad((native(q, X + 1) ** 2).sum(), q))


def tanh_of_a_layer(p, x):
    return torch.tanh(x @ p[:6].view(2, 3).T + p[6:])


GUESTS = {
    "another system's": lambda: (bridge_over("autograd", dtype="float64"), native, X),
    "torch's own": lambda: (called_once(Net(lambda m, x: torch.tanh(m.layer(x)))), tanh_of_a_layer, X3),
}


@pytest.mark.parametrize("guest", GUESTS)
def test_six_threads_do_not_see_each_others_calls(guest):
    f, plain, inputs = GUESTS[guest]()
    wrong = []

    def work(seed):
        for turn in range(15):
            p = (torch.tensor(f.params) * (1 + seed / 10)).requires_grad_()
            x = (inputs + seed).requires_grad_()
            found = torch.autograd.grad((f(p, x) ** 2).sum(), (p, x))
            expected = torch.autograd.grad((plain(p, x) ** 2).sum(), (p, x))
            wrong.extend((seed, turn) for a, b in zip(found, expected) if not torch.allclose(a, b, 1e-12))

    at_once(work, 6)
    assert not wrong


# -- how often the guest runs ------------------------------------------------------------------


def test_a_gradient_costs_one_forward_and_so_does_a_hessian_vector_product():
    f = gb.bridge(gb.build("mlp", sizes=[2, 3, 1], backend="numpy", seed=0))
    p = torch.tensor(f.params, requires_grad=True)
    torch.autograd.grad((f(p, X) ** 2).sum(), p)
    with gb.trace() as t:
        (g,) = torch.autograd.grad((f(p, X) ** 2).sum(), p)
    assert t.counts == {"update": 1, "forward": 1, "zero": 1, "backward": 1}
    with gb.trace() as t:
        (g,) = torch.autograd.grad((f(p, X) ** 2).sum(), p, create_graph=True)
        torch.autograd.grad(g.sum(), p)
    assert t.counts["forward"] == 1


def test_the_jacobian_of_many_outputs_is_one_backward_where_the_guest_can():
    pytest.importorskip("jax")
    f = bridge_over("jax", dtype="float64")
    torch.func.jacrev(f)(P, X)
    with gb.trace() as t:
        torch.func.jacrev(f)(P, X)
    assert t.counts["forward"] == t.counts["backward"] == 1


def test_nothing_is_recorded_where_nobody_differentiates(f):
    p, _ = tracked()
    with torch.no_grad():
        assert not f(p, X).requires_grad
    with torch.inference_mode():
        assert_same(f(P, X).clone(), native(P, X))
    assert not f(P, X).requires_grad


# -- who calls, and what is refused ------------------------------------------------------------


def test_a_host_that_is_named_takes_arrays_of_numpy_and_gives_tensors():
    f = bridge_over("autograd", host="torch", dtype="float64")
    assert isinstance(f.params, torch.Tensor)
    assert_same(f(f.params.numpy(), X.numpy()), native(P, X))


def test_params_of_numpy_serve_a_program_of_torch(f):
    x = X.clone().requires_grad_()
    assert_same(torch.autograd.grad(f(P.numpy(), x).sum(), x), torch.autograd.grad(native(P, x).sum(), x))


def test_jacobians_and_products_at_plain_tensors_are_tensors(f):
    assert_same(f.jacobian(P, X), torch.func.jacrev(native)(P, X))
    cotangent = torch.ones(4, 1, dtype=torch.float64)
    assert_same(f.vjp(P, X, cotangent=cotangent), torch.func.vjp(native, P, X)[1](cotangent)[0])
    assert_same(f.jvp(P, X, tangent=T), torch.func.jvp(lambda p: native(p, X), (P,), (T,))[1])
    assert isinstance(f.ggn(P, X, vector=T), torch.Tensor)


@pytest.mark.parametrize(
    "asks",
    [
        lambda f: f.jacobian(P.clone().requires_grad_(), X),
        lambda f: torch.func.grad(lambda p: f.jacobian(p, X).sum())(P),
        lambda f: torch.func.vmap(lambda p: f.jacobian(p, X))(torch.stack([P, P])),
    ],
    ids=["tracked", "within grad", "within vmap"],
)
def test_jacobians_within_a_graph_are_refused_with_the_way_to_go(f, asks):
    with pytest.raises(NotDifferentiableError, match="call the bridge itself"):
        asks(f)


def test_inputs_that_are_declared_constant_have_no_influence_in_any_mode():
    f = bridge_over("autograd", nondiff=1, dtype="float64")
    p, x = tracked()
    assert torch.autograd.grad(f(p, x).sum(), (p, x), allow_unused=True)[1] is None
    assert not torch.func.grad(lambda x: f(P, x).sum())(X).any()
    assert not torch.func.jvp(lambda x: f(P, x), (X,), (X,))[1].any()


def test_a_recording_that_would_keep_numbers_is_refused(f):
    with pytest.raises(HostError, match=r"use torch\.compile"):
        torch.jit.trace(lambda p: f(p, X), (P,))


def test_two_systems_that_differentiate_one_call_are_named(f):
    jax = pytest.importorskip("jax")
    p, _ = tracked()
    with pytest.raises(HostError, match=r"torch .* and jax"):
        jax.grad(lambda x: f(p, x).sum())(jax.numpy.ones((4, 2)))


def test_a_map_over_no_rows_is_refused(f):
    with pytest.raises(HostError, match="an axis of length 0"):
        torch.func.vmap(f, (None, 0))(P, torch.empty(0, 4, 2, dtype=torch.float64))
