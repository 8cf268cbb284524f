"""PyTorch as a host: tensors of all kinds, memory, what changes in place, what is refused, how often the guest runs."""

import gc
import threading
import weakref

import autograd.numpy as anp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_programs import INPUTS, assert_same, bridge_over, native, vector  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import (  # noqa: E402
    GradbridgeWarning,
    HigherOrderError,
    HostError,
    InputError,
    MissingVJPError,
    NotDifferentiableError,
)

P, X = vector(), INPUTS
T = torch.cos(torch.arange(13.0, dtype=torch.float64))


@gb.primitive
def sine(x):
    return np.sin(x)


@sine.defvjp
def sine_vjp(ans, x):
    return lambda v: v * np.cos(x)


@sine_vjp.defvjp
def sine_vjp_vjp(gradient, x, v):
    return lambda u: -u * v * np.sin(x)


@gb.primitive(backend="autograd")
def product(z):
    return anp.sin(z) * z


@gb.primitive(backend="autograd")
def several(x, n):
    return {"some": x[n], "order": anp.argsort(x), "sum": anp.sum(x)}


@pytest.fixture(scope="module")
def f():
    return bridge_over("autograd", dtype="float64")


def tracked():
    return P.clone().requires_grad_(), X.clone().requires_grad_()


# -- functions with written rules --------------------------------------------------------------


def test_a_function_with_written_rules_is_differentiated_twice_without_a_line_for_torch():
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    y = sine(x)
    (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), x)
    assert_same([y, g, h], [x.sin(), x.cos(), -x.sin()], 1e-14)
    assert_same(torch.func.jvp(sine, (x.detach(),), (x.detach(),)), [x.sin(), x.cos() * x], 1e-14)
    assert_same(torch.func.vmap(torch.func.grad(sine))(x.detach()), x.cos(), 1e-14)


def test_a_derivative_that_nobody_has_written_is_refused_in_our_words():
    plain = gb.primitive(lambda x: np.sin(x))
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(MissingVJPError, match="it has no rules; write it"):
        torch.autograd.grad(plain(x).sum(), x)
    once = gb.primitive(lambda x: np.sin(x))
    once.defvjp(lambda ans, x: lambda v: v * np.cos(x))
    (g,) = torch.autograd.grad(once(x).sum(), x, create_graph=True)
    with pytest.raises(HigherOrderError):
        torch.autograd.grad(g.sum(), x)


# -- numbers of all kinds ----------------------------------------------------------------------


