"""Reuse: the same content costs one forward, and nothing else is ever mistaken for it."""

import copy
import pickle

import numpy as np
import pytest
from autograd import grad, jacobian, value_and_grad
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gradbridge as gb
from gradbridge.errors import OptionError
from gradbridge.execution.reuse import same_content


def scaled(p, x):
    return np.sin(p[0] * x)


def scaled_vjp(ans, p, x):
    return lambda v: np.array([np.sum(v * np.cos(p[0] * x) * x), 0.0])


def bridge(**options):
    return gb.bridge(scaled, params=np.array([2.0, 5.0]), backend="numpy", vjp=scaled_vjp, **options)


X = np.linspace(0, 1, 200)


def test_values_gradients_and_jacobians_at_one_point_cost_one_forward():
    f = bridge(reuse=2)
    p = f.params
    with gb.trace() as t:
        value = f(p, X)
        again, gradient = value_and_grad(lambda p: f(p, X).sum())(p)
        jacobian(lambda p: f(p, X))(p)
    assert t.counts["forward"] == 1
    assert (f.memory.hits, f.memory.misses) == (2, 1)
    assert again == value.sum()
    assert np.isclose(gradient[0], np.sum(np.cos(2 * X) * X))


def test_without_reuse_each_costs_its_own():
    f = bridge()
    with gb.trace() as t:
        f(f.params, X)
        f(f.params, X)
    assert t.counts["forward"] == 2
    assert f.memory is None


def test_changes_in_place_of_the_callers_arrays_are_seen():
    f = bridge(reuse=4)
    p, x = f.params, X.copy()
    f(p, x)
    p -= 0.5
    assert np.array_equal(f(p, x), np.sin(1.5 * x))
    x[-1] = 9.0
    assert np.array_equal(f(p, x), np.sin(1.5 * x))
    assert f.memory.hits == 0


def test_what_the_caller_writes_into_an_output_does_not_come_back():
    f = bridge(reuse=1)
    f(f.params, X)[:] = 7.0
    assert np.array_equal(f(f.params, X), np.sin(2 * X))
    assert f.memory.hits == 1


def test_equal_content_in_other_arrays_is_recognised():
    f = bridge(reuse=1)
    f(f.params, X)
    f(f.params.copy(), X.copy())
    assert f.memory.hits == 1


def test_memory_is_bounded_and_forgets_the_oldest():
    f = bridge(reuse=2)
    for k in (1.0, 2.0, 3.0, 1.0):
        f(np.array([k, 0.0]), X)
    assert f.memory.hits == 0
    f(np.array([3.0, 0.0]), X)
    assert f.memory.hits == 1
    f.memory.forget()
    f(np.array([3.0, 0.0]), X)
    assert f.memory.hits == 1


def test_a_gradient_wrt_an_input_is_not_answered_by_an_evaluation_that_cannot_give_it():
    f = gb.primitive(lambda x: x**2)
    f.defvjp(lambda ans, x: lambda v: 2 * x * v)
    b = gb.Bridge(f.bridge.adapter, reuse=3)
    b(np.empty(0), X)
    assert np.array_equal(grad(lambda x: b(np.empty(0), x).sum())(X), 2 * X)


def test_keyword_arguments_and_objects_belong_to_the_content():
    f = gb.bridge(lambda p, x, power=1: p[0] * x**power, params=np.ones(1), backend="numpy", reuse=3)
    assert np.array_equal(f(f.params, X, power=2), X**2)
    assert np.array_equal(f(f.params, X, power=3), X**3)
    assert np.array_equal(f(f.params, X), X)
    assert f.memory.hits == 0


def test_a_copied_or_pickled_bridge_starts_with_an_empty_memory():
    f = gb.Bridge(bridge().adapter, reuse=1)
    f(f.params, X)
    twin = copy.deepcopy(f)
    twin(f.params, X)
    assert twin.memory.hits == 0
    assert pickle.loads(pickle.dumps(f.memory)).misses == 0


@pytest.mark.parametrize("reuse", [-1, True, "all", 1.5])
def test_reuse_is_a_number_of_evaluations(reuse):
    with pytest.raises(OptionError, match="reuse must be a number"):
        bridge(reuse=reuse)


def test_train_mode_is_not_reused():
    with pytest.raises(OptionError, match="may draw random numbers or move"):
        bridge(reuse=1, mode="train")


@given(
    hnp.arrays(st.sampled_from(["f4", "f8", "i2", "?", "f2"]), hnp.array_shapes(min_dims=0, max_dims=2)),
    st.data(),
)
def test_the_same_content_is_the_same_and_any_other_is_not(array, data):
    assert same_content(array, array.copy())
    other = array.copy()
    if other.size:
        where = data.draw(st.integers(0, other.size - 1))
        raw = other.reshape(-1).view(np.uint8).reshape(other.size, -1)
        raw[where, data.draw(st.integers(0, other.itemsize - 1))] ^= 1
        assert not same_content(array, other)
    assert not same_content(array, array.reshape(*array.shape, 1))
    assert not same_content(array, array.astype("c16"))
    assert not same_content(array, "array")


class Settings:
    rate = 1.0


@pytest.mark.parametrize("change", ["attribute", "set", "bytearray"])
def test_an_object_that_may_change_in_place_is_never_taken_for_what_it_was(change):
    held = {"attribute": Settings(), "set": {1}, "bytearray": bytearray(b"a")}[change]

    def rate():
        return held.rate if change == "attribute" else len(held)

    f = gb.bridge(lambda p, x, c: p["w"] * x * rate(), params={"w": np.ones(1)}, backend="numpy", reuse=4)
    f.adapter.defvjp(lambda ans, p, x, c: lambda v: {"w": np.sum(v * x * rate(), keepdims=True)})
    before = f(f.params, np.ones(1), held)
    if change == "attribute":
        held.rate = 2.0
    else:
        held.update({2}) if change == "set" else held.extend(b"b")
    np.testing.assert_array_equal(f(f.params, np.ones(1), held), 2 * before)
    assert f.memory.hits == 0


def test_constants_beside_the_arrays_are_recognised_with_their_type():
    f = gb.bridge(
        lambda p, x, flag: p["w"] * x * (2 if flag is True else 1),
        params={"w": np.ones(1)},
        backend="numpy",
        reuse=4,
    )
    f.adapter.defvjp(lambda ans, p, x, flag: lambda v: {"w": np.sum(v * x, keepdims=True)})
    assert f(f.params, np.ones(1), True) == 2 * f(f.params, np.ones(1), 1)
    f(f.params, np.ones(1), True)
    assert (f.memory.hits, f.memory.misses) == (1, 2)


def test_a_model_without_a_gradient_has_a_value_all_the_same():
    anp = pytest.importorskip("autograd.numpy")

    def model(p, x):
        return anp.interp(x, np.arange(3.0), p["w"])  # autograd has no gradient of it

    f = gb.bridge(model, params={"w": np.array([0.0, 1.0, 4.0])}, backend="autograd", reuse=2)
    for _ in range(2):
        np.testing.assert_allclose(f(f.params, np.array([1.5])), [2.5])
    assert f.memory.hits == 1


def test_an_evaluation_for_a_host_of_one_precision_is_not_that_for_another():
    f = gb.bridge(lambda p, x: x * p, params=np.ones(3), backend="autograd", reuse=2)
    X = np.ones((2, 3))
    assert f(np.ones(3), X).dtype == np.float64
    assert f(np.ones(3, np.float32), X).dtype == np.float32
