"""A call leaves the storage of the user's tensors as it is: torch may resize it, as FSDP does between uses."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import gradbridge as gb  # noqa: E402


def sine():
    return gb.primitive(lambda x: np.sin(x), vjp=lambda ans, x: lambda v: v * np.cos(x))


def in_torch():
    return gb.primitive(torch.sin, backend="torch")


def in_jax():
    jax = pytest.importorskip("jax")
    return gb.primitive(jax.numpy.sin, backend="jax")


@pytest.mark.parametrize("make", [sine, in_torch, in_jax])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64, torch.int64])
def test_a_tensor_can_be_resized_after_a_call(make, dtype):
    f = make()
    x = torch.arange(4).to(dtype)
    if dtype.is_complex and make is sine:
        pytest.skip("a written rule takes real numbers")
    if dtype is torch.int64:
        f(x)
    else:
        y = f(x.requires_grad_())
        torch.testing.assert_close(torch.autograd.grad(y.real.sum(), x)[0], torch.cos(x.detach()).conj())
    x.detach_().resize_(8)
    assert x.untyped_storage().resizable()


def views():
    z = torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128)
    yield "conjugate", z.conj()
    yield "negative", z.conj().imag
    yield "expanded", torch.ones(1, dtype=torch.float64).expand(3)
    yield "strided", torch.arange(6.0, dtype=torch.float64).reshape(2, 3).t()[::2]
    yield "without axes", torch.tensor(2.0)
    yield "empty", torch.ones(0, 3)
    yield "without memory of its own", torch._efficientzerotensor((3,))
    yield "whole", torch.tensor([True, False])
    yield "half", torch.tensor([1.5], dtype=torch.bfloat16)


@pytest.mark.parametrize(("kind", "tensor"), views(), ids=[kind for kind, _ in views()])
def test_what_crosses_are_the_numbers_of_any_view(kind, tensor):
    got = gb.primitive(lambda x: np.array(x))(tensor)
    torch.testing.assert_close(got, tensor.clone().resolve_conj().resolve_neg())


def test_lazy_views_come_back_from_a_model_of_torch_as_their_numbers():
    z = np.array([1 + 2j, 3 - 1j])
    np.testing.assert_array_equal(gb.primitive(torch.conj, backend="torch")(z), z.conj())
    np.testing.assert_array_equal(gb.primitive(lambda x: x.conj().imag, backend="torch")(z), -z.imag)


def test_cotangents_are_lazy_views_too():
    pytest.importorskip("jax")
    double = gb.primitive(lambda a: a * 2, backend="jax")
    w = torch.tensor([1 + 2j], dtype=torch.complex128, requires_grad=True)
    double(w).imag.sum().backward()
    assert w.grad.item() == 2j


def test_freed_memory_is_refused():
    x = torch.ones(3)
    x.untyped_storage().resize_(0)
    with pytest.raises(gb.errors.InputError, match="its memory was freed"):
        sine()(x)


def test_a_model_and_its_weights_can_be_resized_after_they_were_bridged():
    net = torch.nn.Linear(3, 2)
    f = gb.bridge(net)
    f(f.params, np.ones((1, 3)))
    for weight in net.parameters():
        assert weight.untyped_storage().resizable()


def test_a_fully_sharded_module_of_a_bridge_trains_as_the_same_native_one(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh

    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this torch has no fully_shard")
    jnp = pytest.importorskip("jax.numpy")
    weight = np.linspace(-1, 1, 15).reshape(3, 5).astype("f4")
    x = torch.linspace(-2, 2, 12).reshape(4, 3)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        f = gb.bridge(lambda p, x: jnp.tanh(x @ p["w"]), params={"w": weight}, backend="jax")
        module = f.as_module().float()
        fsdp.fully_shard(module, mesh=mesh)
        native = torch.nn.Parameter(torch.tensor(weight))
        ours = torch.optim.SGD(module.parameters(), lr=0.1)
        theirs = torch.optim.SGD([native], lr=0.1)
        for _ in range(3):
            loss, expected = module(x).square().sum(), torch.tanh(x @ native).square().sum()
            loss.backward()
            expected.backward()
            torch.testing.assert_close(loss, expected)
            for optimizer in (ours, theirs):
                optimizer.step()
                optimizer.zero_grad()
        (own,) = module.parameters()
        torch.testing.assert_close(own.full_tensor(), native)
    finally:
        torch.distributed.destroy_process_group()