def test_complex_gradients_are_those_of_torchs_convention():
    z = torch.randn(3, dtype=torch.complex128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    other = z.detach().clone().requires_grad_()
    assert_same(
        torch.autograd.grad(product(z).abs().sum(), z),
        torch.autograd.grad((torch.sin(other) * other).abs().sum(), other),
    )
    assert torch.autograd.gradcheck(product, (z,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(product, (z,), check_fwd_over_rev=True)


def test_lazy_views_are_what_they_stand_for():
    z = torch.randn(3, dtype=torch.complex128)
    for view in (z.conj(), z.conj().imag, z.real[::2], torch.ones(1).expand(4), torch.randn(4, 6)[:, ::2].T):
        assert view.is_conj() or view.is_neg() or not view.is_contiguous()
        assert_same(product(view), torch.sin(view) * view, 1e-6 if view.dtype is torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_outputs_and_gradients_have_the_dtype_of_the_program(dtype):
    x = torch.tensor([0.5, -1.0, 2.0], dtype=dtype, requires_grad=True)
    y = product(x)
    (g,) = torch.autograd.grad(y.sum(), x)
    exact = x.detach().double()
    assert y.dtype is g.dtype is dtype
    tolerance = 4 * torch.finfo(dtype).eps
    assert_same(y.double(), exact.sin() * exact, tolerance)
    assert_same(g.double(), exact.cos() * exact + exact.sin(), tolerance)


def test_each_gradient_has_the_dtype_of_its_own_operand(f):
    p, x = P.clone().requires_grad_(), X.float().requires_grad_()
    y = f(p, x)
    gradients = torch.autograd.grad(y.sum(), (p, x))
    assert y.dtype is torch.float64
    assert [g.dtype for g in gradients] == [torch.float64, torch.float32]


def test_integer_outputs_have_no_gradient_and_floating_ones_beside_them_do():
    x = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    found = several(x, torch.tensor([2, 0]))
    assert found["order"].tolist() == [1, 2, 0]
    assert found["order"].dtype is torch.int64
    assert not found["order"].requires_grad
    (g,) = torch.autograd.grad(found["some"][0] + found["sum"], x)
    assert g.tolist() == [1.0, 1.0, 2.0]
    assert found["some"].tolist() == [2.0, 3.0]


def test_no_rows_one_number_and_sparse_tensors_are_tensors_too(f):
    p, _ = tracked()
    assert f(p, X[:0]).shape == (0, 1)
    assert torch.autograd.grad(f(p, X[:0]).sum(), p)[0].abs().sum() == 0
    one = torch.tensor(2.0, requires_grad=True)
    assert_same(torch.autograd.grad(product(one), one), torch.sin(one) + one * torch.cos(one), 1e-6)
    sparse = torch.eye(3, dtype=torch.float64).to_sparse().requires_grad_()
    assert torch.autograd.grad(product(sparse).sum(), sparse)[0].layout is torch.sparse_coo


def test_weights_come_as_a_tree_and_gradients_go_to_each():
    f = bridge_over("autograd", dtype="float64")
    tree = {n: torch.tensor(w, requires_grad=True) for n, w in zip(f.layout.names, f.layout.cut(f.params))}
    found = torch.autograd.grad((f(tree, X) ** 2).sum(), list(tree.values()))
    p, _ = tracked()
    (expected,) = torch.autograd.grad((native(p, X) ** 2).sum(), p)
    assert_same(torch.cat([g.reshape(-1) for g in found]), expected)


def test_frozen_weights_get_no_gradient_and_cost_none(f):
    tree = {n: torch.tensor(w) for n, w in zip(f.layout.names, f.layout.cut(f.params))}
    tree["b2"].requires_grad_()
    f(tree, X).sum().backward()
    assert [w.grad is None for w in tree.values()] == [True, True, True, False]
    assert tree["b2"].grad.tolist() == [4.0]


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


def test_calls_in_flight_and_in_threads_do_not_see_each_other(f):
    first, second = f(P.clone().requires_grad_(), X), None
    p, q = tracked()[0], (2 * P).requires_grad_()
    first, second = f(p, X), f(q, X + 1)
    (h,) = torch.autograd.grad((second**2).sum(), q)
    (g,) = torch.autograd.grad((first**2).sum(), p)
    assert_same(g, torch.autograd.grad((native(p, X) ** 2).sum(), p))
    assert_same(h, torch.autograd.grad((native(q, X + 1) ** 2).sum(), q))
    wrong = []

    def work(seed):
        for _ in range(10):
            p, x = (P * (1 + seed / 10)).requires_grad_(), (X + seed).requires_grad_()
            found = torch.autograd.grad((f(p, x) ** 2).sum(), (p, x))
            expected = torch.autograd.grad((native(p, x) ** 2).sum(), (p, x))
            wrong.extend(seed for a, b in zip(found, expected) if not torch.allclose(a, b, rtol=1e-12))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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


def test_complex_numbers_are_refused_where_the_guest_takes_none():
    f = gb.primitive(gradient="numeric")(lambda x, c: x * np.abs(c))
    with pytest.raises(InputError, match="takes no complex numbers"):
        f(torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.complex128))


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


def test_shortcuts_do_not_take_what_only_looks_like_the_last_call():
    f = bridge_over("autograd")
    tree = {n: torch.tensor(w, requires_grad=True) for n, w in zip(f.layout.names, f.layout.cut(f.params))}
    for _ in range(3):
        f(tree, X).sum().backward()
    single = {n: w.detach().float() for n, w in tree.items()}
    assert f(single, X.float()).dtype is torch.float32
    assert f(tree, X).dtype is torch.float64
    with pytest.raises(ValueError, match="expected"):
        f({**tree, "b2": torch.ones(2, dtype=torch.float64)}, X)
    with pytest.raises(ValueError, match="expected a tree"):
        f({n: w for n, w in tree.items() if n != "b2"}, X)
    assert_same(f(tree, x=X), f(tree, X))
    assert_same(torch.func.vmap(lambda x: f(tree, x))(torch.stack([X, 2 * X]))[1], f(tree, 2 * X))
    with gb.trace() as t:
        f(tree, X)
    assert t.counts["forward"] == 1


def test_a_model_of_one_precision_serves_call_after_call_in_another():
    jnp = pytest.importorskip("jax.numpy")

    def single(p, x):
        if p["w"].dtype != jnp.float32:
            raise TypeError("float32 only")
        return jnp.sin(p["w"]) * x

    f = gb.bridge(single, params={"w": np.ones(3, np.float32)}, backend="jax")
    w, x = (torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with pytest.warns(GradbridgeWarning, match="It computes in float32"):
        f({"w": w}, x)
    for _ in range(3):
        (g,) = torch.autograd.grad(f({"w": w}, x).sum(), w)
        assert torch.allclose(g, torch.cos(w), rtol=1e-6)
