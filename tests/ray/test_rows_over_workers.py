"""Rows over the workers of a real cluster: equal to native PyTorch, and to closed forms, in float64."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, hessian_vector_product, make_jvp, value_and_grad

ray = pytest.importorskip("ray")
torch = pytest.importorskip("torch")

from row_models import DRAW, D, X, Y, close, loss, native, network  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge_ray import shard_rows  # noqa: E402


def test_value_and_gradient_are_those_of_the_network_in_one_process(g, R):
    value, gradient = value_and_grad(loss(g, R))(g.params)
    expected, own, _, _ = native(g.params)
    assert value == pytest.approx(expected, rel=2e-15)
    close(gradient, own)


def test_the_same_gradient_has_the_same_bits_every_time(g, R):
    first, *others = [grad(loss(g, R))(g.params) for _ in range(4)]
    assert all(np.array_equal(first, other) for other in others)
    assert np.array_equal(
        first, grad(loss(g, X))(g.params)
    )  # rows that are placed for the call are cut alike


def test_a_hessian_vector_product_starts_from_the_forward_that_the_workers_have(g, R):
    hessian_vector_product(loss(g, R))(g.params, D)  # looked at once
    before = [t.forwards for t in g.status().values()]
    product = hessian_vector_product(loss(g, R))(g.params, D)
    # The forward, and the recorded pullback.
    assert [t.forwards - b for t, b in zip(g.status().values(), before)] == [2, 2, 2]
    close(product, native(g.params)[3], 3)


def test_a_third_derivative_goes_through_the_workers(g, R):
    def cubed(f, x):
        inner = hessian_vector_product(loss(f, x))
        return grad(lambda p: anp.sum(inner(p, D) * D))(g.params)

    f = gb.bridge(network(), dtype="float64")
    np.testing.assert_allclose(cubed(g, R), cubed(f, X), rtol=1e-12, atol=1e-14)


def test_a_jvp_is_pushed_by_the_workers(g, R):
    value, tangent = make_jvp(lambda p: g(p, R))(g.params)(D)
    net = network()
    names = [n for n, _ in net.named_parameters()]

    def of(vector):
        parts = vector.split([w.numel() for w in net.parameters()])
        own = {n: part.reshape(w.shape) for n, part, w in zip(names, parts, net.parameters())}
        return torch.func.functional_call(net, own, torch.tensor(X))

    expected, moved = torch.func.jvp(of, (torch.tensor(g.params),), (torch.tensor(D),))
    close(value, expected.detach().numpy())
    close(tangent, moved.detach().numpy())


def test_the_jacobian_by_the_params_is_computed_by_rows(g, R):
    jacobian = g.jacobian(g.params, R)
    close(jacobian, gb.bridge(network(), dtype="float64").jacobian(g.params, X))
    assert "per-example" in g.capabilities["latest Jacobian"].note


def test_the_jacobian_by_placed_rows_has_zeros_where_another_row_is(g, R):
    jacobian = g.jacobian(g.params, R, wrt=1)
    assert jacobian.shape == (101, 1, 101, 5)
    close(jacobian, gb.bridge(network(), dtype="float64").jacobian(g.params, X, wrt=1))


def test_many_cotangents_are_pulled_back_at_once(g, R):
    close(
        g.jacobian(g.params, R, strategy="vjp"),
        gb.bridge(network(), dtype="float64").jacobian(g.params, X, strategy="vjp"),
    )
    close(
        g.jacobian(g.params, R, strategy="jvp"),
        gb.bridge(network(), dtype="float64").jacobian(g.params, X, strategy="jvp"),
    )


def test_a_gradient_by_placed_rows_is_an_array_of_their_shape(g, R):
    gradient = grad(lambda p, x: anp.mean((g(p, x) - Y) ** 2), 1)(g.params, R)
    assert isinstance(gradient, np.ndarray)
    close(gradient, native(g.params)[2])
    both = grad(lambda p, x: anp.mean((g(p, x) - Y) ** 2), (0, 1))(g.params, R)
    close(both[1], gradient)


def test_a_second_derivative_by_placed_rows(g, R):
    def by_rows(f, x):
        inner = grad(lambda p, z: anp.mean((f(p, z) - Y) ** 2), 1)
        return grad(lambda p: anp.sum(inner(p, x) ** 2))(g.params)

    np.testing.assert_allclose(
        by_rows(g, R), by_rows(gb.bridge(network(), dtype="float64"), X), rtol=1e-12, atol=1e-16
    )


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 50])
def test_any_number_of_rows(g, rows):
    p = g.params
    f = gb.bridge(network(), dtype="float64")
    gradient = grad(lambda q: anp.sum(g(q, g.place(X[:rows])) ** 2))(p)
    expected = grad(lambda q: anp.sum(f(q, X[:rows]) ** 2))(p)
    np.testing.assert_allclose(gradient, expected, rtol=1e-14, atol=1e-15)
    assert g(p, X[:rows]).shape == (rows, 1)


def test_float32_params_compute_in_float32(cluster):
    with shard_rows(network, workers=2, cpus_per_worker=0.5) as follows:
        p = follows.params.astype(np.float32)
        values = follows(p, X.astype(np.float32))
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, follows(follows.params, X), rtol=1e-4, atol=1e-6)
        close(grad(loss(follows, X))(follows.params), native(follows.params)[1])
        assert isinstance(follows.model(p), torch.nn.Sequential)


def test_large_params_rows_and_gradients_go_by_the_object_store(cluster):
    def wide(p, x, shared):
        return anp.tanh(anp.dot(x, p)) + anp.sum(shared[:3])

    x, y, shared = DRAW.normal(size=(900, 300)), DRAW.normal(size=(900, 60)), np.ones(20_000)
    p = DRAW.normal(size=18_000) / 30
    options = {"params": np.zeros((300, 60)), "backend": "autograd"}
    f = gb.bridge(wide, **options)
    with shard_rows(wide, workers=2, cpus_per_worker=0.5, **options) as sharded:
        rows, whole = sharded.place(x), sharded.place(shared, rows=False)
        assert len(np.asarray(whole)) == 20_000
        for parts in (rows, sharded.place([ray.put(x[i : i + 100]) for i in range(0, 900, 100)])):
            for given in (shared, whole):
                gradients = grad(lambda q, r, s: anp.sum((sharded(q, r, s) - y) ** 2), (0, 2))(
                    p, parts, given
                )
                expected = grad(lambda q, r, s: anp.sum((f(q, r, s) - y) ** 2), (0, 2))(p, x, shared)
                for ours, theirs in zip(gradients, expected):
                    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11 * np.abs(theirs).max())
