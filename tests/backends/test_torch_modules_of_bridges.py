"""`f.as_module()`: a bridge as a torch module, treated as torch's users treat theirs, beside the native one."""

import copy
import io
import pickle

import numpy as np
import pytest

import gradbridge as gb
from gradbridge.errors import InputError, OptionError, ParamsDtypeError

torch = pytest.importorskip("torch")
prune = pytest.importorskip("torch.nn.utils.prune")

from torch import nn  # noqa: E402
from torch_modules import B, Guest, W, X, assert_equal, gradients, x64  # noqa: E402


@pytest.fixture(params=["numpy", "torch", "jax", "autograd"])
def guest(request):
    return Guest(request.param)


@pytest.fixture
def written():
    """The guest that torch alone is enough for."""
    return Guest("numpy").bridge


# What it is.


def test_parameters_are_the_layouts_by_name_shape_and_present_value(guest):
    f = guest.bridge
    module = f.as_module()
    assert tuple(dict(module.named_parameters())) == tuple(module.state_dict()) == f.layout.names
    assert [tuple(p.shape) for p in module.parameters()] == list(f.layout.shapes)
    assert all(type(p) is nn.Parameter and p.is_leaf and p.requires_grad for p in module.parameters())
    np.testing.assert_array_equal(nn.utils.parameters_to_vector(module.parameters()).detach(), f.params)
    assert module.bridge.layout == f.layout


def test_values_and_gradients_are_the_native_ones(guest):
    module = guest.bridge.as_module(dtype="float64")
    x = x64.clone().requires_grad_()
    ours, theirs = module(x), guest.native(module, x)
    assert_equal([ours], [theirs])
    assert_equal(
        gradients(ours.square().sum(), module, x), gradients(theirs.square().sum(), module, x), 1e-12
    )


def test_training_beside_layers_of_torch_goes_as_with_the_native_layer(guest):
    def trained(middle, own):
        torch.manual_seed(0)
        first, last = nn.Linear(4, 3).double(), nn.Linear(2, 1).double()
        model = nn.Sequential(first, middle, last)
        optimizer = torch.optim.Adam([*first.parameters(), *own.parameters(), *last.parameters()], lr=0.05)
        inputs, targets = torch.randn(6, 4).double(), torch.randn(6, 1).double()
        for _ in range(4):
            optimizer.zero_grad()
            for rows in (slice(0, 3), slice(3, 6)):  # accumulated
                (model(inputs[rows]) - targets[rows]).square().sum().backward()
            parameters = [*first.parameters(), *own.parameters(), *last.parameters()]
            nn.utils.clip_grad_norm_(parameters, 0.7)
            optimizer.step()
        return [p.detach() for p in parameters]

    class Native(nn.Module):
        def forward(self, x):
            return guest.native(twin, x)

    module, twin = guest.bridge.as_module(dtype="float64"), guest.bridge.as_module(dtype="float64")
    assert_equal(trained(module, module), trained(Native(), twin), 1e-11)
    assert not torch.equal(next(module.parameters()), next(guest.bridge.as_module().parameters()))


def test_dtypes_are_the_layouts_and_the_precision_is_the_parameters(written):
    single = gb.bridge(nn.Linear(3, 2)).as_module()
    assert {p.dtype for p in single.parameters()} == {torch.float32}
    assert single(torch.ones(1, 3)).dtype is torch.float32
    double = copy.deepcopy(single).double()
    native = nn.Linear(3, 2).double()
    native.load_state_dict(double.state_dict())
    assert_equal([double(x64)], [native(x64)])
    assert_equal([double.to(torch.float32)(x64)], [native(x64).float()], 1e-6)
    module = written.as_module(dtype=torch.float32, device="cpu")
    loss = module(x64).sum()
    assert loss.dtype is torch.float32
    assert all(g.dtype is torch.float32 for g in gradients(loss, module))


