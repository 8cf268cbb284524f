"""A model of torch's own within a program of torch: what is ambient there is neither changed nor trusted (law 9)."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_programs import X3, Net, called_once, linear, weights_of  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import HostError  # noqa: E402

X = X3


def lossy(t):
    return t.half()


AMBIENT = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "lossy hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lossy, lambda t: t.double()),
    "a default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("ambient", AMBIENT)
@pytest.mark.parametrize("model", ["torch's own", "the user's"])
def test_what_is_ambient_changes_nothing(model, ambient):
    module = nn.Sequential(linear(), nn.Tanh())
    if model == "the user's":
        module = Net(lambda m, x: torch.tanh(m.layer(x)) + torch.zeros(2))
    f = called_once(module)
    w = weights_of(f)
    expected = torch.autograd.grad((f(w, X) ** 2).sum(), w)
    with AMBIENT[ambient]():
        y = f(w, X)
    found = torch.autograd.grad((y**2).sum(), w)
    assert y.dtype is torch.float64
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_the_default_dtype_is_that_of_when_it_was_bridged():
    f = called_once(Net(lambda m, x: m.layer(x) + torch.ones(2) / 3))
    w = weights_of(f)
    expected = f(w, X)
    torch.set_default_dtype(torch.float16)
    try:
        assert torch.equal(f(w, X), expected)
        assert torch.get_default_dtype() is torch.float16
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_was_computed_in_inference_mode_serves_gradients_later():
    f = called_once(Net(lambda m, x: m.layer(x)))
    w = weights_of(f)
    with torch.inference_mode():
        assert not f(w, X).requires_grad
    f(w, X).sum().backward()
    assert all(t.grad is not None for t in w)


def test_random_numbers_of_a_model_are_its_own_whenever_it_comes_to_draw_them():
    always = called_once(Net(lambda m, x: nn.functional.dropout(m.layer(x), 0.5, True)))
    late = called_once(Net(lambda m, x: m.layer(x) + (torch.randn(2) if x.sum() > 100 else 0.0)))
    state = torch.get_rng_state()
    for f, x in ((always, X), (late, X + 50), (late, X + 50)):
        w = weights_of(f)
        assert torch.equal(f(w, x), f(w, x))
    mapped = torch.func.vmap(lambda x: late(weights_of(late), x))(torch.stack([X + 50, X + 50]))
    assert torch.equal(mapped[0], mapped[1])
    assert torch.equal(state, torch.get_rng_state())


def test_a_model_in_train_mode_draws_its_masks_by_the_bridges_seed():
    model = nn.Sequential(linear(20), nn.Dropout(0.5))
    w = weights_of(gb.bridge(model, mode="train"))
    frozen = called_once(model, mode="train")
    assert torch.equal(frozen(w, X), frozen(w, X))
    each = called_once(model, mode="train", noise="per_call")
    assert not torch.equal(each(w, X), each(w, X))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_call_that_draws_anew_is_refused_within_a_checkpoint_which_makes_it_twice(reentrant):
    f = called_once(nn.Sequential(linear(20), nn.Dropout(0.5)), mode="train", noise="per_call")
    w = weights_of(f)
    with pytest.raises(HostError, match="would not belong together"):
        checkpoint(lambda *w: (f(list(w), X) ** 2).sum(), *w, use_reentrant=reentrant).backward()
