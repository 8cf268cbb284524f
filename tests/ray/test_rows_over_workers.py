"""Rows over the workers of a real cluster: equal to native PyTorch, and to closed forms, in float64."""

import copy
import pickle
import threading

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import elementwise_grad, grad, hessian_vector_product, make_jvp, value_and_grad

ray = pytest.importorskip("ray")
torch = pytest.importorskip("torch")

import gradbridge as gb  # noqa: E402
from gradbridge.errors import (  # noqa: E402
    AuditError,
    InputError,
    NotDifferentiableError,
    OptionError,
    OutputError,
    UnknownModelError,
)
from gradbridge.placed import PlacedArray  # noqa: E402
from gradbridge_ray import adapter, shard_rows  # noqa: E402

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(101, 5)), DRAW.normal(size=(101, 1))
D = DRAW.normal(size=57)


def network():
    torch.manual_seed(0)
    layers = torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    return torch.nn.Sequential(*layers).double()


@pytest.fixture(scope="module")
def g(cluster):
    with shard_rows(network, workers=3, dtype="float64") as made:
        yield made


@pytest.fixture(scope="module")
def R(g):
    return g.place(X)


def curves(p, x, shift=0.0, names=None):
    """Several outputs of a function of autograd.numpy: rows of two shapes, and integers."""
    z = anp.dot(x, p["w"]) + p["b"] + shift
    return {"sine": anp.sin(z), "both": (z[:, None] * x, (z > 0) * 1)}


TREE = {"b": np.array(0.3), "w": np.linspace(-1, 1, 5)}


@pytest.fixture(scope="module")
def h(cluster):
    with shard_rows(curves, workers=2, params=TREE, backend="autograd", cpus_per_worker=0.5) as made:
        yield made


def loss(f, x):
    return lambda p: anp.mean((f(p, x) - Y) ** 2)


def native(params, x=X):
    """(loss, gradient by the params, gradient by the inputs, product with D) by PyTorch alone."""
    net = network()
    p = torch.tensor(params, requires_grad=True)
    inputs = torch.tensor(x, requires_grad=True)
    names = [n for n, _ in net.named_parameters()]
    shapes = [w.shape for w in net.parameters()]
    parts = [part.reshape(s) for part, s in zip(p.split([s.numel() for s in shapes]), shapes)]
    value = ((torch.func.functional_call(net, dict(zip(names, parts)), inputs) - torch.tensor(Y)) ** 2).mean()
    own, rows = torch.autograd.grad(value, (p, inputs), create_graph=True)
    product = torch.autograd.grad(own, p, torch.tensor(D))[0]
    return value.item(), own.detach().numpy(), rows.detach().numpy(), product.numpy()


def close(ours, theirs, times=1):
    assert np.abs(ours - theirs).max() <= times * 2e-15 * np.abs(theirs).max()


# -- numbers ----------------------------------------------------------------------------------


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


# -- inputs and outputs -----------------------------------------------------------------------


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


# -- whether it may be cut at all -------------------------------------------------------------


def test_rows_that_depend_on_each_other_are_noticed(cluster):
    def centred(p, x):
        return anp.dot(x - anp.mean(x, axis=0), p)

    with (
        shard_rows(centred, workers=2, params=np.ones(5), backend="autograd", cpus_per_worker=0.5) as f,
        pytest.raises(OptionError, match="the rows of centred are not independent of each other"),
    ):
        f(f.params, f.place(X))


def test_outputs_without_rows_are_named(cluster):
    with shard_rows(
        lambda p, x: anp.sum(anp.dot(x, p)),
        workers=2,
        params=np.ones(5),
        backend="autograd",
        cpus_per_worker=0.5,
    ) as f:
        with pytest.raises(OutputError, match="needs outputs with a row for each row of the inputs"):
            f(f.params, X)
        assert f(f.params, X[:1]) == pytest.approx(X[0].sum())  # one piece is a whole


def test_workers_with_different_models_are_noticed(cluster):
    def drawn():
        import os

        shift = int.from_bytes(os.urandom(2), "big")
        return gb.bridge(lambda p, x: anp.dot(x, p) + shift, params=np.ones(5), backend="autograd")

    with (
        shard_rows(drawn, workers=2, cpus_per_worker=0.5) as f,
        pytest.raises(AuditError, match="the workers hold different models"),
    ):
        f(f.params, X)


