"""Placed inputs, and trees of outputs, over the workers of a real cluster: equal to closed forms in float64."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import elementwise_grad, grad

ray = pytest.importorskip("ray")
torch = pytest.importorskip("torch")

from row_models import DRAW, TREE, X, close, network  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import (  # noqa: E402
    InputError,
    NotDifferentiableError,
)
from gradbridge.placed import PlacedArray  # noqa: E402
from gradbridge_ray import adapter, shard_rows  # noqa: E402


def test_trees_of_outputs_and_params_are_joined_leaf_by_leaf(h):
    placed = h.place(X)
    out = h(h.params, placed)
    z = X @ TREE["w"] + TREE["b"]
    np.testing.assert_allclose(out["sine"], np.sin(z), rtol=1e-15)
    np.testing.assert_allclose(out["both"][0], z[:, None] * X, rtol=1e-15)
    assert np.array_equal(out["both"][1], (z > 0) * 1)
    gradient = grad(lambda p: anp.sum(h(p, placed)["sine"] * 2))(TREE)
    np.testing.assert_allclose(gradient["w"], 2 * np.cos(z) @ X, rtol=1e-13)
    np.testing.assert_allclose(gradient["b"], 2 * np.cos(z).sum(), rtol=1e-13)


def test_several_placed_inputs_are_cut_alike_and_what_is_not_placed_is_scattered_or_sent_whole(h):
    shift = np.linspace(0, 1, 101)
    z = X @ TREE["w"] + TREE["b"]
    for given in (h.place(shift), shift):
        np.testing.assert_allclose(h(h.params, h.place(X), given)["sine"], np.sin(z + shift), rtol=1e-14)
    gradient = grad(lambda s: anp.sum(h(h.params, h.place(X), s)["sine"]))
    np.testing.assert_allclose(gradient(0.5), np.cos(z + 0.5).sum(), rtol=1e-13)  # of what all rows share
    np.testing.assert_allclose(gradient(h.place(shift)), np.cos(z + shift), rtol=1e-13)
    whole = h.place(np.array(0.5), rows=False)
    np.testing.assert_allclose(h(h.params, h.place(X), whole)["sine"], np.sin(z + 0.5), rtol=1e-14)
    np.testing.assert_allclose(gradient(whole), np.cos(z + 0.5).sum(), rtol=1e-13)


def test_placed_inputs_that_are_cut_differently_are_named(h):
    uneven = h.place([ray.put(X[:7, 0]), ray.put(X[7:, 0])])
    with pytest.raises(
        InputError,
        match=r"inputs 0 and 1 of curves are placed and cut differently: rows 50 \+ 51 and 7 \+ 94",
    ):
        h(h.params, h.place(X), uneven)


def test_references_keep_their_pieces_whatever_their_number(h):
    cuts = [0, 1, 40, 41, 101]
    placed = h.place([ray.put(X[a:b]) for a, b in zip(cuts, cuts[1:])])
    assert (placed.shape, placed.dtype, len(placed), len(placed.pieces)) == ((101, 5), np.float64, 101, 4)
    np.testing.assert_allclose(h(h.params, placed)["sine"], h(h.params, X)["sine"], rtol=1e-15)
    total = grad(lambda p: anp.sum(h(p, placed)["sine"]))(h.params)
    np.testing.assert_allclose(total, grad(lambda p: anp.sum(h(p, X)["sine"]))(h.params), rtol=1e-13)
    assert np.array_equal(np.asarray(placed), X)
    with pytest.raises(InputError, match="piece 1 is"):
        h.place([ray.put(X), ray.put(X[:, :2])])


def test_gradients_of_many_pieces_are_added_by_the_workers_to_the_same_bits(h, monkeypatch):
    placed = h.place([ray.put(part) for part in np.array_split(X, 13)])
    assert len(placed.pieces) == 13
    gradients = [grad(lambda p: anp.sum(h(p, placed)["sine"]))(h.params) for _ in range(2)]
    monkeypatch.setattr(adapter, "_BYTES_HERE", 0)  # where they are many bytes
    gradients.append(grad(lambda p: anp.sum(h(p, placed)["sine"]))(h.params))
    assert np.array_equal(gradients[0], gradients[1])
    assert np.array_equal(gradients[0], gradients[2])
    np.testing.assert_allclose(gradients[0], grad(lambda p: anp.sum(h(p, X)["sine"]))(h.params), rtol=1e-13)


def test_a_ray_dataset_is_placed_where_it_is(h):
    pytest.importorskip("pyarrow")
    pytest.importorskip("pandas")
    data = ray.data.from_numpy(X)
    placed = h.place(data)
    np.testing.assert_allclose(h(h.params, placed)["sine"], h(h.params, X)["sine"], rtol=1e-15)
    two = ray.data.from_items([{"x": 1.0, "y": 2.0}])
    with pytest.raises(InputError, match="columns x, y was to be placed; say which"):
        h.place(two)


def test_placed_integers_and_booleans_pass_untouched(cluster):
    def looked_up(p, i, keep):
        return p["table"][i] * keep[:, None]

    table = DRAW.normal(size=(7, 2))
    index, keep = DRAW.integers(0, 7, size=23), DRAW.integers(0, 2, size=23).astype(bool)
    with shard_rows(
        looked_up, workers=2, params={"table": table}, backend="autograd", cpus_per_worker=0.5
    ) as f:
        rows, kept = f.place(index), f.place(keep)
        assert (rows.dtype, kept.dtype) == (index.dtype, bool)
        np.testing.assert_array_equal(f(f.params, rows, kept), table[index] * keep[:, None])
        expected = np.zeros_like(table)
        np.add.at(expected, index, keep[:, None] * np.ones(2))
        np.testing.assert_array_equal(
            grad(lambda p: anp.sum(f(p, rows, kept)))(f.params), expected.reshape(-1)
        )
        with pytest.raises(NotDifferentiableError, match="input 0 of looked_up"):
            elementwise_grad(lambda i: f(f.params, i, kept))(rows)


def test_a_placed_array_serves_a_bridge_in_one_process_too(g, R):
    f = gb.bridge(network(), dtype="float64")
    np.testing.assert_array_equal(f(f.params, R), f(f.params, X))
    close(grad(lambda x: anp.sum(f(f.params, x) ** 2))(R), grad(lambda x: anp.sum(f(f.params, x) ** 2))(X))


def test_the_handle_tells_what_it_is(g, R):
    assert repr(R) == "<PlacedArray (101, 5) float64, in 3 pieces>"
    assert (len(R), R.ndim, R.size, R.shape) == (101, 2, 505, (101, 5))
    np.testing.assert_array_equal(R[40:60], X[40:60])
    assert isinstance(R[40:60], PlacedArray)
    np.testing.assert_array_equal(g(g.params, R[40:60]), g(g.params, X[40:60]))
    for wrong, said in (("a", "dtype <U1"), (np.array(None), "dtype object"), (3.0, "a single number")):
        with pytest.raises(InputError, match=said):
            g.place(wrong)
