"""Derivatives of torch modules, of every dtype and memory layout, against torch's own in float64."""

import copy

import autograd
import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian, jacobian, make_jvp, value_and_grad
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import (  # noqa: E402
    NotDifferentiableError,
)

RNG = onp.random.default_rng(0)


def native_gradients(module, loss, *inputs):
    """Torch's own gradient of loss(module(*inputs)) for trainable parameters (flat) and inputs, in float64."""
    twin = copy.deepcopy(module).double()
    xs = [torch.tensor(x, requires_grad=x.dtype.kind == "f") for x in inputs]
    wanted = [p for p in twin.parameters() if p.requires_grad] + [x for x in xs if x.requires_grad]
    found = torch.autograd.grad(loss(twin(*xs)), wanted, allow_unused=True)
    found = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found)]
    n = len([p for p in twin.parameters() if p.requires_grad])
    flat = onp.concatenate([g.detach().numpy().ravel() for g in found[:n]])
    return flat, [g.numpy() for g in found[n:]]


def assert_untouched(module, before):
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(0, 6), st.integers(0, 99))
@settings(max_examples=25)
def test_gradients_of_any_mlp_agree_with_torch(mlp, sizes, rows, seed):
    module = mlp(sizes, seed=seed)
    f = gb.bridge(module)
    X = onp.random.default_rng(seed).normal(size=(rows, sizes[0]))
    gp, gx = grad(lambda p, X: np.sum(np.sin(f(p, X))), (0, 1))(f.params, X)
    expected, (expected_x,) = native_gradients(module, lambda out: out.sin().sum(), X)
    onp.testing.assert_allclose(gp, expected, rtol=1e-12, atol=1e-14)
    onp.testing.assert_allclose(gx, expected_x, rtol=1e-12, atol=1e-14)


def test_value_and_gradients_of_everything_cost_one_forward_and_one_backward():
    f = gb.bridge(nn.Bilinear(2, 3, 1, dtype=torch.float64))
    a, b = RNG.normal(size=(4, 2)), RNG.normal(size=(4, 3))
    with gb.trace() as t:
        value_and_grad(lambda p, a, b: np.sum(f(p, a, b) ** 2), (0, 1, 2))(f.params, a, b)
    assert t.counts == {"update": 1, "forward": 1, "zero": 1, "backward": 1}


def test_second_and_third_derivatives_agree_with_torch(mlp):
    module = mlp((2, 3, 1))
    f = gb.bridge(module)
    X = RNG.normal(size=(5, 2))
    loss = lambda p: np.sum(f(p, X) ** 3)
    names = [n for n, _ in module.named_parameters()]

    def native(vector):
        parts = dict(zip(names, torch.split(vector, f.layout.sizes)))
        parts = {n: parts[n].view(s) for n, s in zip(f.layout.names, f.layout.shapes)}
        return (torch.func.functional_call(module, parts, (torch.tensor(X),)) ** 3).sum()

    at = torch.tensor(f.params)
    H = torch.func.hessian(native)(at).detach().numpy()
    onp.testing.assert_allclose(autograd.hessian(loss)(f.params), H, rtol=1e-10, atol=1e-12)
    T = torch.func.jacrev(torch.func.hessian(native))(at).detach().numpy()
    onp.testing.assert_allclose(jacobian(autograd.hessian(loss))(f.params), T, rtol=1e-8, atol=1e-10)
    u = RNG.normal(size=f.layout.size)
    onp.testing.assert_allclose(
        autograd.hessian_vector_product(loss)(f.params, u), H @ u, rtol=1e-10, atol=1e-12
    )


def test_mixed_second_derivatives_of_params_and_inputs_agree_with_torch(mlp):
    module = mlp((2, 1))
    f = gb.bridge(nn.Sequential(module, nn.Sigmoid()))
    X = RNG.normal(size=(3, 2))
    mixed = jacobian(lambda X: grad(lambda p: np.sum(f(p, X)))(f.params))(X)

    def native(vector, x):
        w, b = vector[:2].view(1, 2), vector[2:]
        return torch.sigmoid(x @ w.T + b).sum()

    expected = torch.func.jacrev(torch.func.grad(native), argnums=1)(torch.tensor(f.params), torch.tensor(X))
    onp.testing.assert_allclose(mixed, expected.numpy(), rtol=1e-12, atol=1e-14)


