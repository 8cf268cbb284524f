"""Arrays that live elsewhere, without any cluster: in a list of this process."""

import operator

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, jacobian

import gradbridge as gb
from gradbridge.errors import InputError
from gradbridge.execution.piecewise import TreeSum
from gradbridge.placed import Piece, PlacedArray

X = np.random.default_rng(0).normal(size=(12, 3))


def fetch(pieces):
    return [piece.handle[piece.start : piece.stop] for piece in pieces]


@pytest.fixture
def placed():
    return PlacedArray(X.shape, X.dtype, [Piece(X, 0, 5), Piece(X, 5, 6), Piece(X, 6, 12)], fetch)


def test_numpy_brings_the_numbers_here(placed):
    np.testing.assert_array_equal(np.asarray(placed), X)
    np.testing.assert_array_equal(placed * 2 + X, 3 * X)
    np.testing.assert_array_equal(np.sum(placed, axis=0), X.sum(axis=0))
    own = np.asarray(placed)
    own[:] = 0
    assert np.any(X)


@pytest.mark.parametrize(
    "rows", [slice(2, 9), slice(5, 6), slice(None), slice(-3, None), slice(4, 4), slice(20, 30)]
)
def test_a_slice_of_rows_stays_where_it_is(placed, rows):
    part = placed[rows]
    assert isinstance(part, PlacedArray)
    assert (part.shape, len(part)) == (X[rows].shape, len(X[rows]))
    np.testing.assert_array_equal(np.asarray(part), X[rows])


def test_other_indices_bring_it_here(placed):
    for index in (3, slice(0, 9, 2), [1, 2], (slice(None), 1), X[:, 0] > 0):
        np.testing.assert_array_equal(placed[index], X[index])


def test_autograd_differentiates_by_it(placed):
    gb.default_registry().host("autograd")  # as any bridge does
    np.testing.assert_allclose(grad(lambda x: anp.sum(anp.sin(x) ** 2))(placed), np.sin(2 * X), rtol=1e-14)
    np.testing.assert_array_equal(grad(lambda x: 0.0 * anp.sum(x[0]) + 1.0)(placed), np.zeros(X.shape))
    assert grad(lambda x: len(x) * x.shape[1] * anp.sum(x))(placed)[0, 0] == 36


def test_a_bridge_without_a_cluster_takes_what_it_stands_for(placed):
    f = gb.bridge(lambda p, x: anp.dot(anp.tanh(x), p), params=np.ones(3), backend="autograd", reuse=2)
    np.testing.assert_array_equal(f(f.params, placed), f(f.params, X))
    np.testing.assert_allclose(
        jacobian(lambda x: f(f.params, x))(placed), jacobian(lambda x: f(f.params, x))(X), rtol=1e-15
    )
    np.testing.assert_array_equal(f.jacobian(f.params, placed), f.jacobian(f.params, X))


def test_complex_placed_arrays_are_refused_where_complex_ones_are():
    z = X + 1j
    placed = PlacedArray(z.shape, z.dtype, [Piece(z, 0, 12)], fetch)
    cube = gb.primitive(lambda x: x**3)
    cube.defvjp(lambda ans, x: lambda v: 3 * x**2 * v)
    numeric = gb.primitive(lambda x: x**3, gradient="numeric")
    with pytest.raises(InputError, match="takes no complex numbers"):
        numeric(placed)


@pytest.mark.parametrize("count", range(1, 20))
def test_a_sum_is_a_tree_that_the_number_of_its_terms_decides(count):
    total = TreeSum(lambda a, b: f"({a}{b})")
    for i in range(count):
        total.put(chr(ord("a") + i))
    text = total.total()
    assert text.replace("(", "").replace(")", "") == "abcdefghijklmnopqrst"[:count]
    depth = max(
        sum(1 if c == "(" else -1 if c == ")" else 0 for c in text[: i + 1]) for i in range(len(text))
    )
    assert depth <= int(np.ceil(np.log2(count))) + 1
    numbers = TreeSum(operator.add)
    for i in range(count):
        numbers.put(i)
    assert numbers.total() == count * (count - 1) // 2
