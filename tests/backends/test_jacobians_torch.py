"""Jacobians through torch guests, by every strategy, against autograd's row by row and torch's own."""

import numpy as np
import pytest
from autograd import jacobian

torch = pytest.importorskip("torch")

import gradbridge as gb  # noqa: E402
from gradbridge.errors import OptionError  # noqa: E402

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(24, 4))


@pytest.fixture(autouse=True)
def _same_weights_in_every_run():
    torch.manual_seed(0)


def network(*layers):
    return torch.nn.Sequential(*layers)


def mlp(outputs=1):
    return network(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, outputs))


def close(found, truth, rtol=1e-10):
    assert found.shape == truth.shape
    np.testing.assert_allclose(found, truth, rtol=rtol, atol=rtol * np.abs(truth).max(initial=1e-300))


def how(t):
    return {step.bridge.partition(", ")[2] for step in t.steps} - {"", "JVP checked"}


@pytest.mark.parametrize("strategy", ["auto", "rows", "vjp", "jvp", "loop"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_every_strategy_gives_the_row_by_row_truth(strategy, outputs):
    f = gb.bridge(mlp(outputs), dtype="float64")
    by_params, by_input = f.jacobian(f.params, X, wrt=(0, 1), strategy=strategy)
    close(by_params, jacobian(f)(f.params, X))
    close(by_input, jacobian(f, 1)(f.params, X))


def test_it_is_torchs_own():
    model = mlp(2).double()
    f = gb.bridge(model)
    own = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, torch.tensor(X)))(
        dict(model.named_parameters())
    )
    flat = torch.cat([own[name].flatten(2) for name in f.layout.names], 2).detach().numpy()
    close(f.jacobian(f.params, X), flat)


def test_independent_rows_are_found_and_computed_apart():
    f = gb.bridge(mlp(), dtype="float64")
    with gb.trace() as t:
        f.jacobian(f.params, X)
    assert how(t) == {"per-example"}
    assert t.counts["forward"] == 1
    close(f.row_gradients(f.params, X), jacobian(f)(f.params, X)[:, 0])


def test_chunks_of_rows_and_of_cotangents_change_nothing():
    f = gb.bridge(mlp(3), dtype="float64")
    truth = jacobian(f)(f.params, X)
    for strategy in ("rows", "vjp", "jvp"):
        close(f.jacobian(f.params, X, strategy=strategy, max_chunk=10_000), truth)


def test_few_params_are_pushed_forward():
    f = gb.bridge(
        lambda p, x: torch.cumsum(p[0] * torch.sin(x * p[1]), 0), params=np.ones(2), backend="torch"
    )
    x = np.linspace(0, 3, 100)
    with gb.trace() as t:
        J = f.jacobian(f.params, x)
    assert how(t) == {"batched JVP"}
    close(J, np.column_stack([np.cumsum(np.sin(x)), np.cumsum(x * np.cos(x))]))


class Softmax(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 5)

    def forward(self, x):
        return torch.softmax(self.linear(x), dim=0)


class Attention(torch.nn.Module):
    """Rows attend to each other, and hardly."""

    def __init__(self, weight):
        super().__init__()
        self.linear, self.weight = torch.nn.Linear(4, 5), weight

    def forward(self, x):
        h = self.linear(x)
        return h + self.weight * torch.softmax(h @ h.T, -1) @ h


@pytest.mark.parametrize(
    "model",
    [Softmax, lambda: Attention(1.0), lambda: Attention(1e-9)],
    ids=["softmax over rows", "attention", "weak attention"],
)
def test_rows_that_see_each_other_are_not_computed_apart(model):
    f = gb.bridge(model(), dtype="float64")
    with gb.trace() as t:
        J = f.jacobian(f.params, X, wrt=(0, 1))
    assert how(t).isdisjoint({"rows at once"}) or "batched VJP" in how(t)
    close(J[0], jacobian(f)(f.params, X))
    close(J[1], jacobian(f, 1)(f.params, X))