def test_forward_mode_agrees_with_the_jacobian(mlp):
    f = gb.bridge(mlp())
    X, u = RNG.normal(size=(5, 3)), RNG.normal(size=26)
    value, pushed = make_jvp(f)(f.params, X)(u)
    onp.testing.assert_allclose(value, f(f.params, X))
    onp.testing.assert_allclose(pushed, jacobian(f)(f.params, X) @ u, rtol=1e-12)
    reverse = autograd.differential_operators.make_jvp_reversemode(f)(f.params, X)(u)
    onp.testing.assert_allclose(reverse, pushed, rtol=1e-12)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, dtype=torch.float64)
        self.frozen = nn.Linear(3, 3, dtype=torch.float64).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.register_buffer("shift", torch.full((3,), 0.5, dtype=torch.float64))
        self.alias = [self.first]

    def forward(self, x):
        return self.alias[0](torch.tanh(self.frozen(self.first(x)))) + self.shift


def test_a_users_own_subclass_with_tied_frozen_unused_parameters_and_buffers(snapshot):
    net = Net()
    before = snapshot(net)
    f = gb.bridge(net)
    assert f.layout.names == ("unused", "first.weight", "first.bias")
    X = RNG.normal(size=(4, 3))
    g = grad(lambda p: np.sum(f(p, X) ** 2))(f.params)
    expected, _ = native_gradients(net, lambda out: (out**2).sum(), X)
    onp.testing.assert_allclose(g, expected, rtol=1e-12)
    assert onp.array_equal(g[:2], [0.0, 0.0])
    assert_untouched(net, before)


def test_tied_parameters_are_counted_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    net[2].weight = net[0].weight
    f = gb.bridge(net)
    assert f.layout.size == 9 + 3 + 3
    X = RNG.normal(size=(4, 3))
    expected, _ = native_gradients(net, lambda out: out.sum(), X)
    onp.testing.assert_allclose(grad(lambda p: np.sum(f(p, X)))(f.params), expected, rtol=1e-12)


def test_integer_inputs_reach_an_embedding_as_integers():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 1)).double()
    f = gb.bridge(net)
    ids = onp.array([[0, 4], [2, 2]])
    expected, _ = native_gradients(net, lambda out: out.sum(), ids)
    onp.testing.assert_allclose(grad(lambda p: np.sum(f(p, ids)))(f.params), expected, rtol=1e-12)
    with pytest.raises(NotDifferentiableError, match="dtype int64"):
        grad(lambda p, ids: np.sum(f(p, ids)), 1)(f.params, ids)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05), ("float64", 1e-13)])
def test_modules_of_every_dtype_come_back_in_the_hosts(dtype, tolerance, mlp):
    net = mlp((3, 4, 1)).to(getattr(torch, dtype))
    f = gb.bridge(net)
    assert set(f.layout.dtypes) == {dtype}
    X = RNG.normal(size=(6, 3))
    value, g = value_and_grad(lambda p: np.sum(f(p, X)))(f.params)
    assert value.dtype == g.dtype == onp.float64
    expected, _ = native_gradients(net, lambda out: out.sum(), X)
    onp.testing.assert_allclose(g, expected, rtol=tolerance, atol=tolerance)


def test_dtype_float64_computes_in_double_and_leaves_the_module_in_single():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).eval()
    net[1].running_mean.uniform_()
    f = gb.bridge(net, dtype="float64")
    X = RNG.normal(size=(6, 3))
    expected, (gx,) = native_gradients(net, lambda out: (out**2).sum(), X)
    gp, got = grad(lambda p, X: np.sum(f(p, X) ** 2), (0, 1))(f.params, X)
    onp.testing.assert_allclose(gp, expected, rtol=1e-12)
    onp.testing.assert_allclose(got, gx, rtol=1e-12)
    assert all(p.dtype == torch.float32 for p in net.parameters())
    assert f.model(f.params)[0].weight.dtype == torch.float64


@pytest.mark.parametrize(
    "change",
    [
        lambda X: onp.asfortranarray(X),
        lambda X: X[::-1, ::-1],
        lambda X: X.astype(">f8"),
        lambda X: onp.repeat(X, 2, axis=0)[::2],
        lambda X: onp.broadcast_to(X[:1], X.shape),
    ],
)
def test_arrays_of_any_memory_layout(change, mlp):
    module = mlp()
    f = gb.bridge(module)
    X = change(RNG.normal(size=(4, 3)))
    X.setflags(write=False)
    gp, gx = grad(lambda p, X: np.sum(f(p, X) ** 2), (0, 1))(f.params, X)
    expected, (ex,) = native_gradients(module, lambda out: (out**2).sum(), onp.array(X, dtype=float))
    onp.testing.assert_allclose(gp, expected, rtol=1e-12)
    onp.testing.assert_allclose(gx, ex, rtol=1e-12)