@pytest.mark.parametrize("cast", ["half", "bfloat16"])
def test_parameters_of_few_digits_compute_to_as_many(guest, cast):
    module, exact = guest.bridge.as_module(), guest.bridge.as_module(dtype="float64")
    getattr(module, cast)()
    outputs, dtype = module(x64), next(module.parameters()).dtype
    assert outputs.dtype is dtype
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(outputs.double(), exact(x64), rtol=tolerance, atol=tolerance)
    ours, theirs = gradients(outputs.sum(), module), gradients(exact(x64).sum(), exact)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype is dtype
        torch.testing.assert_close(a.double(), b, rtol=4 * tolerance, atol=4 * tolerance)


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_what_parameters_cannot_be_is_said(written):
    with pytest.raises(OptionError, match='floating dtype, torch.float64 or "float64", got torch.int64'):
        written.as_module(dtype=torch.int64)
    with pytest.raises(OptionError, match="got 'nn'"):
        written.as_module(dtype="nn")
    with pytest.raises(ParamsDtypeError, match="expected real params"):
        written.as_module().to(torch.complex128)(x64)
    with pytest.raises(InputError):
        written.as_module(device="meta")(x64)


# Names.


def ordered(p, x):
    return x * sum((i + 1) * p[name].sum() for i, name in enumerate(AWKWARD))


AWKWARD = [
    "half",
    "half_",
    "a",
    "a.b",
    "a.c.d",
    "a.c",
    "bridge",
    "training",
    "",
    "layers/0/w",
    "_paths",
    ".x.",
    "a.type",
]


def test_any_names_of_a_layout_are_taken_and_come_round():
    def slope(ans, p, x):
        return lambda v: {name: np.full(2, (i + 1) * (v * x).sum()) for i, name in enumerate(AWKWARD)}

    tree = {name: np.full(2, float(i)) for i, name in enumerate(AWKWARD)}
    f = gb.bridge(ordered, params=tree, backend="numpy", vjp=(slope, lambda ans, p, x: lambda v: v * ans / x))
    module = f.as_module()
    keys = set(module.state_dict())
    assert len(keys) == len(AWKWARD)
    assert {"half_", "half__", "a", "a_.b", "a_.c_.d", "a_.c", "layers/0/w", "a_.type_"} <= keys
    assert module.training is True
    assert module.half is not None
    x = torch.ones(3).double()
    expected = sum(2 * (i + 1) * i for i in range(len(AWKWARD)))
    np.testing.assert_allclose(module(x).detach(), np.full(3, expected), rtol=1e-15)
    other = copy.deepcopy(module)
    with torch.no_grad():
        [p.zero_() for p in other.parameters()]
    assert torch.equal(other(x).detach(), torch.zeros(3).double())
    other.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(other(x), module(x))
    zeros = {key: torch.zeros(2).double() for key in keys}
    assert torch.equal(torch.func.functional_call(module, zeros, (x,)), torch.zeros(3).double())


def test_a_torch_guests_state_goes_both_ways():
    native = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 2))).double()
    module = gb.bridge(native).as_module()
    other = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 2))).double()
    other.load_state_dict(module.state_dict(), strict=True)
    assert_equal([module(x64)], [other(x64)])
    assert list(module.state_dict()) == ["0.weight", "0.bias", "1.1.weight", "1.1.bias"]
    trained = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 2))).double()
    module.load_state_dict(trained.state_dict(), strict=True)
    assert_equal([module(x64)], [trained(x64)])
    assert_equal([native(x64)], [other(x64)])  # the user's is as it was


# Copies, files, freezing.


def test_copies_have_parameters_of_their_own_and_share_the_bridge(guest):
    module = guest.bridge.as_module()
    twin = copy.deepcopy(nn.Sequential(module, module))
    assert twin[0] is twin[1]
    assert twin[0].bridge is module.bridge
    with torch.no_grad():
        [p.add_(1.0) for p in twin.parameters()]
    assert_equal([module(x64)], [guest.native(module, x64)])
    assert_equal([twin[0](x64)], [guest.native(twin[0], x64)])
    assert not torch.equal(module(x64), twin[0](x64))