def test_a_model_that_keeps_something_of_its_rows_is_told_from_one_that_is_another_in_each_worker(cluster):
    def memo():
        class Memo(torch.nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.linear, self.first = torch.nn.Linear(5, 1), None

            def forward(self, x):
                y = self.linear(x)
                if self.first is None:
                    self.first = float(y.detach().mean())
                return y - self.first

        return Memo()

    def counting():
        class Counting(torch.nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.linear, self.calls = torch.nn.Linear(5, 1).double(), 0

            def forward(self, x):
                self.calls += 1
                return self.linear(x) * (1 if self.calls == 1 else 2)

        return Counting()

    with (
        shard_rows(memo, workers=2, cpus_per_worker=0.5) as f,
        pytest.raises(OptionError, match="the rows of Memo are not independent"),
    ):
        grad(lambda p: anp.sum(f(p, X) ** 2))(f.params)
    with shard_rows(counting, workers=2, cpus_per_worker=0.5) as f:
        gradient = grad(lambda p: anp.sum(f(p, X)))(f.params)
        np.testing.assert_allclose(gradient, [*X.sum(axis=0), 101], rtol=1e-13)
        assert "fresh copy" in f.capabilities["audited"].note


def test_train_mode_and_wrong_options_are_refused_before_anything_starts():
    with pytest.raises(OptionError, match="rows share masks"):
        shard_rows(network, workers=2, mode="train")
    for options, said in (
        ({"workers": 0}, "workers must be a number of workers, 1 or more"),
        ({"timeout": -1}, "timeout must be a positive number"),
        ({"cpus_per_worker": "two"}, "cpus_per_worker must be"),
        ({"reuse": -1}, "reuse must be"),
    ):
        with pytest.raises(OptionError, match=said):
            shard_rows(network, **options)
    with pytest.raises(OptionError, match="Bridge is complete"):
        shard_rows(gb.bridge(network()), dtype="float64")
    with pytest.raises(UnknownModelError):
        shard_rows(object())


def test_what_makes_the_model_may_fail_in_a_worker(cluster):
    with pytest.raises(OptionError, match=r"worker 1 of 2.*has no option"):
        shard_rows(network, workers=2, cpus_per_worker=0.5, no_such_option=1)
    with pytest.raises(UnknownModelError, match="no backend recognises"):
        shard_rows(lambda: object(), workers=1, cpus_per_worker=0.5)


# -- what a bridge is otherwise ---------------------------------------------------------------


def test_a_bridge_is_sent_with_its_options_and_remembers_evaluations(cluster):
    given = gb.bridge(network(), dtype="float64", reuse=4)
    with shard_rows(given, workers=2, cpus_per_worker=0.5) as f:
        placed = f.place(X)
        for _ in range(3):
            gradient = grad(loss(f, placed))(f.params)
        assert (f.memory.hits, f.memory.misses) == (2, 1)
        close(gradient, native(f.params)[1])
        assert np.array_equal(f.params, given.params)
        report = f.audit(f.params, placed)
        assert report, report


def test_copies_share_the_workers_and_pickles_find_them(g, R):
    for twin in (copy.deepcopy(g), pickle.loads(pickle.dumps(g))):
        assert np.array_equal(grad(loss(twin, R))(g.params), grad(loss(g, R))(g.params))
        assert [t.pid for t in twin.status().values()] == [t.pid for t in g.status().values()]


def test_calls_in_several_threads_do_not_see_each_other(g, R):
    points = [g.params * (1 + 0.1 * i) for i in range(6)]
    expected = [grad(loss(g, R))(p) for p in points]
    found = [None] * 6

    def work(i):
        for _ in range(3):
            found[i] = grad(loss(g, R))(points[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(found, expected))


def test_residuals_are_dropped_with_their_evaluation(g, R):
    evaluations = [value_and_grad(loss(g, R))(g.params) for _ in range(5)]
    del evaluations
    g.status()
    assert all(tally.kept == 0 for tally in g.status().values())


def test_steps_are_observed_and_arrays_of_the_caller_may_change_after_the_call(g):
    rows, p = X.copy(), g.params.copy()
    from autograd.core import make_vjp

    with gb.trace() as t:
        pull, _ = make_vjp(lambda q: anp.sum(g(q, rows) ** 2), p)
        rows[:], p[:] = 0.0, 0.0
        gradient = pull(1.0)
    assert t.counts == {"update": 1, "forward": 1, "zero": 1, "backward": 1}
    close(gradient, grad(lambda q: anp.sum(g(q, X) ** 2))(g.params))


def test_the_status_is_a_table(g, R):
    g(g.params, R)
    told = str(g.status())
    for word in ("worker", "rows", "forwards", "seconds", "restarts"):
        assert word in told
    assert len(g.status()) == 3
    with g.watch(0.05):
        g(g.params, R)
