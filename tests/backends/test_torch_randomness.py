"""Law 9 for torch: a bridge is a function, whatever torch's global state is."""

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, make_vjp, value_and_grad

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402

X = onp.random.default_rng(0).normal(size=(64, 3))


def dropping(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.Linear(16, 1)).double()
    return gb.bridge(net, mode="train", **options)


def test_frozen_noise_is_the_same_at_all_params_and_belongs_to_the_seed():
    f, g = dropping(), dropping(seed=1)
    assert onp.array_equal(f(f.params, X), f(f.params, X))
    assert not onp.array_equal(f(f.params, X), g(f.params, X))
    weights = lambda p: f(p, X)
    # With one mask the model is linear in its last layer, so doubling that doubles the output.
    last = f.layout.slices[f.layout.names.index("2.weight")].start
    doubled = f.params.copy()
    doubled[last:] *= 2
    onp.testing.assert_allclose(weights(doubled), 2 * weights(f.params), rtol=1e-12)


def test_a_gradient_belongs_to_the_value_that_was_returned():
    for noise in ("frozen", "per_params", "per_call"):
        f = dropping(noise=noise)
        pull, value = make_vjp(f)(f.params, X)
        gradient = pull(onp.ones_like(value))
        # The bias and weights of the last layer enter linearly: value = ∂value/∂last · last.
        last = f.layout.slices[f.layout.names.index("2.weight")].start
        onp.testing.assert_allclose(gradient[last:] @ f.params[last:], value.sum(), rtol=1e-10)


def test_per_params_noise_changes_with_the_params_and_only_then():
    f = dropping(noise="per_params")
    assert onp.array_equal(f(f.params, X), f(f.params, X))
    a, b = f(f.params, X), f(f.params + 1e-12, X)
    assert onp.abs(a - b).max() > 1e-3


def test_per_call_noise_changes_with_every_call_and_starts_at_the_seed():
    f, g = dropping(noise="per_call"), dropping(noise="per_call")
    first, second = f(f.params, X), f(f.params, X)
    assert not onp.array_equal(first, second)
    assert onp.array_equal(first, g(f.params, X))


def test_finite_differences_agree_with_the_gradient_under_frozen_noise():
    f = dropping()
    loss = lambda p: np.sum(f(p, X) ** 2)
    u = onp.random.default_rng(1).normal(size=f.layout.size)
    numeric = (loss(f.params + 1e-6 * u) - loss(f.params - 1e-6 * u)) / 2e-6
    assert abs(numeric - grad(loss)(f.params) @ u) < 1e-6 * abs(numeric)


def test_second_derivatives_use_the_mask_of_their_value():
    f = dropping(noise="per_call")
    torch.manual_seed(3)
    hvp = grad(lambda p: np.sum(grad(lambda q: np.sum(f(q, X) ** 2))(p) ** 2))
    assert onp.isfinite(hvp(f.params)).all()
    g = dropping()
    loss = lambda p: np.sum(g(p, X) ** 2)
    u = onp.random.default_rng(1).normal(size=g.layout.size)
    numeric = (grad(loss)(g.params + 1e-6 * u) - grad(loss)(g.params - 1e-6 * u)) / 2e-6
    import autograd

    onp.testing.assert_allclose(
        autograd.hessian_vector_product(loss)(g.params, u), numeric, rtol=1e-5, atol=1e-6
    )


def test_the_global_random_state_is_neither_changed_nor_trusted():
    f = dropping()
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = value_and_grad(lambda p: np.sum(f(p, X)))(f.params)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    second = value_and_grad(lambda p: np.sum(f(p, X)))(f.params)
    assert first[0] == second[0]
    assert onp.array_equal(first[1], second[1])


def test_a_model_that_draws_in_eval_mode_is_a_function_too():
    class Sampler(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x):
            return x + self.scale * torch.randn_like(x)

    f = gb.bridge(Sampler().eval())
    state = torch.get_rng_state()
    assert onp.array_equal(f(f.params, X), f(f.params, X))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_result_is_the_same_in_any_grad_mode_and_under_any_default():
    f = gb.bridge(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), dtype="float64")
    loss = lambda p: np.sum(f(p, X))
    expected = grad(loss)(f.params)
    with torch.no_grad():
        assert onp.array_equal(grad(loss)(f.params), expected)
    with torch.inference_mode():
        assert onp.array_equal(grad(loss)(f.params), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert onp.array_equal(grad(loss)(f.params), expected)
    pull, value = make_vjp(f)(f.params, X)
    with torch.inference_mode():
        pull(onp.ones_like(value))

    class MakesTensors(nn.Module):
        def forward(self, x):
            return x * torch.full((1,), 1 / 3)

    g = gb.bridge(MakesTensors())
    before = g(onp.empty(0), X)
    torch.set_default_dtype(torch.float64)
    try:
        assert onp.array_equal(g(onp.empty(0), X), before)
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_batch_statistics_live_in_the_bridge_move_once_per_forward_and_reach_the_user():
    net = nn.Sequential(nn.BatchNorm1d(3, momentum=0.5)).double()
    f = gb.bridge(net, mode="train")
    grad(lambda p: np.sum(f(p, X) ** 2))(f.params)
    assert net[0].num_batches_tracked == 0
    assert f.model(f.params)[0].num_batches_tracked == 1
    onp.testing.assert_allclose(f.model(f.params)[0].running_mean.numpy(), 0.5 * X.mean(0), rtol=1e-12)
    out = f(f.params, X)
    onp.testing.assert_allclose(out.mean(0), 0, atol=1e-12)
    assert f.model(f.params)[0].num_batches_tracked == 2


def test_batch_statistics_do_not_move_when_a_derivative_is_differentiated():
    import autograd

    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    f = gb.bridge(net, mode="train")
    autograd.hessian_vector_product(lambda p: np.sum(f(p, X) ** 2))(f.params, onp.ones(f.layout.size))
    assert f.model(f.params)[0].num_batches_tracked == 1


def test_eval_mode_uses_the_stored_statistics():
    net = nn.BatchNorm1d(3).double()
    net.running_mean.fill_(1.0)
    net.eval()
    f = gb.bridge(net)
    onp.testing.assert_allclose(f(f.params, X), (X - 1.0) / onp.sqrt(1 + 1e-5), rtol=1e-12)


def test_hooks_on_saved_tensors_around_a_bridge_do_not_reach_into_it():
    f = gb.bridge(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), dtype="float64")
    loss = lambda p: np.sum(f(p, X) ** 2)
    expected = grad(loss)(f.params)
    called = []

    def lossy(tensor):
        called.append(tensor)
        return tensor.half()

    with torch.autograd.graph.saved_tensors_hooks(lossy, lambda t: t.double()):
        assert onp.array_equal(grad(loss)(f.params), expected)
        assert not called
        (torch.ones(2, requires_grad=True).double() ** 2).sum()
        assert called