def test_weight_norm_of_both_kinds_and_recurrent_layers():
    old = nn.utils.weight_norm(nn.Linear(3, 2)).double()
    old(torch.ones(1, 3, dtype=torch.float64))
    new = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)).double()
    X = RNG.normal(size=(4, 3))
    for net in (old, new):
        f = gb.bridge(net)
        expected = torch.autograd.grad(net(torch.tensor(X)).sum(), list(net.parameters()))
        flat = onp.concatenate([g.numpy().ravel() for g in expected])
        onp.testing.assert_allclose(grad(lambda p: np.sum(f(p, X)))(f.params), flat, rtol=1e-12)  # noqa: B023
    lstm = nn.LSTM(3, 2, batch_first=True).double()
    f = gb.bridge(lstm)
    X = RNG.normal(size=(4, 5, 3))
    expected, _ = native_gradients(lstm, lambda out: (out[0] ** 2).sum(), X)
    onp.testing.assert_allclose(grad(lambda p: np.sum(f(p, X)[0] ** 2))(f.params), expected, rtol=1e-12)
    assert onp.array_equal(f(2 * f.params, X)[0], f(2 * f.params, X)[0])
    assert not onp.array_equal(f(2 * f.params, X)[0], f(f.params, X)[0])


def test_python_floats_traced_by_an_outer_derivative_alone_are_taken():
    h = gb.primitive(backend="torch")(lambda x, y: torch.sin(x) * y**2)
    assert onp.isclose(grad(grad(h, 0), 1)(1.0, 2.0), onp.cos(1.0) * 4.0)


def test_padded_transformers_give_the_same_with_and_without_a_gradient():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True).double().eval()
    f = gb.bridge(model)
    x = onp.random.default_rng(0).normal(size=(3, 5, 4))
    mask = onp.zeros((3, 5), bool)
    mask[0, 3:] = mask[2, 2:] = True
    inside = []

    def value(p):
        y = f(p, x, src_key_padding_mask=mask)
        inside.append(getattr(y, "_value", y))
        return np.sum(y**2)

    gradient = autograd.grad(value)(f.params)
    onp.testing.assert_array_equal(inside[0], f(f.params, x, src_key_padding_mask=mask))
    direction, step = onp.random.default_rng(1).normal(size=f.params.shape), 1e-6
    ahead, behind = (
        np.sum(f(f.params + s * direction, x, src_key_padding_mask=mask) ** 2) for s in (step, -step)
    )
    onp.testing.assert_allclose(gradient @ direction, (ahead - behind) / (2 * step), rtol=1e-7)


def test_a_parameter_without_axes_has_every_derivative():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
            self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x):
            return x @ self.weight * self.scale**2

    f = gb.bridge(Scaled())
    x = onp.arange(12.0).reshape(4, 3)
    truth = onp.column_stack([x.sum(1), 0.25 * x])  # 2 · scale · x·w, and scale² x
    onp.testing.assert_allclose(f.jacobian(f.params, x), truth)
    for strategy in ("jvp", "vjp", "rows", "loop"):
        onp.testing.assert_allclose(f.jacobian(f.params, x, strategy=strategy), truth)
    onp.testing.assert_allclose(
        f.jvp(f.params, x, tangent=onp.array([2.0, 1, 0, -1])), truth @ [2.0, 1, 0, -1]
    )


def test_sparse_gradients_come_back_dense():
    net = nn.Embedding(5, 2, sparse=True).double()
    f = gb.bridge(net)
    g = grad(lambda p: np.sum(f(p, onp.array([1, 1, 3]))))(f.params)
    assert onp.array_equal(g.reshape(5, 2)[:, 0], [0, 2, 0, 1, 0])


def test_sparse_gradients_have_second_derivatives():
    f = gb.bridge(nn.Embedding(5, 2, sparse=True, dtype=torch.float64))
    rows = onp.array([1, 1, 3])
    found = hessian(lambda p: np.sum(f(p, rows) ** 2))(f.params)
    onp.testing.assert_allclose(found, onp.diag([0.0, 0, 4, 4, 0, 0, 2, 2, 0, 0]))
