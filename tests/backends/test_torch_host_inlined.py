"""A model of torch's own within a program of torch: natively, in the program's own graph, and as pure as elsewhere."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_programs import (  # noqa: E402
    INPUTS,
    X3,
    Net,
    assert_same,
    bridge_over,
    called_once,
    linear,
    native,
    vector,
    weights_of,
)

import gradbridge as gb  # noqa: E402
from gradbridge.errors import GuestError, InputError  # noqa: E402

X = X3


def test_it_is_a_part_of_the_programs_own_graph():
    f = called_once(nn.Sequential(linear(), nn.Tanh()))
    w = weights_of(f)
    y = f(w, X)
    assert "Tanh" in type(y.grad_fn).__name__
    named = dict(zip(f.layout.names, w))
    expected = torch.tanh(X @ named["0.weight"].T + named["0.bias"])
    assert torch.equal(y, expected)
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), w), torch.autograd.grad(expected.sum(), w), rtol=0, atol=1e-14
    )


def test_steps_are_counted_where_somebody_counts():
    f = called_once(nn.Sequential(linear(), nn.Tanh()))
    w = weights_of(f)
    with gb.trace() as t:
        torch.autograd.grad(f(w, X).sum(), w)
    assert t.counts == {"update": 1, "forward": 1, "zero": 1, "backward": 1}


# -- law 5: what belongs to the program stays as it is -------------------------------------------


def test_a_model_that_writes_to_its_input_writes_to_a_copy():
    f = called_once(Net(lambda m, x: m.layer(x.add_(1.0))))
    x = X.clone()
    f(weights_of(f), x)
    assert torch.equal(x, X)


def test_a_model_that_comes_to_write_to_its_input_writes_to_a_copy_too():
    f = called_once(Net(lambda m, x: m.layer(x.add_(1.0) if x.sum() > 100 else x)))
    x = X + 50
    f(weights_of(f), x)
    assert torch.equal(x, X + 50)


def test_a_model_that_comes_to_write_to_a_parameter_is_told_of_and_computed_with_copies_then():
    def body(model, x):
        if x.sum() > 100:
            with torch.no_grad():
                model.layer.weight.add_(1.0)
        return model.layer(x)

    f = called_once(Net(body))
    with pytest.raises(GuestError, match="wrote to its parameters in place"):
        f(weights_of(f), X + 50)
    w = weights_of(f)
    before = [t.detach().clone() for t in w]
    f(w, X + 50)
    assert all(torch.equal(a, b) for a, b in zip(w, before))


def test_the_programs_tensors_are_neither_made_parameters_nor_tracked():
    f = called_once(Net(lambda m, x: m.layer(x) * isinstance(m.layer.weight, nn.Parameter)))
    plain = [w.detach() for w in weights_of(f)]
    frozen = [nn.Parameter(w.clone(), requires_grad=False) for w in plain]
    for w in (plain, frozen):
        y = f(w, X)
        assert y.abs().sum() > 0
        assert not y.requires_grad
        assert not any(t.requires_grad for t in w)
    assert not any(isinstance(t, nn.Parameter) for t in plain)


def test_outputs_have_memory_of_their_own():
    constant = torch.ones(2, dtype=torch.float64)
    params = {"a": torch.ones(2, dtype=torch.float64)}
    f = gb.bridge(lambda p, x: (p["a"] * 2, x, p["a"], x.T, constant), params=params, backend="torch")
    p = {"a": torch.ones(2, dtype=torch.float64, requires_grad=True)}
    f(p, X)[0].sum().backward()
    for grad in (torch.enable_grad(), torch.no_grad()):
        with grad:
            outputs = f(p, X)
        held = [t.untyped_storage().data_ptr() for t in (p["a"], X, constant)]
        assert not any(y.untyped_storage().data_ptr() in held for y in outputs)
    flatten = gb.bridge(nn.Flatten())
    x = torch.ones(2, 2)
    assert flatten(torch.empty(0), x).untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


# -- laws 3, 4 and 10: what a model keeps, and what it computes with -----------------------------


def test_what_a_model_keeps_between_calls_is_not_seen_by_the_next():
    def body(model, x):
        if getattr(model, "memo", None) is None:
            model.memo = model.layer.weight * 2
        return x @ model.memo.T

    f = called_once(Net(body))
    w = weights_of(f)
    twice = [2 * t.detach() for t in w]
    torch.testing.assert_close(f(twice, X), 2 * f(w, X), rtol=0, atol=1e-12)


def test_buffers_that_a_forward_writes_to_are_fresh_in_each_call():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = linear()
            self.register_buffer("count", torch.zeros(2, dtype=torch.float64))

        def forward(self, x):
            self.count += 1
            return self.layer(x) + self.count

    f = called_once(Counting())
    w = weights_of(f)
    assert torch.equal(f(w, X), f(w, X))


def test_a_tensor_of_the_users_that_takes_part_is_held_constant():
    outside = nn.Parameter(torch.ones(2, dtype=torch.float64))
    with pytest.warns(gb.errors.GradbridgeWarning, match="held constant"):
        f = called_once(Net(lambda m, x: m.layer(x) * outside))
    w = weights_of(f)
    f(w, X).sum().backward()
    assert outside.grad is None
    assert w[0].grad is not None


def test_a_checkpoint_within_the_model_keeps_the_weights_of_its_call():
    f = called_once(Net(lambda m, x: checkpoint(m.layer, x, use_reentrant=False)))
    w = weights_of(f)
    first, second = f(w, X), f([2 * t.detach() for t in w], X)
    named = dict(zip(f.layout.names, torch.autograd.grad((first**2).sum(), w)))
    own = dict(zip(f.layout.names, w))
    y = X @ own["layer.weight"].T + own["layer.bias"]
    torch.testing.assert_close(named["layer.weight"], (2 * y.T @ X).detach(), rtol=0, atol=1e-11)
    assert second.shape == first.shape


def test_a_model_that_takes_gradients_itself_is_differentiated():
    def body(model, x):
        u = torch.tanh(model.layer(x))
        return torch.autograd.grad(u.sum(), x, create_graph=True)[0]

    f = called_once(Net(body, 1))
    own = dict(zip(f.layout.names, weights_of(f)))
    x = X.clone().requires_grad_()
    u = torch.tanh(x @ own["layer.weight"].T + own["layer.bias"])
    expected = (torch.autograd.grad(u.sum(), x, create_graph=True)[0] ** 2).sum()
    for inputs in (X, x):
        found = torch.autograd.grad((f(own, inputs) ** 2).sum(), own["layer.weight"])
        torch.testing.assert_close(
            found, torch.autograd.grad(expected, own["layer.weight"], retain_graph=True), rtol=0, atol=1e-11
        )


def test_a_model_with_another_way_for_values_alone_gives_the_same_values():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, dtype=torch.float64).eval()
    z = torch.randn(2, 3, 4, dtype=torch.float64)
    mask = torch.tensor([[False, False, True], [False, False, False]])
    f = gb.bridge(layer)
    w = weights_of(f)
    f(w, z, src_key_padding_mask=mask).sum().backward()
    y = f([t.detach() for t in w], z, src_key_padding_mask=mask)
    torch.testing.assert_close(y, f(w, z, src_key_padding_mask=mask).detach(), rtol=0, atol=1e-13)
    assert not y.requires_grad


def test_a_model_that_fails_says_what_failed_as_in_any_host():
    f = called_once(nn.Sequential(linear(), nn.Tanh()))
    with pytest.raises(InputError, match="layer '0'"):
        f(weights_of(f), X[:, :1])
    with pytest.raises(InputError, match="layer '0'"):
        torch.func.grad(lambda x: f(weights_of(f), x).sum())(X[:, :1])


def test_a_recording_of_it_holds_for_other_arrays():
    f = called_once(nn.Sequential(linear(), nn.Tanh()))
    w = [t.detach() for t in weights_of(f)]
    traced = torch.jit.trace(lambda a, b, x: f([a, b], x), (*w, X))
    assert torch.equal(traced(2 * w[0], w[1], X), f([2 * w[0], w[1]], X))


@pytest.mark.parametrize("options", [{"reuse": 2}, {"check_finite": True}, {"rows_per_chunk": 2}], ids=str)
def test_options_of_the_bridge_hold_as_in_any_host(options):
    f, plain = (
        called_once(nn.Sequential(linear(), nn.Tanh()), **options),
        called_once(nn.Sequential(linear(), nn.Tanh())),
    )
    w = weights_of(f)
    torch.testing.assert_close(f(w, X), plain(w, X), rtol=0, atol=1e-14)
    if "reuse" in options:
        f(w, X)
        assert f.memory.hits
    if "check_finite" in options:
        with pytest.raises(gb.errors.NonFiniteParamsError):
            f([t.detach() * float("nan") for t in w], X)


def test_sparse_gradients_are_dense_in_every_call():
    f = gb.bridge(nn.Embedding(5, 3, sparse=True))
    module, vector = f.as_module(), torch.ones(15, requires_grad=True)
    expected = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])[:, None].expand(5, 3)
    for _ in range(4):
        module.zero_grad()
        module(torch.tensor([0, 1])).sum().backward()
        (weight,) = module.parameters()
        (gradient,) = torch.autograd.grad(f(vector, torch.tensor([0, 1])).sum(), vector)
        assert_same([weight.grad, gradient.view(5, 3)], [expected, expected])


class Clamps(nn.Module):
    """Writes to its weight where torch does not count it."""

    def __init__(self, write):
        super().__init__()
        self.w, self.write = nn.Parameter(torch.tensor([-1.0, 2.0])), write

    def forward(self, x):
        self.write(self.w)
        return (self.w * x).sum()


@pytest.mark.parametrize(
    "write", [lambda w: w.data.clamp_(min=0), lambda w: w.detach().numpy().clip(0, out=w.detach().numpy())]
)
def test_what_a_model_writes_to_its_weights_uncounted_stays_in_the_model(write):
    f = gb.bridge(Clamps(write))
    w = torch.tensor([-1.0, 2.0], dtype=torch.float64, requires_grad=True)
    for _ in range(4):
        assert f({"w": w}, torch.ones(2, dtype=torch.float64)).item() == 2.0
        assert w.tolist() == [-1.0, 2.0]


@pytest.mark.parametrize("calls", [0, 1])
def test_a_first_call_within_a_checkpoint_saves_what_the_second_does(calls):
    f, p = bridge_over("torch"), vector().requires_grad_()
    for _ in range(calls):
        f(p, INPUTS)

    def program(p):
        return torch.sin(f(p, INPUTS))

    found = torch.autograd.grad(checkpoint(program, p, use_reentrant=False).sum(), p)
    assert_same(found, torch.autograd.grad(torch.sin(native(p, INPUTS)).sum(), p))
