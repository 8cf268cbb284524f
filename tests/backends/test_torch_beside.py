"""What torch models return next to their tensors comes through as it is, and keeps no graph alive."""

import collections
import dataclasses
import gc
import warnings
import weakref

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian_vector_product

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import GradbridgeWarning, OutputError  # noqa: E402

X = onp.random.default_rng(0).normal(size=(4, 3))


class Layer:
    __slots__ = ("keys", "name")

    def __init__(self, keys, name):
        self.keys, self.name = keys, name


class Cache:
    """As decoders keep them: layers in a list, each with tensors, and a way back."""

    def __init__(self, keys):
        self.layers = [Layer(keys, "first"), Layer(keys.detach(), "second")]
        self.owner = self


@dataclasses.dataclass
class Mixed:
    logits: object
    kind: str = "mean"
    count: int = 3
    cache: object = None
    rest: object = None


Pair = collections.namedtuple("Pair", "values cache")


class Decoder(nn.Module):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.make = nn.Linear(3, 3).double(), make

    def forward(self, x):
        h = torch.tanh(self.hidden(x))
        return self.make(h**2, h)


def squares(p, x):
    return np.tanh(x @ p[:9].reshape(3, 3).T + p[9:]) ** 2


@pytest.mark.parametrize(
    ("make", "tensor", "kept"),
    [
        (
            lambda y, h: {"logits": y, "cache": Cache(h), "loss": None},
            lambda o: o["logits"],
            lambda o: o["cache"],
        ),
        (lambda y, h: (Cache(h), y), lambda o: o[1], lambda o: o[0]),
        (lambda y, h: Mixed(y, cache=Cache(h), rest=(h, "words")), lambda o: o.logits, lambda o: o.cache),
        (lambda y, h: Pair(y, [Cache(h), 3]), lambda o: o.values, lambda o: o.cache[0]),
    ],
    ids=["dict", "tuple", "dataclass", "namedtuple"],
)
def test_a_cache_comes_through_and_tensors_have_their_gradients(make, tensor, kept):
    f = gb.bridge(Decoder(make))
    p, v = f.params, onp.random.default_rng(1).normal(size=12)
    out = f(p, X)
    assert type(out) is type(make(torch.zeros(1), torch.zeros(1)))
    onp.testing.assert_allclose(tensor(out), squares(p, X))
    assert type(kept(out)) is Cache
    assert isinstance(kept(out).layers[0].keys, torch.Tensor)
    ours, truth = (lambda q, g=g: np.sum(np.sin(g(q, X))) for g in (lambda q, x: tensor(f(q, x)), squares))
    onp.testing.assert_allclose(grad(ours)(p), grad(truth)(p), rtol=1e-10)
    onp.testing.assert_allclose(
        hessian_vector_product(ours)(p, v), hessian_vector_product(truth)(p, v), rtol=1e-9, atol=1e-12
    )


def test_words_and_counts_next_to_tensors_are_those_that_the_model_returned():
    made = object()
    f = gb.bridge(Decoder(lambda y, h: {"y": y, "name": "tanh", "depth": 2, "flag": True, "made": made}))
    out = f(f.params, X)
    assert (out["name"], out["depth"], out["flag"]) == ("tanh", 2, True)
    assert out["made"] is made
    seen = []
    grad(lambda p: seen.append(f(p, X)) or np.sum(seen[0]["y"]))(f.params)
    assert seen[0]["made"] is made


def test_derivatives_have_none_where_there_is_no_tensor():
    f = gb.bridge(Decoder(lambda y, h: {"y": y, "cache": Cache(h)}))
    p, t = f.params, onp.ones(12)
    J = f.jacobian(p, X)
    assert J["cache"] is None
    assert J["y"].shape == (4, 3, 12)
    onp.testing.assert_allclose(f.jvp(p, X, tangent=t)["y"], J["y"] @ t, rtol=1e-10)
    c = onp.ones((4, 3))
    onp.testing.assert_allclose(
        f.vjp(p, X, cotangent={"y": c, "cache": None}), J["y"].sum((0, 1)), rtol=1e-10
    )
    assert f.output_spec(X)["cache"] is None


def test_what_comes_through_keeps_no_graph_and_shows_no_weights():
    graphs = []

    def make(y, h):
        graphs.append(weakref.ref(h))
        return y, Cache(h)

    f = gb.bridge(Decoder(make))
    kept = []
    grad(lambda p: kept.append(f(p, X)) or np.sum(kept[0][0]))(f.params)
    cache = kept[0][1]
    kept.clear()
    gc.collect()
    assert graphs[-1]() is None
    assert not cache.layers[0].keys.requires_grad
    assert cache.layers[0].keys.grad_fn is None
    assert cache.owner is cache
    assert cache.layers[0].name == "first"
    onp.testing.assert_allclose(cache.layers[0].keys.numpy() ** 2, squares(f.params, X))


def test_a_python_number_next_to_tensors_is_said_to_be_a_constant():
    f = gb.bridge(Decoder(lambda y, h: (y, y.sum().item())))
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradbridgeWarning)
        assert f(f.params, X)[1] == pytest.approx(squares(f.params, X).sum())
    with pytest.warns(GradbridgeWarning, match=r"returned a float next to its tensors.*without \.item\(\)"):
        grad(lambda p: np.sum(f(p, X)[0]))(f.params)


def test_no_tensor_at_all_is_refused():
    f = gb.bridge(Decoder(lambda y, h: Cache(h)))
    with pytest.raises(OutputError, match="is a Cache; a bridged model returns an array"):
        f(f.params, X)
    f = gb.bridge(Decoder(lambda y, h: ("words", None, Cache(h))))
    with pytest.raises(OutputError, match="returned no array"):
        f(f.params, X)


def test_caches_of_several_chunks_are_refused_by_the_name_of_their_field():
    f = gb.bridge(Decoder(lambda y, h: {"y": y, "cache": Cache(h)}), rows_per_chunk=2)
    with pytest.raises(OutputError, match=r"output \['cache'\] of Decoder is a Cache.*rows_per_chunk="):
        f(f.params, X)
