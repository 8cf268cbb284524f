"""Jacobians and products with them, through a guest that can do one backward at a time."""

import numpy as np
import pytest
from autograd import grad, jacobian

import gradbridge as gb
from gradbridge.errors import (
    CotangentMismatchError,
    HigherOrderError,
    MissingVJPError,
    NotDifferentiableError,
    OptionError,
    ParamsShapeError,
)

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(12, 3))


def waves(p, x):
    return np.sin(x @ p[:3] + p[3])


def waves_vjp(ans, p, x):
    slope = np.cos(x @ p[:3] + p[3])
    return lambda v: np.concatenate([(v * slope) @ x, [(v * slope).sum()]])


def waves_vjp_x(ans, p, x):
    slope = np.cos(x @ p[:3] + p[3])
    return lambda v: (v * slope)[:, None] * p[:3]


def waves_bridge(**options):
    rules = (waves_vjp, waves_vjp_x)
    return gb.bridge(waves, params=np.array([0.5, -1.0, 2.0, 0.1]), backend="numpy", vjp=rules, **options)


def slopes(p):
    return np.cos(X @ p[:3] + p[3])[:, None]


def how(t):
    """What observers were told of the backwards, beyond the model's name."""
    return {step.bridge.partition(", ")[2] for step in t.steps if step.name == "backward"}


def test_it_is_the_derivative_of_every_output_by_every_argument():
    f = waves_bridge()
    J = f.jacobian(f.params, X)
    np.testing.assert_allclose(J, slopes(f.params) * np.column_stack([X, np.ones(12)]), rtol=1e-14)
    np.testing.assert_array_equal(J, jacobian(f)(f.params, X))


def test_it_costs_one_forward():
    f = waves_bridge()
    with gb.trace() as t:
        f.jacobian(f.params, X, wrt=(0, 1))
    assert t.counts["forward"] == 1


@pytest.mark.parametrize("strategy", ["auto", "rows", "loop"])
def test_with_respect_to_the_inputs_it_has_zeros_where_another_row_is(strategy):
    f = waves_bridge()
    J = f.jacobian(f.params, X, wrt=1, strategy=strategy)
    assert J.shape == (12, 12, 3)
    np.testing.assert_array_equal(J, jacobian(f, 1)(f.params, X))
    assert not J[~np.eye(12, dtype=bool)].any()


def test_rows_of_the_inputs_need_one_backward_for_each_output_of_a_row():
    f = waves_bridge()
    with gb.trace() as t:
        f.jacobian(f.params, X, wrt=1)
    assert t.counts["backward"] == 3  # one for all the rows, two to make sure of it


@pytest.mark.parametrize("max_chunk", [1, 500, 1 << 26])
def test_chunks_change_nothing(max_chunk):
    f = waves_bridge()
    np.testing.assert_array_equal(
        f.jacobian(f.params, X, max_chunk=max_chunk), f.jacobian(f.params, X, strategy="loop")
    )


def test_a_tuple_of_arguments_gives_a_tuple():
    f = waves_bridge()
    by_input, by_params = f.jacobian(f.params, X, wrt=(1, 0))
    np.testing.assert_array_equal(by_input, f.jacobian(f.params, X, wrt=1))
    np.testing.assert_array_equal(by_params, f.jacobian(f.params, X))
    assert len(f.jacobian(f.params, X, wrt=(0,))) == 1


@gb.primitive
def moments(x):
    return {"mean": x.mean(axis=0), "square": (x**2).sum(), "count": len(x) * np.ones(1, int)}


@moments.defvjp
def moments_vjp(ans, x):
    return lambda v: v["mean"] / len(x) + 2 * x * v["square"]


def test_a_tree_of_outputs_gives_a_tree_of_jacobians_and_none_for_integers():
    J = moments.bridge.jacobian(np.empty(0), X, wrt=1)
    assert J["count"] is None
    np.testing.assert_allclose(J["square"], 2 * X, rtol=1e-15)
    np.testing.assert_allclose(J["mean"], np.einsum("ab,r->arb", np.eye(3), np.full(12, 1 / 12)), rtol=1e-15)


