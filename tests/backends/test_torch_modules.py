"""Torch modules as guests, against torch's own float64 gradients."""

import collections
import copy
import dataclasses
import pickle
import threading
import warnings

import autograd
import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian, jacobian, make_jvp, make_vjp, value_and_grad
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import (  # noqa: E402
    GradbridgeWarning,
    GuestError,
    InputError,
    NotDifferentiableError,
    OptionError,
    OutputError,
    UnknownModelError,
)

RNG = onp.random.default_rng(0)


def mlp(sizes=(3, 4, 2), dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    layers = []
    for a, b in zip(sizes, sizes[1:]):
        layers += [nn.Linear(a, b, dtype=dtype), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


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


def snapshot(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def assert_untouched(module, before):
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(0, 6), st.integers(0, 99))
@settings(max_examples=25)
def test_gradients_of_any_mlp_agree_with_torch(sizes, rows, seed):
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


def test_second_and_third_derivatives_agree_with_torch():
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


def test_mixed_second_derivatives_of_params_and_inputs_agree_with_torch():
    module = mlp((2, 1))
    f = gb.bridge(nn.Sequential(module, nn.Sigmoid()))
    X = RNG.normal(size=(3, 2))
    mixed = jacobian(lambda X: grad(lambda p: np.sum(f(p, X)))(f.params))(X)

    def native(vector, x):
        w, b = vector[:2].view(1, 2), vector[2:]
        return torch.sigmoid(x @ w.T + b).sum()

    expected = torch.func.jacrev(torch.func.grad(native), argnums=1)(torch.tensor(f.params), torch.tensor(X))
    onp.testing.assert_allclose(mixed, expected.numpy(), rtol=1e-12, atol=1e-14)


def test_forward_mode_agrees_with_the_jacobian():
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


def test_a_users_own_subclass_with_tied_frozen_unused_parameters_and_buffers():
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


@dataclasses.dataclass
class Result:
    mean: object
    extra: object


Pair = collections.namedtuple("Pair", "left right")


class Shapes(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.make = make

    def forward(self, x):
        return self.make(self.scale * x, x.sum() * self.scale)


@pytest.mark.parametrize(
    ("make", "first"),
    [
        (lambda a, b: (a, b), lambda out: out[0]),
        (lambda a, b: [a, {"b": b}], lambda out: out[0]),
        (lambda a, b: {"mean": a, "b": (b, None)}, lambda out: out["mean"]),
        (lambda a, b: Result(a, b), lambda out: out.mean),
        (lambda a, b: Pair(a, b), lambda out: out.left),
        (lambda a, b: collections.OrderedDict(z=b, mean=a), lambda out: out["mean"]),
    ],
)
def test_outputs_come_back_in_the_containers_that_the_model_returns(make, first):
    f = gb.bridge(Shapes(make))
    x = onp.arange(3.0)
    out = f(f.params, x)
    assert type(out) is type(make(1, 2))
    assert onp.array_equal(first(out), 2 * x)
    assert onp.array_equal(grad(lambda p: np.sum(first(f(p, x))))(f.params), [3.0])


def test_integer_inputs_reach_an_embedding_as_integers():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 1)).double()
    f = gb.bridge(net)
    ids = onp.array([[0, 4], [2, 2]])
    expected, _ = native_gradients(net, lambda out: out.sum(), ids)
    onp.testing.assert_allclose(grad(lambda p: np.sum(f(p, ids)))(f.params), expected, rtol=1e-12)
    with pytest.raises(NotDifferentiableError, match="dtype int64"):
        grad(lambda p, ids: np.sum(f(p, ids)), 1)(f.params, ids)


def test_sparse_gradients_come_back_dense():
    net = nn.Embedding(5, 2, sparse=True).double()
    f = gb.bridge(net)
    g = grad(lambda p: np.sum(f(p, onp.array([1, 1, 3]))))(f.params)
    assert onp.array_equal(g.reshape(5, 2)[:, 0], [0, 2, 0, 1, 0])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05), ("float64", 1e-13)])