def test_weak_dependence_in_float32_is_noticed_by_its_gradient():
    f = gb.bridge(Attention(1e-5))
    with gb.trace() as t:
        f.jacobian(f.params, X)
    assert "batched VJP" in how(t) or "batched JVP" in how(t)


def test_what_looks_independent_row_by_row_and_is_not_is_noticed():
    def sneaky(p, x):
        m = x.mean(0)
        return x @ p + (m - m.detach()) @ p  # the value of every row is as if it were alone

    f = gb.bridge(sneaky, params=np.ones(4), backend="torch")
    close(f.jacobian(f.params, X, wrt=1), jacobian(f, 1)(f.params, X))
    with pytest.raises(OptionError, match="not independent of each other"):
        f.jacobian(f.params, X, wrt=1, strategy="rows")


def test_batch_statistics_in_train_mode_are_right_and_move_once():
    model = network(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    f, g = (gb.bridge(model, dtype="float64", mode="train") for _ in range(2))
    with gb.trace() as t:
        J = f.jacobian(f.params, X)
    assert "per-example" not in how(t)
    close(J, jacobian(g)(g.params, X))
    moved, once = f.model(f.params)[1], g.model(g.params)[1]
    assert moved.num_batches_tracked == once.num_batches_tracked == 1
    with pytest.raises(OptionError, match="'rows' was asked"):
        f.jacobian(f.params, X, strategy="rows")


def test_batch_norm_in_eval_mode_has_independent_rows():
    model = network(
        torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.ReLU(), torch.nn.Linear(3, 1)
    ).eval()
    f = gb.bridge(model, dtype="float64")
    with gb.trace() as t:
        J = f.jacobian(f.params, X)
    assert how(t) == {"per-example"}
    close(J, jacobian(f)(f.params, X))


def test_dropout_uses_the_masks_of_the_call():
    f = gb.bridge(network(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)), mode="train")
    np.testing.assert_allclose(f.jacobian(f.params, X), jacobian(f)(f.params, X), rtol=1e-5, atol=1e-6)


def test_a_convolution_works():
    model = network(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 2))
    f = gb.bridge(model, dtype="float64")
    images = DRAW.normal(size=(10, 1, 6, 6))
    with gb.trace() as t:
        J = f.jacobian(f.params, images, wrt=(0, 1))
    assert "per-example" in how(t)
    close(J[0], jacobian(f)(f.params, images))
    close(J[1], jacobian(f, 1)(f.params, images))


def test_integer_inputs_have_rows_too():
    model = network(torch.nn.Embedding(7, 3), torch.nn.Linear(3, 1))
    f = gb.bridge(model, dtype="float64")
    ids = DRAW.integers(0, 7, size=20)
    with gb.trace() as t:
        J = f.jacobian(f.params, ids)
    assert how(t) == {"per-example"}
    close(J, jacobian(f)(f.params, ids))


def test_an_input_that_all_rows_share_is_an_argument_too():
    def scaled(p, x, scale):
        return torch.tanh(x @ p) * scale.sum()

    f = gb.bridge(scaled, params=np.ones(4), backend="torch")
    scale = np.array([1.0, 2.0, -0.5])
    for strategy in ("rows", "vjp", "loop"):
        J = f.jacobian(f.params, X, scale, wrt=(0, 1, 2), strategy=strategy)
        for position in range(3):
            close(J[position], jacobian(f, position)(f.params, X, scale))


def test_a_shared_input_with_as_many_rows_by_chance_is_noticed():
    f = gb.bridge(lambda p, x, w: (x @ p) * (w @ p).sum(), params=np.ones(4), backend="torch")
    w = DRAW.normal(size=X.shape)
    J = f.jacobian(f.params, X, w, wrt=(0, 2))
    close(J[0], jacobian(f)(f.params, X, w))
    close(J[1], jacobian(f, 2)(f.params, X, w))