def test_rows_that_see_each_other_are_noticed():
    f = gb.primitive(lambda x: x - x.mean(axis=0))
    f.defvjp(lambda ans, x: lambda v: v - v.mean(axis=0))
    truth = np.einsum("rs,ab->rasb", np.eye(12) - 1 / 12, np.eye(3))
    np.testing.assert_allclose(f.bridge.jacobian(np.empty(0), X, wrt=1), truth, atol=1e-16)
    with pytest.raises(OptionError, match=r"its rows are not independent of each other.*leave strategy= out"):
        f.bridge.jacobian(np.empty(0), X, wrt=1, strategy="rows")


def test_rows_that_see_only_their_neighbour_are_noticed():
    f = gb.primitive(lambda x: x + 1e-7 * np.roll(x, 1, axis=0))
    f.defvjp(lambda ans, x: lambda v: v + 1e-7 * np.roll(v, -1, axis=0))
    truth = jacobian(f)(X)
    np.testing.assert_array_equal(f.bridge.jacobian(np.empty(0), X, wrt=1), truth)


def test_a_gradient_that_is_missing_for_an_input_does_not_matter_where_it_is_not_asked_for():
    f = gb.bridge(waves, params=np.array([0.5, -1.0, 2.0, 0.1]), backend="numpy", vjp=waves_vjp)
    np.testing.assert_array_equal(f.jacobian(f.params, X), jacobian(f)(f.params, X))
    with pytest.raises(MissingVJPError):
        f.jacobian(f.params, X, wrt=1)


def test_no_rows_and_no_params_give_empty_arrays():
    f = waves_bridge()
    assert f.jacobian(f.params, X[:0]).shape == (0, 4)
    assert f.jacobian(f.params, X[:0], wrt=1).shape == (0, 0, 3)
    g = gb.primitive(lambda x: x**2)
    g.defvjp(lambda ans, x: lambda v: 2 * x * v)
    assert g.bridge.jacobian(np.empty(0), X, wrt=0).shape == (12, 3, 0)


def test_it_comes_in_the_dtype_of_the_host():
    f = waves_bridge()
    assert f.jacobian(f.params.astype("f4"), X).dtype == np.float32
    assert f.jacobian(f.params, X.astype("f4")).dtype == np.float64
    assert f.jacobian(np.ones(4, int), X.astype("f4")).dtype == np.float64


def test_a_scalar_function_of_a_number_works():
    f = gb.primitive(lambda x: x**2)
    f.defvjp(lambda ans, x: lambda v: 2 * x * v)
    assert f.bridge.jacobian(np.empty(0), 4.0, wrt=1) == 8.0


def test_reuse_answers_it_from_memory():
    f = waves_bridge(reuse=2)
    f.jacobian(f.params, X)
    with gb.trace() as t:
        f.jacobian(f.params, X)
    assert t.counts["forward"] == 0


def test_products_are_those_with_the_jacobian():
    f = waves_bridge()
    J = f.jacobian(f.params, X)
    v, w = DRAW.normal(size=12), DRAW.normal(size=(12,))
    np.testing.assert_allclose(f.vjp(f.params, X, cotangent=v), v @ J, rtol=1e-13)
    both = f.vjp(f.params, X, cotangent=w, wrt=(0, 1))
    np.testing.assert_allclose(both[1], np.tensordot(w, f.jacobian(f.params, X, wrt=1), 1), rtol=1e-13)


def test_a_gradient_for_each_row():
    f = waves_bridge()
    G = f.row_gradients(f.params, X)
    assert G.shape == (12, 4)
    for row, gradient in zip(X, G):
        np.testing.assert_allclose(
            gradient, grad(lambda p, x: f(p, x).sum())(f.params, row[None]), rtol=1e-13
        )
    with pytest.raises(
        OptionError, match=r"one number per row, \(n,\) or \(n, 1\), and .* returned \(12, 3\)"
    ):
        gb.bridge(
            lambda p, x: p * x,
            params=np.ones(3),
            backend="numpy",
            vjp=lambda ans, p, x: lambda v: (v * x).sum(0),
        ).row_gradients(np.ones(3), X)


def test_forward_products_come_from_a_written_gradient_too():
    f = waves_bridge()
    J = f.jacobian(f.params, X, strategy="loop")
    np.testing.assert_allclose(f.jvp(f.params, X, tangent=f.params), J @ f.params, rtol=1e-13)
    np.testing.assert_allclose(f.ggn(f.params, X, vector=f.params), J.T @ (J @ f.params), rtol=1e-13)
    np.testing.assert_allclose(f.jacobian(f.params, X, strategy="jvp"), J, rtol=1e-13)


