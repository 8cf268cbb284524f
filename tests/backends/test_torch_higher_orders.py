"""Higher derivatives of torch models: from the recorded forward, and right where torch's own are wrong."""

import threading
import warnings

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian, hessian_vector_product, make_vjp

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import GradbridgeWarning  # noqa: E402

DRAW = onp.random.default_rng(0)
X = DRAW.normal(size=(5, 3))


def net(*layers, width=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), *layers, nn.Tanh(), nn.Linear(width, 1)).double()


# -- against elementary formulas ------------------------------------------------------------------


def standardized(x, axes, eps=1e-5):
    central = x - np.mean(x, axis=axes, keepdims=True)
    return central / np.sqrt(np.mean(central**2, axis=axes, keepdims=True) + eps)


def layer_norm(h, w, b):
    return standardized(h, (1,)) * w + b


def batch_norm(h, w, b):
    return standardized(h, (0,)) * w + b


def group_norm(h, w, b):
    return standardized(h.reshape(len(h), 2, -1), (2,)).reshape(h.shape) * w + b


@pytest.mark.parametrize(
    ("layer", "formula", "mode"),
    [
        (nn.LayerNorm(4), layer_norm, "eval"),
        (nn.BatchNorm1d(4), batch_norm, "train"),
        (nn.GroupNorm(2, 4), group_norm, "eval"),
    ],
    ids=["LayerNorm", "BatchNorm in train mode", "GroupNorm"],
)
def test_derivatives_of_norm_layers_to_the_fourth_are_those_of_their_formula(layer, formula, mode):
    f = gb.bridge(net(layer), mode=mode)

    def plain(p, x):
        q = f.layout.unravel(p)
        h = formula(x @ q["0.weight"].T + q["0.bias"], q["1.weight"], q["1.bias"])
        return np.tanh(h) @ q["3.weight"].T + q["3.bias"]

    p, v = f.params, 0.5 * DRAW.normal(size=f.layout.size)
    ours, truth = (lambda t, g=g: np.sum(np.sin(g(p + t * v, X))) for g in (f, plain))
    for order in range(5):
        onp.testing.assert_allclose(ours(0.3), truth(0.3), rtol=1e-8, err_msg=f"order {order}")
        ours, truth = grad(ours), grad(truth)


@pytest.mark.parametrize("kind", ["parametrized", "by hooks"])
def test_second_and_third_derivatives_of_weight_norm_are_those_of_its_formula(kind):
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        norm = nn.utils.parametrizations.weight_norm if kind == "parametrized" else nn.utils.weight_norm
        norm(model[0])
    f = gb.bridge(model)
    magnitude, direction = (
        ("0.parametrizations.weight.original0", "0.parametrizations.weight.original1")
        if kind == "parametrized"
        else ("0.weight_g", "0.weight_v")
    )

    def plain(p, x):
        q = f.layout.unravel(p)
        v = q[direction]
        w = v * q[magnitude] / np.sqrt(np.sum(v**2, axis=1, keepdims=True))
        return np.tanh(x @ w.T + q["0.bias"]) @ q["2.weight"].T + q["2.bias"]

    p, v = f.params, 0.5 * DRAW.normal(size=f.layout.size)
    ours, truth = (lambda t, g=g: np.sum(np.sin(g(p + t * v, X))) for g in (f, plain))
    for order in range(4):
        onp.testing.assert_allclose(ours(0.3), truth(0.3), rtol=1e-8, err_msg=f"order {order}")
        ours, truth = grad(ours), grad(truth)


@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_and_images_have_third_derivatives(affine):
    torch.manual_seed(0)
    for model, shape in (
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, affine=affine), nn.Tanh()), (2, 2, 7)),
        (nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3, affine=affine), nn.Tanh()), (2, 2, 4, 4)),
    ):
        f = gb.bridge(model.double(), mode="train")
        x = DRAW.normal(size=shape)
        p, v = f.params, 0.5 * DRAW.normal(size=f.layout.size)
        line = lambda t: np.sum(np.sin(f(p + t * v, x)))  # noqa: B023
        second = grad(grad(line))
        wide, narrow = ((second(step) - second(-step)) / (2 * step) for step in (2e-4, 1e-4))
        onp.testing.assert_allclose(grad(second)(0.0), (4 * narrow - wide) / 3, rtol=1e-5)


