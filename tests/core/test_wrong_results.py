"""What an adapter returns is looked at before anybody uses it: count, shape and kind of numbers, on every way to a host."""

from dataclasses import replace

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad

import gradbridge as gb
from gradbridge.errors import GradientMismatchError
from gradbridge.protocol import GuestOptions
from gradbridge.testing.reference import PaperModel, ReferenceAdapter
from gradbridge.testing.scenarios import SCENARIOS

MLP = SCENARIOS["mlp"]
RNG = np.random.default_rng(0)
PARAMS, X, V = MLP.draw_params(RNG), RNG.normal(size=(5, 3)), RNG.normal(size=(5, 2))
THETA, U = MLP.ravel(PARAMS), RNG.normal(size=MLP.size)

WRONG = {
    "too few": lambda arrays: arrays[:-1],
    "none": lambda arrays: [],
    "too many": lambda arrays: [*arrays, arrays[-1]],
    "None for one": lambda arrays: [None, *arrays[1:]],
    "None for all": lambda arrays: None,
    "a number": lambda arrays: [1.0, *arrays[1:]],
    "0-d": lambda arrays: [np.array(1.0), *arrays[1:]],
    "leading axis": lambda arrays: [arrays[0][None], *arrays[1:]],
    "a column": lambda arrays: [arrays[0][..., None], *arrays[1:]],
    "one row": lambda arrays: [arrays[0][:1], *arrays[1:]],
    "one row of the last": lambda arrays: [*arrays[:-1], arrays[-1][:1]],
    "flat": lambda arrays: [arrays[0].reshape(-1), *arrays[1:]],
    "transposed": lambda arrays: [arrays[0].T, *arrays[1:]],
    "in another order": lambda arrays: arrays[::-1],
    "a list of numbers": lambda arrays: [arrays[0].tolist(), *arrays[1:]],
    "an iterator": iter,
    "a dict": lambda arrays: dict(enumerate(arrays)),
    "integers": lambda arrays: [arrays[0].astype(int), *arrays[1:]],
    "booleans": lambda arrays: [arrays[0] > 0, *arrays[1:]],
    "complex": lambda arrays: [arrays[0] * (1 + 1j), *arrays[1:]],
    "text": lambda arrays: [arrays[0].astype(str), *arrays[1:]],
    "objects": lambda arrays: [arrays[0].astype(object), *arrays[1:]],
}


def weighted(y):
    return anp.sum(y * V)


def second(f):
    def gradient(theta):
        return grad(lambda t: weighted(f(t, X) ** 2))(theta)

    return grad(lambda theta: anp.dot(gradient(theta), U))(THETA)


def observed(f):
    with gb.trace():
        return grad(lambda t: weighted(f(t, X)))(THETA)


# {way: (the adapter's method that returns something wrong, what the host does, options of the bridge)}
WAYS = {
    "vector": ("backward", lambda f: grad(lambda t: weighted(f(t, X)))(THETA), {}),
    "tree": ("backward", lambda f: grad(lambda p: weighted(f(p, X)))(PARAMS), {}),
    "input": ("backward", lambda f: grad(lambda both: weighted(f(*both)))((THETA, X)), {}),
    "vjp": ("backward", lambda f: f.vjp(THETA, X, cotangent=V), {}),
    "observed": ("backward", observed, {}),
    "reuse": ("backward", lambda f: grad(lambda t: weighted(f(t, X)))(THETA), {"reuse": 2}),
    "loop": ("backward", lambda f: f.jacobian(THETA, X, strategy="loop"), {}),
    "batched": ("backward_many", lambda f: f.jacobian(THETA, X, strategy="vjp"), {}),
    "second order": ("pullback.backward", second, {}),
}


def spoilt(adapter, method, wrong):
    outer, _, inner = method.partition(".")
    right = getattr(adapter, outer)

    def returned(*args):
        result = right(*args)
        return spoilt(result, inner, wrong) if inner else wrong(list(result))

    setattr(adapter, outer, returned)
    return adapter


def paper(packs=False):
    adapter = ReferenceAdapter(PaperModel(MLP, PARAMS), GuestOptions(dtype="float64"))
    adapter.traits = replace(adapter.traits, packs=packs)
    adapter.label = "Paper"
    return adapter


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_gradient_is_refused_by_an_error_that_names_the_model(way, wrong):
    method, compute, options = WAYS[way]
    f = gb.bridge(spoilt(paper(), method, WRONG[wrong]), **options)
    with pytest.raises(GradientMismatchError, match="Paper"):
        compute(f)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("None for all", "Paper returned None as its gradients; its backend must return a list"),
        ("None for one", "Paper returned None as the gradient of .* 0; its backend must return an array"),
        ("a dict", "Paper returned a dict as its gradients"),
    ],
)
def test_what_was_returned_in_place_of_gradients_is_said_in_words(wrong, said):
    f = gb.bridge(spoilt(paper(), "backward", WRONG[wrong]))
    with pytest.raises(GradientMismatchError, match=said):
        grad(lambda t: weighted(f(t, X)))(THETA)


@pytest.mark.parametrize(
    "wrong", ["None for one", "0-d", "leading axis", "one row", "integers", "complex", "too many"]
)
def test_a_wrong_gradient_of_packed_weights_is_refused(wrong):
    f = gb.bridge(spoilt(paper(packs=True), "backward", WRONG[wrong]))
    with pytest.raises(GradientMismatchError, match="Paper"):
        grad(lambda t: weighted(f(t, X)))(THETA)


@pytest.mark.parametrize("way", WAYS)
def test_the_right_ones_are_taken(way):
    _, compute, options = WAYS[way]
    for packs in (False, True):
        compute(gb.bridge(paper(packs), **options))


@pytest.mark.parametrize("wrong", ["last", "first"])
def test_a_part_of_a_chunk_is_not_broadcast_over_its_rows(wrong):
    # The first call is looked at closely; this is the one after it.
    adapter = paper()
    f = gb.bridge(adapter, rows_per_chunk=2)
    both = grad(lambda pair: weighted(f(*pair)))
    both((THETA, X))
    spoilt(adapter, "backward", WRONG["one row of the last" if wrong == "last" else "one row"])
    with pytest.raises(GradientMismatchError, match="Paper"):
        both((THETA, X))


@pytest.mark.parametrize("wrong", ["too few", "None for one", "one row", "transposed"])
def test_weights_that_are_not_the_layouts_are_refused(wrong):
    adapter = paper()
    with pytest.raises(GradientMismatchError, match="Paper"):
        _ = gb.bridge(spoilt(adapter, "weights", WRONG[wrong])).params