def test_modules_of_every_dtype_come_back_in_the_hosts(dtype, tolerance):
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
def test_arrays_of_any_memory_layout(change):
    module = mlp()
    f = gb.bridge(module)
    X = change(RNG.normal(size=(4, 3)))
    X.setflags(write=False)
    gp, gx = grad(lambda p, X: np.sum(f(p, X) ** 2), (0, 1))(f.params, X)
    expected, (ex,) = native_gradients(module, lambda out: (out**2).sum(), onp.array(X, dtype=float))
    onp.testing.assert_allclose(gp, expected, rtol=1e-12)
    onp.testing.assert_allclose(gx, ex, rtol=1e-12)


def test_no_rows_and_no_axes():
    f = gb.bridge(mlp())
    assert f(f.params, onp.empty((0, 3))).shape == (0, 2)
    assert onp.array_equal(grad(lambda p: np.sum(f(p, onp.empty((0, 3)))))(f.params), onp.zeros(26))
    g = gb.bridge(Shapes(lambda a, b: b))
    assert g(g.params, onp.float64(3.0)).shape == ()


def test_a_model_without_parameters_works_with_params_of_length_0():
    f = gb.bridge(nn.Softmax(dim=1))
    assert f.params.shape == (0,)
    X = RNG.normal(size=(2, 3))
    onp.testing.assert_allclose(f(f.params, X).sum(1), [1, 1])
    assert grad(lambda p: np.sum(f(p, X)))(onp.empty(0)).shape == (0,)


def test_a_model_that_does_not_depend_on_its_params_has_exact_zeros():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x * 2

    f = gb.bridge(Constant())
    assert onp.array_equal(grad(lambda p: np.sum(f(p, onp.ones(2))))(f.params), onp.zeros(3))