def test_a_model_that_takes_gradients_itself_through_a_norm_layer():
    class Force(nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = net(nn.LayerNorm(4))

        def forward(self, x):
            x = x if x.requires_grad else x.clone().requires_grad_()
            return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]

    f = gb.bridge(Force())
    p, v = f.params, 0.5 * DRAW.normal(size=f.layout.size)
    line = lambda t: np.sum(np.sin(f(p + t * v, X)))
    for derivative in (line, grad(line), grad(grad(line))):
        numeric = (derivative(1e-5) - derivative(-1e-5)) / 2e-5
        onp.testing.assert_allclose(grad(derivative)(0.0), numeric, rtol=1e-5)


def test_a_model_that_takes_gradients_itself_draws_its_masks_once_where_a_formula_computes():
    class Force(nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = net(nn.LayerNorm(4), nn.Dropout(0.4))

        def forward(self, x):
            x = x if x.requires_grad else x.clone().requires_grad_()
            return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]

    f = gb.bridge(Force(), mode="train")
    p, v = f.params, 0.5 * DRAW.normal(size=f.layout.size)
    slopes = grad(lambda q: np.sum(np.sin(f(q, X))))
    numeric = (slopes(p + 1e-5 * v) - slopes(p - 1e-5 * v)) / 2e-5
    onp.testing.assert_allclose(
        hessian_vector_product(lambda q: np.sum(np.sin(f(q, X))))(p, v), numeric, rtol=1e-6, atol=1e-9
    )


def test_batch_statistics_do_not_move_where_a_formula_computes():
    f = gb.bridge(net(nn.BatchNorm1d(4)), mode="train")
    v = DRAW.normal(size=f.layout.size)
    line = lambda t: np.sum(f(f.params + t * v, X) ** 2)
    grad(grad(grad(line)))(0.1)
    assert f.model(f.params)[1].num_batches_tracked == 1


# -- from the recorded forward ---------------------------------------------------------------------


def native_product(model, x, v):
    weights = list(model.parameters())
    gradients = torch.autograd.grad((model(torch.tensor(x)) ** 2).sum(), weights, create_graph=True)
    parts = torch.tensor(v).split([w.numel() for w in weights])
    products = torch.autograd.grad(gradients, weights, [t.view(w.shape) for t, w in zip(parts, weights)])
    return torch.cat([t.reshape(-1) for t in products]).numpy()


@pytest.mark.parametrize("width", [4, 160], ids=["two walks", "one walk"])
def test_a_hessian_vector_product_makes_one_forward(width):
    model = net(nn.Tanh(), nn.Linear(width, width), width=width)
    f = gb.bridge(model)
    loss = lambda p: np.sum(f(p, X) ** 2)
    v = DRAW.normal(size=f.layout.size)
    with gb.trace() as t:
        product = hessian_vector_product(loss)(f.params, v)
    assert t.counts["forward"] == 1
    onp.testing.assert_allclose(product, native_product(model, X, v), rtol=1e-11, atol=1e-13)


