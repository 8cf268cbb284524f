"""The audit of precision: what a model computes in, and what it was asked to compute in."""

import warnings

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad

import gradbridge as gb
from gradbridge.errors import GradbridgeWarning

X = onp.random.default_rng(0).normal(size=(5, 3))


def half_way(p, x):
    hidden = np.tanh(np.dot(x, p.reshape(3, 2)))
    return np.dot(Rounded.through(hidden), np.ones(2))


class Rounded:
    """Through float32 and back, as a layer that is fixed to it does."""

    through = gb.primitive(lambda x: x.astype(onp.float32).astype(onp.float64), audit="off")
    through.defvjp(lambda ans, x: lambda v: v.astype(onp.float32).astype(onp.float64))


def test_a_part_that_computes_in_less_is_told_once_with_the_precision_that_it_has():
    f = gb.bridge(half_way, params=onp.ones(6), backend="autograd")
    with pytest.warns(
        GradbridgeWarning,
        match=r"asked to compute in float64.* its outputs change in steps of about [1-9]e-0[78]",
    ):
        grad(lambda p: np.sum(f(p, X)))(f.params)
    assert "steps" in f.capabilities["audited"].note
    smooth = gb.bridge(
        lambda p, x: np.exp(30 * np.tanh(np.dot(x, p))), params=onp.ones(3), backend="autograd"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradbridgeWarning)
        grad(lambda p: np.sum(smooth(p, X)))(smooth.params)
        grad(lambda p: np.sum(f(p, X)))(f.params)


@pytest.mark.parametrize("dtype", [onp.float32, onp.float64])
def test_the_precision_is_that_of_the_params(dtype):
    params = {"w": onp.ones(3, onp.float32), "b": onp.float16(0.5)}
    seen = set()

    def watched(p, x):
        seen.add(np.result_type(p["w"]._value if hasattr(p["w"], "_value") else p["w"]))
        return np.dot(x, p["w"]) + p["b"]

    f = gb.bridge(watched, params=params, backend="autograd")
    gradient = grad(lambda p: np.sum(f(p, X.astype(dtype)) ** 2))(f.params.astype(dtype))
    assert gradient.dtype == dtype
    own = gb.bridge(watched, params=params, backend="autograd", dtype="model")
    assert own(own.params, X).dtype == onp.float64