def test_two_models_two_params_two_inputs_in_flight_from_eight_threads_in_any_order():
    models = [mlp(seed=0), mlp(seed=1)]
    bridges = [gb.bridge(m) for m in models]
    points = [
        (b, b.params * s, RNG.normal(size=(3, 3))) for b in bridges for s in (1.0, 2.0) for _ in range(2)
    ]
    alone = [make_vjp(b)(p, X)[0](onp.ones((3, 2))) for b, p, X in points]
    wrong = []

    def work(seed):
        order = onp.random.default_rng(seed).permutation(len(points))
        for _ in range(20):
            pulls = {i: make_vjp(points[i][0])(points[i][1], points[i][2])[0] for i in order}
            wrong.extend(i for i in order[::-1] if not onp.array_equal(pulls[i](onp.ones((3, 2))), alone[i]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_one_pullback_may_be_pulled_from_eight_threads():
    f = gb.bridge(mlp())
    pull, value = make_vjp(f)(f.params, RNG.normal(size=(20, 3)))
    v = RNG.normal(size=value.shape)
    alone, found = pull(v), []
    threads = [threading.Thread(target=lambda: found.extend(pull(v) for _ in range(20))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(onp.array_equal(g, alone) for g in found)
    assert len(found) == 160


def test_the_sum_of_two_calls_has_the_sum_of_their_gradients():
    module = mlp((2, 2, 1))
    f = gb.bridge(module)
    X = RNG.normal(size=(4, 2))
    single = grad(lambda p: np.sum(f(p, X)))
    expected = single(f.params) + 2 * single(2 * f.params)
    onp.testing.assert_allclose(grad(lambda p: np.sum(f(p, X) + f(2 * p, X)))(f.params), expected, rtol=1e-13)


def test_changes_of_the_callers_arrays_after_the_call_do_not_matter():
    f = gb.bridge(mlp())
    p, X = f.params, RNG.normal(size=(4, 3))
    expected = make_vjp(f, (0, 1))(p, X)[0](onp.ones((4, 2)))
    pull, value = make_vjp(f, (0, 1))(p, X)
    p -= 1.0
    X[:] = 7.0
    value[:] = 0.0
    got = pull(onp.ones((4, 2)))
    got[0][:] = 9.0
    again = pull(onp.ones((4, 2)))
    assert onp.array_equal(again[0], expected[0])
    assert onp.array_equal(again[1], expected[1])


def test_the_module_its_gradients_and_its_mode_stay_as_they_were():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    net(torch.ones(2, 3)).sum().backward()
    before, grads = snapshot(net), [p.grad.clone() for p in net.parameters()]
    for mode in ("eval", "train"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            f = gb.bridge(net, mode=mode, dtype="float64")
        grad(lambda p: np.sum(f(p, onp.ones((5, 3)) * 2)))(f.params + 1)  # noqa: B023
        f.model(f.params * 2)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads))
    assert net.training


def test_params_are_the_models_present_ones_and_model_makes_a_new_one():
    net = mlp()
    f = gb.bridge(net)
    with torch.no_grad():
        net[0].weight.add_(1.0)
    assert f.layout.unravel(f.params)["0.weight"][0, 0] == net[0].weight[0, 0].item()
    new = f.model(f.params * 2)
    X = RNG.normal(size=(4, 3))
    onp.testing.assert_allclose(new(torch.tensor(X)).detach().numpy(), f(f.params * 2, X), rtol=1e-14)
    assert new is not net
    assert all(p.requires_grad for p in new.parameters())


def test_bridges_copy_and_pickle():
    f = gb.bridge(mlp())
    X = RNG.normal(size=(4, 3))
    for twin in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        assert onp.array_equal(twin(f.params, X), f(f.params, X))
        assert onp.array_equal(jacobian(twin)(f.params, X), jacobian(f)(f.params, X))


def test_residuals_do_not_outlive_the_graph():
    import gc
    import weakref

    f = gb.bridge(mlp((3, 50, 2)))
    seen = []
    evaluate = f.adapter.evaluate

    def spy(*args):
        outputs, residuals = evaluate(*args)
        seen.append(weakref.ref(residuals.kept.outputs[0]))
        return outputs, residuals

    f.adapter.evaluate = spy
    grad(lambda p: np.sum(f(p, onp.ones((4, 3)))))(f.params)
    gc.collect()
    assert seen
    assert all(ref() is None for ref in seen)


def test_a_wrong_number_of_columns_names_the_layer_and_what_it_expects():
    with pytest.raises(
        InputError, match=r"over Sequential: layer '0' \(Linear\) expects \(…, 3\), got \(4, 5\)"
    ):
        f = gb.bridge(mlp())
        f(f.params, onp.ones((4, 5)))


def test_images_without_their_channel_axis_name_the_convolution():
    f = gb.bridge(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(InputError, match=r"\(Conv2d\) expects \(N, 3, H, W\)"):
        f(f.params, onp.ones((2, 1, 8, 8)))


def test_a_model_that_raises_itself_is_named():
    class Fussy(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError("no")

    with pytest.raises(
        GuestError, match="Fussy failed in Fussy on input 0 of shape .* ZeroDivisionError: no"
    ):
        gb.bridge(Fussy())(onp.empty(0), onp.ones(2))


def test_outputs_that_are_no_tensors_are_refused():
    with pytest.raises(OutputError, match="output 1 of Shapes is a str"):
        f = gb.bridge(Shapes(lambda a, b: (a, "words")))
        f(f.params, onp.ones(2))


@pytest.mark.parametrize(
    "options", [{"dtype": "int32"}, {"device": "quantum"}, {"device": "meta"}, {"params": {}}]
)
def test_unusable_options_are_refused(options):
    with pytest.raises(OptionError):
        gb.bridge(nn.Linear(1, 1), **options)


def test_what_has_no_parameters_to_flatten_is_refused():
    with pytest.raises(UnknownModelError, match="has no shape yet"):
        gb.bridge(nn.LazyLinear(3))
    with pytest.raises(NotDifferentiableError, match="complex"):
        gb.bridge(nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(UnknownModelError, match="bridges modules and callables"):
        gb.bridge(3, backend="torch")


def test_a_module_that_cannot_be_copied_says_why():
    net = nn.Linear(1, 1)
    net.lock = threading.Lock()
    with pytest.raises(GuestError, match="Linear cannot be copied .*outside the module"):
        gb.bridge(net)


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


def test_a_notice_says_once_that_a_train_mode_model_is_evaluated_in_eval_mode():
    with pytest.warns(GradbridgeWarning, match="in train mode and has BatchNorm1d, Dropout") as caught:
        gb.bridge(nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gb.bridge(nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).eval())
        gb.bridge(nn.Linear(1, 1))


def test_tied_parameters_stay_tied_in_the_model_that_comes_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    net[2].weight = net[0].weight
    f = gb.bridge(net, dtype="float64")
    new = f.model(2 * f.params)
    assert new[2].weight is new[0].weight
    X = RNG.normal(size=(3, 2))
    onp.testing.assert_allclose(new(torch.tensor(X)).detach().numpy(), f(2 * f.params, X), rtol=1e-13)


def test_buffers_that_a_forward_writes_to_in_eval_mode_do_not_change_the_function():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("n", torch.zeros(()))

        def forward(self, x):
            self.n += 1
            return x * self.n

    net = Counting().eval()
    f = gb.bridge(net)
    assert f(onp.empty(0), 3.0) == f(onp.empty(0), 3.0) == 3.0
    assert net.n == 0


def test_a_replaced_parameter_is_the_present_one():
    net = nn.Linear(1, 1).double()
    f = gb.bridge(net)
    net.weight = nn.Parameter(torch.full((1, 1), 7.0, dtype=torch.float64))
    assert f.params[0] == 7.0


def test_integers_where_a_layer_wants_floats_are_named():
    f = gb.bridge(nn.Linear(2, 1))
    with pytest.raises(InputError, match="expects floating inputs, got torch.int64"):
        f(f.params, onp.ones((3, 2), int))


def test_a_second_derivative_that_torch_has_not_is_refused_and_never_zero():
    from torch.autograd.function import once_differentiable

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        @once_differentiable
        def backward(ctx, v):
            (x,) = ctx.saved_tensors
            return 2 * x * v

    f = gb.primitive(backend="torch")(lambda x: Square.apply(x))
    assert grad(f)(3.0) == 6.0
    with pytest.raises(gb.errors.HigherOrderError, match="once_differentiable"):
        grad(grad(f))(3.0)


def test_what_torch_cannot_see_is_said():
    f = gb.primitive(backend="torch")(lambda x: (x**2).sum().item())
    assert f(3.0) == 9.0
    with pytest.raises(NotDifferentiableError, match=r"Python float.*without \.item\(\)"):
        grad(f)(3.0)
    g = gb.primitive(backend="torch")(lambda x: x.detach() ** 2)
    with pytest.warns(GradbridgeWarning, match=r"look for \.detach\(\)"):
        assert grad(g)(3.0) == 0.0


def test_python_floats_traced_by_an_outer_derivative_alone_are_taken():
    h = gb.primitive(backend="torch")(lambda x, y: torch.sin(x) * y**2)
    assert onp.isclose(grad(grad(h, 0), 1)(1.0, 2.0), onp.cos(1.0) * 4.0)


class Checkpointed(torch.nn.Module):
    """Computes its middle again in the backward, if it is told so."""

    def __init__(self, recompute=True):
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
        self.recompute, self.reentrant = recompute, False

    def middle(self, x):
        return torch.tanh(self.second(torch.tanh(self.first(x))))

    def forward(self, x):
        if self.recompute:
            return checkpoint(self.middle, x, use_reentrant=self.reentrant)
        return self.middle(x)


def checkpointed_and_plain():
    one, other = Checkpointed().double(), Checkpointed(recompute=False).double()
    other.load_state_dict(one.state_dict())
    return gb.bridge(one), gb.bridge(other)


@pytest.mark.parametrize("order", [grad, hessian])
def test_activation_checkpointing_computes_with_the_parameters_of_its_call(order):
    f, plain = checkpointed_and_plain()
    x = onp.random.default_rng(0).normal(size=(5, 3))
    for shift in (0.5, -0.5, 1.0):
        p = f.params + shift
        found, truth = (order(lambda q, f=f: np.sum(f(q, x) ** 2))(p) for f in (f, plain))
        onp.testing.assert_allclose(found, truth, rtol=1e-11, atol=1e-13)


def test_checkpointed_calls_in_flight_do_not_see_each_other():
    f, plain = checkpointed_and_plain()
    x = onp.random.default_rng(0).normal(size=(5, 3))
    points = [f.params + shift for shift in (0.5, -0.5, 1.0)]
    v = onp.ones((5, 2))
    for _ in range(2):  # the first time it is not known yet
        pulls = [make_vjp(lambda q: f(q, x))(p)[0] for p in points]
        for pull, p in reversed(list(zip(pulls, points))):
            onp.testing.assert_allclose(pull(v), make_vjp(lambda q: plain(q, x))(p)[0](v), rtol=1e-12)
    onp.testing.assert_allclose(
        f.jacobian(points[0], x, wrt=(0, 1))[0], plain.jacobian(points[0], x, wrt=(0, 1))[0], rtol=1e-11
    )


def test_reentrant_checkpointing_says_what_to_do():
    model = Checkpointed()
    model.reentrant = True
    f = gb.bridge(model, dtype="float64")
    with pytest.raises(GuestError, match="use_reentrant=False"):
        grad(lambda x: np.sum(f(f.params, x)))(onp.ones((2, 3)))


class Force(torch.nn.Module):
    """Minus the gradient of an energy, taken in the forward as models of molecules do."""

    def __init__(self):
        super().__init__()
        self.energy = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))

    def forward(self, x):
        x = x if x.requires_grad else x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return -gradient


def test_a_model_that_takes_gradients_in_its_forward():
    model = Force().double()
    f = gb.bridge(model)
    x = onp.random.default_rng(0).normal(size=(5, 3))
    onp.testing.assert_allclose(f(f.params, x), model(torch.as_tensor(x)).detach().numpy(), rtol=1e-13)
    own = torch.autograd.grad(
        (model(torch.as_tensor(x)) ** 2).sum(), list(model.parameters()), allow_unused=True
    )
    flat = onp.concatenate(
        [onp.zeros(p.numel()) if g is None else g.numpy().ravel() for p, g in zip(model.parameters(), own)]
    )
    onp.testing.assert_allclose(grad(lambda p: np.sum(f(p, x) ** 2))(f.params), flat, rtol=1e-11, atol=1e-13)


def test_a_model_that_spoils_its_own_derivative_in_place_is_told():
    class InPlace(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.line = torch.nn.Linear(3, 3)

        def forward(self, x):
            y = self.line(x).exp()
            y[:, 0] = y[:, 1] * y[:, 2]
            return y

    f = gb.bridge(InPlace(), dtype="float64")
    with pytest.raises(GuestError, match="write to a clone"):
        grad(lambda p: np.sum(f(p, onp.ones((2, 3)))))(f.params)


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


def test_sparse_gradients_have_second_derivatives():
    f = gb.bridge(nn.Embedding(5, 2, sparse=True, dtype=torch.float64))
    rows = onp.array([1, 1, 3])
    found = hessian(lambda p: np.sum(f(p, rows) ** 2))(f.params)
    onp.testing.assert_allclose(found, onp.diag([0.0, 0, 4, 4, 0, 0, 2, 2, 0, 0]))


def test_gradient_hooks_on_parameters_are_noticed():
    model = nn.Linear(2, 1)
    model.weight.register_hook(lambda g: 2 * g)
    with pytest.warns(
        GradbridgeWarning, match="Linear has gradient hooks on weight; they belong to those tensors"
    ):
        gb.bridge(model)