def test_pickles_and_files_hold_model_and_parameters(written):
    module = written.as_module()
    with torch.no_grad():
        module.b.add_(1.0)
    expected = module(x64)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x64), expected)
    file = io.BytesIO()
    torch.save(nn.Sequential(module, nn.Identity()), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x64), expected)
    assert_equal(gradients(loaded(x64).sum(), loaded), gradients(expected.sum(), module), 0)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh = written.as_module()
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(fresh(x64), expected)
    with pytest.raises(RuntimeError, match='Missing key.*"b"'):
        fresh.load_state_dict({"w": module.w})


def test_what_cannot_pickle_is_named_and_its_state_can_be_saved():
    f = gb.bridge(lambda p, x: x * p["a"], params={"a": np.ones(3)}, backend="numpy", gradient="numeric")
    module = f.as_module()
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(module)
    f.as_module().load_state_dict(pickle.loads(pickle.dumps(module.state_dict())))
    assert torch.equal(copy.deepcopy(module)(x64), x64)


def test_frozen_parameters_stay_and_get_no_gradient(guest):
    module = guest.bridge.as_module()
    first, *others = module.parameters()
    first.requires_grad_(False)
    before = first.clone()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module(x64).square().sum().backward()
    expected = torch.autograd.grad(guest.native(module, x64).square().sum(), others)
    assert first.grad is None
    assert_equal([p.grad for p in others], expected)
    optimizer.step()
    assert torch.equal(first, before)
    module.requires_grad_(False)
    assert not module(x64).requires_grad


# torch.func and torch.nn.utils.


def test_functional_call_is_differentiated_and_mapped_over_parameters(guest):
    modules = [guest.bridge.as_module() for _ in range(3)]
    for i, module in enumerate(modules):
        with torch.no_grad():
            [p.mul_(1.0 + 0.1 * i) for p in module.parameters()]
    stacked, _ = torch.func.stack_module_state(modules)

    def loss(p):
        return torch.func.functional_call(modules[0], p, (x64,)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(stacked)
    for i, module in enumerate(modules):
        expected = gradients(guest.native(module, x64).square().sum(), module)
        assert_equal([found[name][i] for name, _ in module.named_parameters()], expected)


def test_gradients_per_example_are_those_of_each_row_alone(guest):
    module = guest.bridge.as_module()
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def loss(p, row):
        return torch.func.functional_call(module, p, (row[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x64)
    for i in range(len(X)):
        expected = gradients(guest.native(module, x64[i : i + 1]).square().sum(), module)
        assert_equal([g[i] for g in found.values()], expected)


def test_vectors_and_parametrizations_of_torch_reach_the_model(written):
    module = written.as_module()
    nn.utils.vector_to_parameters(2 * nn.utils.parameters_to_vector(module.parameters()), module.parameters())
    assert_equal([module(x64)], [torch.from_numpy(np.tanh(2 * (X @ W + B)))])

    class Square(nn.Module):
        def forward(self, p):
            return p.square()

    nn.utils.parametrize.register_parametrization(module, "w", Square())
    original = module.parametrizations.w.original
    expected = torch.tanh(x64 @ original.square() + module.b).sum()
    assert_equal(
        torch.autograd.grad(module(x64).sum(), original), torch.autograd.grad(expected, original), 1e-12
    )
    twin = written.as_module()
    prune.random_unstructured(twin, "w", 0.5)
    assert (twin.w == 0).sum() == 3
    assert_equal([twin(x64)], [torch.tanh(x64 @ twin.w + twin.b)])
    module.b.data = torch.zeros(2).double()
    assert_equal([module(x64)], [torch.tanh(x64 @ module.w)])
