"""Params in the tree that they were given in, in place of the vector."""

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad

import gradbridge as gb


@pytest.mark.parametrize(
    ("params", "call"),
    [
        (onp.ones((3, 2)), onp.full((3, 2), 2.0)),
        ([(onp.ones(3), onp.ones(1)), (onp.ones(2),)], [(2 * onp.ones(3), onp.ones(1)), (onp.ones(2),)]),
        ({"a": {"b": onp.ones((2, 2))}, "c": [1.0, 2.0]}, {"a": {"b": onp.zeros((2, 2))}, "c": [3.0, 4.0]}),
        ([[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]),
        (onp.float64(2.0), 3.0),
    ],
    ids=["matrix", "tuples", "dict", "nested numbers", "scalar"],
)
def test_params_are_taken_in_the_tree_that_they_were_given_in(params, call):
    total = lambda tree: (
        sum(np.sum(leaf**2) for leaf in gb.trees.flatten(tree)[0])
        if not hasattr(tree, "shape")
        else np.sum(tree**2)
    )
    f = gb.bridge(lambda p, x: total(p) * x, params=params, backend="autograd")
    vector = f.layout.ravel(call)
    onp.testing.assert_allclose(f(call, 2.0), f(vector, 2.0))
    onp.testing.assert_allclose(f(call, 2.0), 2 * onp.sum(vector**2))
    onp.testing.assert_allclose(f.jacobian(call, 2.0), 4 * vector)
    if not isinstance(call, (float, list)):
        gradient = grad(lambda p: f(p, 2.0))(call)
        onp.testing.assert_allclose(f.layout.ravel(gradient), 4 * vector)