class Hooked(nn.Module):
    """Doubles a gradient by a hook on a tensor, one by a hook on a weight, and one by a function of its own."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    def __init__(self, width):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, width).double(), nn.Linear(width, 1).double()
        self.middle = nn.Linear(width, width).double()

    def forward(self, x):
        y = torch.tanh(self.first(x))
        if y.requires_grad:
            y.register_hook(lambda g: 2 * g)
        if self.last.weight.requires_grad:
            self.last.weight.register_hook(lambda g: 3 * g)
        return self.last(self.Double.apply(torch.tanh(self.middle(y))))


def test_hooks_and_functions_of_the_users_act_once_in_a_product_that_walks_once():
    # Two walks are torch's own; one walk gives the same.
    from gradbridge_torch.framework import TorchProgram

    f = gb.bridge(Hooked(160))
    v, before = DRAW.normal(size=f.layout.size), TorchProgram.merges_from
    product = lambda: hessian_vector_product(lambda p: np.sum(f(p, X) ** 2))(f.params, v)
    once = product()
    try:
        TorchProgram.merges_from = None
        twice = product()
    finally:
        TorchProgram.merges_from = before
    onp.testing.assert_allclose(once, twice, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("width", [4, 160])
def test_a_second_derivative_belongs_to_the_values_of_its_call(width):
    model = net(nn.Tanh(), nn.Linear(width, width), width=width)
    f = gb.bridge(model)
    p, v = f.params, DRAW.normal(size=f.layout.size)
    batch = X.copy()

    def slope(q):
        pull, _ = make_vjp(lambda r: np.sum(f(r, batch) ** 2))(q)
        batch[...] = 7.0  # a program that fills its buffer anew
        result = np.dot(pull(1.0), v)
        batch[...] = X
        return result

    onp.testing.assert_allclose(grad(slope)(p), native_product(model, X, v), rtol=1e-11, atol=1e-13)


def test_products_in_flight_from_eight_threads_at_one_recording():
    width = 160
    model = net(nn.Tanh(), nn.Linear(width, width), width=width)
    f = gb.bridge(model)
    loss = lambda p: np.sum(f(p, X) ** 2)
    slopes = lambda p: make_vjp(grad(loss))(p)[0]
    vs = [DRAW.normal(size=f.layout.size) for _ in range(4)]
    truth = [native_product(model, X, v) for v in vs]
    pull, first, wrong = slopes(f.params), make_vjp(f)(f.params, X)[0], []
    alone = first(onp.ones((5, 1)))

    def work(seed):
        for turn in range(10):
            v = (seed + turn) % 4
            if not onp.allclose(pull(vs[v]), truth[v], rtol=1e-10, atol=1e-12):
                wrong.append((seed, turn))
            if not onp.array_equal(first(onp.ones((5, 1))), alone):
                wrong.append((seed, turn, "first"))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_complex_outputs_have_recorded_second_derivatives():
    f = gb.primitive(backend="torch")(lambda x, z: (torch.exp(1j * x) * z * z.conj() * z, x**2))
    x, z = onp.array([0.3, 1.1]), onp.array([1.0 + 0.5j, -0.4 + 2j])

    def loss(x):
        y, square = f(x, z)
        return np.sum(np.real(y * np.conj(y)) * square + np.imag(y))

    def plain(x):
        y = np.exp(1j * x) * z * np.conj(z) * z
        return np.sum(np.real(y * np.conj(y)) * x**2 + np.imag(y))

    onp.testing.assert_allclose(hessian(loss)(x), hessian(plain)(x), rtol=1e-11, atol=1e-12)
    third = grad(lambda x: np.sum(hessian(loss)(x)))
    onp.testing.assert_allclose(third(x), grad(lambda x: np.sum(hessian(plain)(x)))(x), rtol=1e-10)


def test_unused_weights_and_outputs_of_which_one_is_a_constant():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Parameter(torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64))
            self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x):
            return torch.sin(x * self.used), x.detach() ** 2, x.argmax()

    f = gb.bridge(Partly())
    H = hessian(lambda p: np.sum(f(p, X)[0] ** 2))(f.params)
    used = f.layout.unravel(f.params)["used"]
    where = f.layout.slices[f.layout.names.index("used")]
    truth = onp.zeros((5, 5))
    truth[where, where] = onp.diag((2 * X**2 * onp.cos(2 * X * used)).sum(0))
    onp.testing.assert_allclose(H, truth, rtol=1e-12, atol=1e-14)


def test_the_notice_of_an_unused_output_comes_once_for_all_ways_to_call():
    f = gb.bridge(lambda x, y=None: x.detach() ** 2, backend="torch")
    with pytest.warns(GradbridgeWarning, match="no output of"):
        grad(lambda x: np.sum(f(onp.empty(0), x)))(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradbridgeWarning)
        grad(lambda x: np.sum(f(onp.empty(0), x, X)))(X)


def test_what_has_a_zero_derivative_without_a_graph_has_one_still():
    f = gb.primitive(backend="torch")(lambda x: torch.round(x) * x)
    x = onp.array([1.2, -2.4])
    onp.testing.assert_allclose(hessian(lambda x: np.sum(f(x) ** 2))(x), onp.diag(2 * onp.round(x) ** 2))


@pytest.mark.parametrize("size", [3, 4000])
def test_an_embedding_with_sparse_gradients_has_the_derivatives_of_a_dense_one(size):
    torch.manual_seed(0)
    ids = onp.array([[0, 2], [1, 2], [0, 0]])
    nets = [
        torch.nn.Sequential(
            torch.nn.Embedding(5, size, sparse=sparse), torch.nn.Linear(size, 2), torch.nn.Tanh()
        )
        for sparse in (True, False)
    ]
    nets[1].load_state_dict(nets[0].state_dict())
    sparse, dense = (gb.bridge(net, dtype="float64") for net in nets)
    p = dense.params
    v, w = onp.random.default_rng(0).normal(size=(2, p.size))

    def product(f, v):
        return hessian_vector_product(lambda q: np.sum(f(q, ids) ** 2))(p, v)

    expected = product(dense, v)
    assert onp.abs(expected[: 5 * size]).max() > 0
    onp.testing.assert_allclose(product(sparse, v), expected, rtol=1e-10, atol=1e-13)
    by_direction = grad(lambda v: np.dot(product(sparse, v), w))(v)
    onp.testing.assert_allclose(by_direction, product(dense, w), rtol=1e-10, atol=1e-13)
