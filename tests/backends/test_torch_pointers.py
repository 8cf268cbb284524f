"""What is copied on the way into torch and out of it, told by where the memory lies."""

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.call_spec import CallSpec  # noqa: E402

X = onp.random.default_rng(0).normal(size=(4, 3))


def reader():
    """Layers of torch's own, which write to none of their arguments."""
    return gb.bridge(nn.Linear(3, 2, dtype=torch.float64)).adapter


def writer():
    """Code of the user's, which may."""
    return gb.bridge(lambda x: x.mul_(2), backend="torch").adapter


def shared(array, tensor):
    return onp.shares_memory(array, tensor.detach().numpy())


def no_second_copy(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("copied twice")

    monkeypatch.setattr(torch.Tensor, "clone", refuse)


def test_what_the_caller_could_change_is_copied():
    for framework in (reader().framework, writer().framework):
        tensor = torch.ones(3, dtype=torch.float64)
        assert not shared(X, framework.asarray(X, torch.float64))
        assert framework.asarray(tensor, torch.float64).data_ptr() != tensor.data_ptr()
        view = X.view()
        view.setflags(write=False)  # X itself can be written to
        assert not shared(X, framework.asarray(view, torch.float64))


def test_a_cast_is_the_copy(monkeypatch):
    no_second_copy(monkeypatch)
    for framework in (reader().framework, writer().framework):
        assert framework.asarray(torch.ones(3), torch.float64).dtype is torch.float64
        assert framework.asarray(X, torch.float32).dtype is torch.float32
        assert framework.asarray(X, torch.bfloat16).dtype is torch.bfloat16


@pytest.mark.parametrize("library", ["jax", "tensorflow"])
def test_arrays_that_nobody_can_change_are_shared_with_a_model_that_only_reads(library):
    module = pytest.importorskip("jax.numpy" if library == "jax" else library)
    array = module.ones(5, dtype=module.float32)
    pointer = array.unsafe_buffer_pointer() if library == "jax" else onp.from_dlpack(array).ctypes.data
    assert reader().framework.asarray(array, torch.float32).data_ptr() == pointer
    assert reader().framework.asarray(array, None).data_ptr() == pointer
    copied = writer().framework.asarray(array, torch.float32)
    assert copied.data_ptr() != pointer
    assert copied.dtype is torch.float32


@pytest.mark.parametrize("layer", [nn.ReLU(inplace=True), nn.Embedding(3, 3, max_norm=1.0)])
def test_layers_that_write_are_known(layer):
    net = nn.Sequential(nn.Linear(3, 3), layer).double()
    assert not gb.bridge(net).adapter.framework.only_reads
    assert reader().framework.only_reads


def test_cotangents_are_lent_to_a_model_that_only_reads():
    cotangent = onp.ones((4, 2))
    assert shared(cotangent, reader().framework.lend(cotangent, torch.float64))
    assert not shared(cotangent, writer().framework.lend(cotangent, torch.float64))
    assert not shared(cotangent, reader().framework.lend(cotangent, torch.float32))
    assert not shared(cotangent, reader().framework.lend(cotangent[:, ::-1], torch.float64))
    cotangent.setflags(write=False)  # torch has no tensors that cannot be written to
    assert shared(cotangent, reader().framework.lend(cotangent, torch.float64))
    assert not shared(cotangent, writer().framework.lend(cotangent, torch.float64))


@pytest.mark.parametrize("kind", ["torch", "jax", "tensorflow"])
def test_adapters_take_arrays_of_any_library_and_give_tensors(kind):
    adapter = reader()
    weights = adapter.weights()
    if kind == "torch":
        x, weights = torch.tensor(X), [torch.tensor(w) for w in weights]
    else:
        module = pytest.importorskip("jax.numpy" if kind == "jax" else kind)
        make = module.asarray if kind == "jax" else module.constant
        x, weights = make(X), [make(w) for w in weights]
    outputs, residuals = adapter.forward(adapter.update(weights), [x], CallSpec.of_arrays(1), (0, 1, 2))
    gradients = adapter.backward(residuals, [torch.ones(4, 2, dtype=torch.float64)], (0, 1, 2))
    for tensor in (outputs, *gradients):
        assert type(tensor) is torch.Tensor
        assert not tensor.requires_grad
        assert shared(adapter.border.view(tensor), tensor)
    w, b = (onp.asarray(a) for a in adapter.weights())
    tolerance = 1e-6 if kind == "jax" else 1e-14  # JAX makes float32 of it
    onp.testing.assert_allclose(outputs.numpy(), X @ w.T + b, rtol=tolerance, atol=tolerance)
    onp.testing.assert_allclose(gradients[2].numpy(), onp.ones((4, 2)) @ w, rtol=tolerance, atol=tolerance)


def test_the_callers_arrays_and_the_users_own_are_never_written_to():
    mine, other = X.copy(), X.copy()
    f = gb.primitive(backend="torch")(lambda x, y: x * y.mul_(2))
    onp.testing.assert_allclose(grad(lambda x: np.sum(f(x, other)))(mine), 2 * X, rtol=1e-14)
    assert onp.array_equal(mine, X)
    assert onp.array_equal(other, X)


def test_one_conversion_of_the_vector_serves_all_weights_and_one_call_joins_them():
    adapter = gb.bridge(nn.Sequential(*[nn.Linear(3, 3) for _ in range(20)]), dtype="float64").adapter
    vector = onp.arange(float(adapter.layout.size))
    weights = adapter.border.cut(vector)
    assert len({w.untyped_storage().data_ptr() for w in weights}) == 1
    assert not any(shared(vector, w) for w in weights)
    joined = adapter.border.join(weights)
    assert onp.array_equal(joined, vector)
    joined[:] = 0.0
    assert onp.array_equal(adapter.border.join(weights), vector)


@pytest.mark.parametrize("shapes", [[(0, 3), (3,)], [()], [(300, 300)], [], [(2, 1)]])
def test_cut_and_join_of_odd_shapes(shapes):
    tree = [torch.rand(shape) for shape in shapes]
    f = gb.bridge(lambda p, x: x, params=tree, backend="torch", dtype="float64")
    border, size = f.adapter.border, f.layout.size
    vector = onp.random.default_rng(0).normal(size=size)
    weights = border.cut(vector)
    assert [tuple(w.shape) for w in weights] == shapes
    joined = border.join(weights) if weights else onp.empty(0)
    assert onp.array_equal(joined, vector)
    if weights:
        joined += 1.0
        assert onp.array_equal(border.join(weights), vector)