def test_forward_products_say_why_they_cannot_be_had():
    f = gb.bridge(lambda p, x: p * x, params=np.ones(2), backend="numpy")
    for product in (
        lambda: f.jvp(f.params, np.ones(2), tangent=f.params),
        lambda: f.ggn(f.params, np.ones(2), vector=f.params),
        lambda: f.jacobian(f.params, np.ones(2), strategy="jvp"),
    ):
        with pytest.raises(HigherOrderError, match="no forward mode"):
            product()


def test_what_a_backend_cannot_do_is_said():
    f = waves_bridge()
    with pytest.raises(
        OptionError, match=r"'vjp' was asked for the Jacobian of waves.*several cotangents at once"
    ):
        f.jacobian(f.params, X, strategy="vjp")


@pytest.mark.parametrize(
    ("wrt", "words"),
    [
        (2, "0 is its params, 1 is its input array"),
        (-1, "got -1"),
        ("x", "got 'x'"),
        ((0, 0), "once"),
        ((), "once"),
    ],
)
def test_arguments_that_there_are_not_are_refused(wrt, words):
    f = waves_bridge()
    with pytest.raises(OptionError, match=words):
        f.jacobian(f.params, X, wrt=wrt)


def test_other_misuse_is_refused_with_the_reason():
    f = waves_bridge()
    with pytest.raises(OptionError, match="strategy must be one of 'auto', 'rows'"):
        f.jacobian(f.params, X, strategy="fast")
    with pytest.raises(OptionError, match="max_chunk must be a number of bytes"):
        f.jacobian(f.params, X, max_chunk=0)
    with pytest.raises(ParamsShapeError):
        f.jacobian(np.ones(3), X)
    with pytest.raises(NotDifferentiableError, match="differentiate with respect to floating inputs only"):
        f.jacobian(f.params, np.ones((2, 3), int), wrt=1)
    with pytest.raises(NotDifferentiableError, match="let autograd differentiate that"):
        grad(lambda p: f.jacobian(p, X).sum())(f.params)
    with pytest.raises(CotangentMismatchError, match=r"shape \(12,\), got \(3,\)"):
        f.vjp(f.params, X, cotangent=np.ones(3))
    with pytest.raises(CotangentMismatchError, match=r"tangent of argument 0 .* shape \(4,\), got \(3,\)"):
        f.jvp(f.params, X, tangent=np.ones(3))


def test_outputs_that_are_all_integers_are_refused():
    f = gb.primitive(lambda x: (x > 0).astype(int))
    with pytest.raises(NotDifferentiableError, match="returned only int64"):
        f.bridge.jacobian(np.empty(0), X, wrt=1)


SCALES = [1.0, 1e8, 1e14, 1e200]


@pytest.mark.parametrize("scale", SCALES)
def test_rows_that_depend_on_each_other_are_noticed_beside_numbers_of_any_size(scale):
    torch = pytest.importorskip("torch")

    def model(p, x):
        return (x * p["a"]).sum(1) * scale + (p["b"] * x.mean(0).detach()).sum()

    f = gb.bridge(
        model,
        params={"a": torch.ones(3, dtype=torch.float64), "b": torch.ones(3, dtype=torch.float64)},
        backend="torch",
    )
    truth = np.concatenate([X * scale, np.broadcast_to(X.mean(0), X.shape)], axis=1)
    np.testing.assert_allclose(f.jacobian(f.params, X), truth, rtol=1e-12)


def test_a_row_alone_that_gives_fewer_numbers_than_among_others_is_no_error():
    torch = pytest.importorskip("torch")
    wide = np.random.default_rng(1).normal(size=(4, 60))
    f = gb.bridge(
        lambda p, x: torch.stack([(x * p["w"]) @ x.T] * 2, 2),
        params={"w": torch.ones(60, dtype=torch.float64)},
        backend="torch",
    )
    truth = np.einsum("nk,mk->nmk", wide, wide)[:, :, None].repeat(2, axis=2)
    np.testing.assert_allclose(f.jacobian(f.params, wide), truth, rtol=1e-12)
    with pytest.raises(OptionError, match="its rows are not independent"):
        f.jacobian(f.params, wide, strategy="rows")


def test_gradients_of_no_rows_are_an_array_of_no_rows():
    f = waves_bridge()
    assert f.row_gradients(f.params, np.empty((0, 3))).shape == (0, 4)
