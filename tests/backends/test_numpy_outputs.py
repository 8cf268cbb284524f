"""Shapes of outputs before the run, and arrays of other libraries, at the adapters of the NumPy guest."""

import warnings

import numpy as np
import pytest

import gradbridge as gb
from gradbridge.call_spec import CallSpec
from gradbridge.errors import GradbridgeWarning, HigherOrderError, InputError, Unsupported
from gradbridge.protocol import ArraySpec

F4, F8 = np.dtype("float32"), np.dtype("float64")
X = ArraySpec((3, 2), F4)


def specs(adapter, *inputs):
    return adapter.output_spec(inputs, CallSpec.of_arrays(len(inputs)))


def test_what_the_user_says_is_taken_and_nothing_runs():
    def never(x):
        raise AssertionError("it ran")

    f = gb.primitive(outputs=lambda x: {"a": (x.shape[:1], "int64"), "b": x})(never)
    assert f.bridge.output_spec(np.ones((3, 2), F4)) == {"a": ArraySpec((3,), np.dtype("int64")), "b": X}


def test_plain_code_is_tried_once_for_each_shape_and_that_is_said_once():
    seen = []

    def f(x, k):
        seen.append(x.shape)
        return {"sum": x.sum(0) * k, "positive": x > 0}

    adapter = gb.primitive(f).bridge.adapter
    with pytest.warns(GradbridgeWarning, match="say what it returns with outputs="):
        first = specs(adapter, X, 2)
    assert first == {"sum": ArraySpec((2,), F4), "positive": ArraySpec((3, 2), np.dtype(bool))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert specs(adapter, X, 2) == first
        assert specs(adapter, ArraySpec((5, 2), F8), 2)["positive"].shape == (5, 2)
    assert seen == [(3, 2), (5, 2)]


def test_those_of_gradients_are_those_of_their_arguments():
    f = gb.bridge(
        lambda p, x: p["a"] * x,
        params={"a": np.ones(2)},
        backend="numpy",
        vjp=(lambda ans, p, x: lambda v: {"a": (v * x).sum(0)}, lambda ans, p, x: lambda v: v * p["a"]),
    )
    gradient = f.adapter.pullback(CallSpec.of_arrays(1), (1, 0))
    assert specs(gradient, X, X) == (X, ArraySpec((2,), F8))
    second = gradient.pullback(CallSpec.of_arrays(2), (2, 1))
    assert specs(second, X, ArraySpec((3, 2), F8), X, ArraySpec((2,), F8)) == (ArraySpec((3, 2), F8), X)


def test_those_of_networks_follow_from_the_layers():
    adapter = gb.bridge(gb.build("mlp", sizes=[3, 4, 2], backend="numpy")).adapter
    assert specs(adapter, ArraySpec((5, 3), F4)) == ArraySpec((5, 2), F8)
    single = gb.bridge(gb.build("mlp", sizes=[3, 4, 1], backend="numpy"), dtype="float32").adapter
    assert specs(single, ArraySpec((7, 5, 3), F4)) == ArraySpec((7, 5), F4)
    with pytest.raises(InputError, match=r"takes an array of shape \(…, 3\), got \(5, 4\)"):
        specs(adapter, ArraySpec((5, 4), F4))


class Lent:
    """An array of a library that speaks DLPack and nothing else."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_arrays_of_other_libraries_are_taken_and_copied_once():
    kinds = set()

    def f(p, x):
        kinds.update(map(type, (p["a"], x)))
        x += 0.0  # to write to what it is given is its right
        return p["a"] * x**2

    def of_x(ans, p, x):
        def pull(v):
            kinds.add(type(v))
            return 2 * p["a"] * x * v

        return pull

    adapter = gb.bridge(f, params={"a": np.ones(())}, backend="numpy", vjp=(None, of_x)).adapter
    weight, x, spec = np.array(3.0), np.arange(4.0), CallSpec.of_arrays(1)
    loaded = adapter.update([Lent(weight)])
    value, residuals = adapter.forward(loaded, [Lent(x)], spec, (1,))
    weight[...], x[:] = 100.0, 100.0
    assert np.array_equal(value, 3 * np.arange(4.0) ** 2)
    (gradient,) = adapter.backward(residuals, [Lent(np.ones(4))], (1,))
    assert np.array_equal(gradient, 6 * np.arange(4.0))
    assert kinds == {np.ndarray}


def test_traits_and_refusals_follow_the_rules_that_are_written():
    f = gb.primitive(lambda x, y: x * y)
    adapter = f.bridge.adapter
    assert (adapter.traits.has_forward_mode, adapter.traits.takes_complex) == (False, True)
    assert adapter.refusal("pushforward") == "no derivative of <lambda> is written down"
    with pytest.raises(Unsupported, match="no derivative of <lambda>"):
        adapter.pushforward([], [np.ones(2), np.ones(2)], CallSpec.of_arrays(2), (0,), [np.ones(2)])
    with pytest.raises(HigherOrderError, match="derivative of the written-down gradient"):
        adapter.pullback(CallSpec.of_arrays(2), (0,))
    f.defjvp(lambda t, ans, x, y: t * y)
    assert adapter.traits.has_forward_mode
    assert not adapter.traits.is_gradient_cheap
    assert adapter.refusal("pushforward") == ""
    f.defvjp(lambda ans, x, y: lambda v: v * y)
    assert adapter.traits.is_gradient_cheap
    assert not adapter.traits.checks_jvp
    numeric = gb.primitive(gradient="numeric")(lambda x: x).bridge.adapter
    assert (numeric.traits.is_gradient_cheap, numeric.traits.takes_complex) == (False, False)
