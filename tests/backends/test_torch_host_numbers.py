"""PyTorch as a host: functions with written rules, numbers of all kinds, and calls like the one before."""

import autograd.numpy as anp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_programs import INPUTS, assert_same, bridge_over, native, vector  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import (  # noqa: E402
    GradbridgeWarning,
    HigherOrderError,
    InputError,
    MissingVJPError,
)

P, X = vector(), INPUTS


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


def test_complex_numbers_are_refused_where_the_guest_takes_none():
    f = gb.primitive(gradient="numeric")(lambda x, c: x * np.abs(c))
    with pytest.raises(InputError, match="takes no complex numbers"):
        f(torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.complex128))


# -- calls like the one before ------------------------------------------------------------------


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


def test_where_no_shortcut_serves_one_is_looked_for_ever_more_rarely_and_found_again(monkeypatch):
    f = bridge_over("autograd")
    tree = {n: torch.tensor(w) for n, w in zip(f.layout.names, f.layout.cut(f.params))}
    looks, usual = [], type(f._hosts.host("torch")).shortcut
    monkeypatch.setattr(
        type(f._hosts.host("torch")), "shortcut", lambda *call: looks.append(1) or usual(*call)
    )
    single = {n: w.float().requires_grad_() for n, w in tree.items()}
    f({n: w.clone().requires_grad_() for n, w in tree.items()}, X).sum().backward()
    f(single, X.float()).sum().backward()  # so that nothing is to be looked at any more
    mapped = torch.func.vmap(lambda x: f(tree, x))
    for _ in range(300):
        mapped(X[None])
    assert len(looks) < 15
    for _ in range(70):
        expected = f(tree, X)
    looks.clear()
    for _ in range(70):
        assert_same(f(tree, X), expected)
    assert not looks  # each call takes the shortcut
    for _ in range(70):
        f(single, X.float())
    looks.clear()
    assert f(single, X.float()).dtype is torch.float32
    assert not looks