def test_several_outputs_come_as_a_tree():
    def two(p, x):
        return {"mean": x @ p, "spread": torch.stack([x[:, 0] * p[0], x[:, 1] ** 2], 1), "sign": x[:, 0] > 0}

    f = gb.bridge(two, params=np.ones(4), backend="torch")
    for strategy in ("auto", "rows", "vjp", "jvp", "loop"):
        by_params, by_input = f.jacobian(f.params, X, wrt=(0, 1), strategy=strategy)
        for name in ("mean", "spread"):
            close(by_params[name], jacobian(lambda p, n=name: f(p, X)[n])(f.params))
            close(by_input[name], jacobian(lambda x, n=name: f(f.params, x)[n])(X))
        assert by_params["sign"] is None


def test_what_torch_cannot_map_goes_one_by_one():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return torch.from_numpy(3 * x.detach().numpy() ** 2) * g

    f = gb.bridge(lambda p, x: Cube.apply(x @ p), params=np.ones(4), backend="torch")
    close(f.jacobian(f.params, X), jacobian(f)(f.params, X))


def test_a_branch_on_the_data_goes_without_the_map():
    def branching(p, x):
        return x @ p if float(x.sum()) > 1e9 else torch.sin(x @ p)

    f = gb.bridge(branching, params=np.ones(4), backend="torch")
    with gb.trace() as t:
        J = f.jacobian(f.params, X)
    assert "per-example" not in how(t)
    close(J, jacobian(f)(f.params, X))
    with pytest.raises(OptionError, match="cannot compute per-example Jacobians"):
        f.jacobian(f.params, X, strategy="rows")


def test_parameters_without_influence_get_zeros():
    f = gb.bridge(lambda p, x: x @ p["a"], params={"a": np.ones(4), "b": np.ones(3)}, backend="torch")
    J = f.jacobian(f.params, X)
    close(J, np.hstack([X, np.zeros((24, 3))]))


def test_no_rows_one_row_and_float32():
    f = gb.bridge(mlp())
    assert f.jacobian(f.params, X[:0]).shape == (0, 1, f.layout.size)
    close(f.jacobian(f.params, X[:1]), jacobian(f)(f.params, X[:1]), 1e-6)
    with gb.trace() as t:
        J = f.jacobian(f.params.astype("f4"), X.astype("f4"))
    assert how(t) == {"per-example"}
    assert J.dtype == np.float32
    np.testing.assert_allclose(J, jacobian(f)(f.params, X), rtol=1e-4, atol=1e-6)


def test_products_with_the_jacobian():
    f = gb.bridge(mlp(3), dtype="float64")
    J = f.jacobian(f.params, X)
    v, t = DRAW.normal(size=(24, 3)), DRAW.normal(size=f.params.shape)
    close(f.vjp(f.params, X, cotangent=v), np.tensordot(v, J, 2))
    close(f.jvp(f.params, X, tangent=t), J @ t)
    close(f.ggn(f.params, X, vector=t), np.tensordot(J @ t, J, 2))
    H = DRAW.normal(size=(24, 3, 24, 3))
    close(f.ggn(f.params, X, vector=t, hessian=H), np.tensordot(np.tensordot(H, J @ t, 2), J, 2))
    close(f.ggn(f.params, X, vector=t, hessian=lambda u: 2 * u), 2 * f.ggn(f.params, X, vector=t))
    u = DRAW.normal(size=X.shape)
    both = f.jvp(f.params, X, tangent=(t, u), wrt=(0, 1))
    close(both, J @ t + np.tensordot(f.jacobian(f.params, X, wrt=1), u, 2))
    with pytest.raises(OptionError, match=r"\(24, 3, 24, 3\) for Sequential, got \(3, 3\)"):
        f.ggn(f.params, X, vector=t, hessian=np.eye(3))


def test_it_is_the_same_within_no_grad_and_inference_mode():
    f = gb.bridge(mlp(), dtype="float64")
    truth = jacobian(f)(f.params, X)
    for surroundings in (torch.no_grad(), torch.inference_mode()):
        with surroundings:
            for strategy in ("rows", "vjp", "jvp", "loop"):
                close(f.jacobian(f.params, X, strategy=strategy), truth)
