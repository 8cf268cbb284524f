"""Long inputs in chunks of rows: the same results, no more than a chunk at a time, and wrong models noticed."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, hessian, jacobian

import gradbridge as gb
from gradbridge.errors import OptionError, OutputError

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(23, 3)), DRAW.normal(size=23)
P = np.array([0.5, -1.0, 2.0])


def bridges(function, rows=5):
    """The same function whole and in chunks."""
    options = {"params": P, "backend": "autograd"}
    return gb.bridge(function, **options), gb.bridge(function, rows_per_chunk=rows, **options)


def waves(p, x, y):
    return {"wave": anp.sin(anp.dot(x, p)) * y, "both": x * y[:, None]}


def loss(f):
    return lambda p, x, y: anp.sum(f(p, x, y)["wave"] ** 2) + anp.sum(anp.exp(f(p, x, y)["both"]))


def test_values_and_gradients_are_the_same():
    whole, chunked = bridges(waves)
    np.testing.assert_array_equal(whole(P, X, Y)["both"], chunked(P, X, Y)["both"])
    np.testing.assert_allclose(whole(P, X, Y)["wave"], chunked(P, X, Y)["wave"], rtol=1e-14)
    for position in range(3):
        expected = grad(loss(whole), position)(P, X, Y)
        np.testing.assert_allclose(grad(loss(chunked), position)(P, X, Y), expected, rtol=1e-12)


def test_higher_orders_are_the_same():
    whole, chunked = bridges(waves)
    np.testing.assert_allclose(hessian(loss(chunked))(P, X, Y), hessian(loss(whole))(P, X, Y), rtol=1e-12)
    mixed = [jacobian(grad(loss(f)), 1)(P, X, Y) for f in (whole, chunked)]
    np.testing.assert_allclose(mixed[1], mixed[0], rtol=1e-12, atol=1e-14)


def test_as_many_rows_as_params_are_no_matter():
    whole, chunked = bridges(waves, rows=2)
    np.testing.assert_allclose(
        hessian(loss(chunked))(P, X[:3], Y[:3]), hessian(loss(whole))(P, X[:3], Y[:3]), rtol=1e-12
    )


def test_the_model_never_sees_more_than_a_chunk_but_where_its_rows_are_looked_at():
    seen = []

    def watched(p, x, y):
        seen.append(len(x))
        return waves(p, x, y)

    chunked = gb.bridge(watched, params=P, backend="autograd", rows_per_chunk=5, audit="off")
    for _ in range(4):  # the first, second, fourth, eighth … call is looked at
        chunked(P, X, Y)
    seen.clear()
    grad(loss(chunked))(P, X, Y)
    assert max(seen) == 5


def test_jacobians_are_the_same():
    whole, chunked = bridges(lambda p, x: anp.sin(anp.dot(x, p)))
    for strategy in ("auto", "jvp", "loop"):
        np.testing.assert_allclose(
            chunked.jacobian(P, X, wrt=1, strategy=strategy),
            whole.jacobian(P, X, wrt=1),
            rtol=1e-12,
            atol=1e-15,
        )


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow", "numpy"])
def test_every_guest_works_in_chunks(backend):
    if not gb.backends()[backend].available:
        pytest.skip(f"{backend} is not installed")
    model = gb.build("mlp", sizes=[3, 4, 1], backend=backend, seed=0)
    whole = gb.bridge(model, backend=backend, dtype="float64")
    chunked = gb.bridge(model, backend=backend, dtype="float64", rows_per_chunk=5)
    p = whole.params
    for order in (grad,) if backend == "numpy" else (grad, hessian):
        expected, found = (order(lambda p, f=f: anp.sum(anp.exp(f(p, X))))(p) for f in (whole, chunked))
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(chunked.jacobian(p, X), jacobian(whole)(p, X), rtol=1e-10, atol=1e-14)


def test_per_example_jacobians_through_torch_in_chunks():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    whole = gb.bridge(model, dtype="float64")
    chunked = gb.bridge(model, dtype="float64", rows_per_chunk=5)
    p = whole.params
    np.testing.assert_allclose(chunked.jacobian(p, X, strategy="rows"), whole.jacobian(p, X), rtol=1e-12)
    expected = hessian(lambda p: anp.sum(whole(p, X) ** 2))(p)
    np.testing.assert_allclose(
        hessian(lambda p: anp.sum(chunked(p, X) ** 2))(p), expected, rtol=1e-10, atol=1e-13
    )


def test_short_and_empty_inputs_and_changes_in_place():
    whole, chunked = bridges(waves)
    assert chunked(P, X[:0], Y[:0])["both"].shape == (0, 3)
    np.testing.assert_array_equal(grad(loss(chunked))(P, X[:4], Y[:4]), grad(loss(whole))(P, X[:4], Y[:4]))
    x = X.copy()
    expected = grad(loss(whole))(P, X, Y)

    def changing(p):
        value = loss(chunked)(p, x, Y)
        x[:] = 7.0
        return value

    np.testing.assert_allclose(grad(changing)(P), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "function",
    [
        lambda p, x: anp.dot(x - anp.mean(x, 0), p),
        lambda p, x: anp.dot(x / anp.sum(anp.exp(x), 0), p),
        lambda p, x: anp.cumsum(anp.dot(x, p)),
    ],
    ids=["mean", "softmax", "cumsum"],
)
def test_rows_that_see_each_other_are_refused(function):
    _, chunked = bridges(function)
    with pytest.raises(
        OptionError, match="rows of .* independent of each other: .* other numbers than in parts"
    ):
        chunked(P, X)


def test_outputs_without_rows_are_refused():
    _, chunked = bridges(lambda p, x: anp.sum(anp.dot(x, p)))
    with pytest.raises(OutputError, match="a row for each row of the inputs"):
        chunked(P, X)


@pytest.mark.parametrize("rows", [0, -3, True, 2.5, "all"])
def test_rows_per_chunk_is_a_number_of_rows(rows):
    with pytest.raises(OptionError, match="rows_per_chunk must be a number of rows"):
        bridges(waves, rows=rows)


def test_train_mode_is_refused():
    with pytest.raises(OptionError, match="rows share masks and batch statistics"):
        gb.bridge(waves, params=P, backend="autograd", rows_per_chunk=5, mode="train")


def test_a_dependence_that_adds_nothing_at_first_is_noticed():
    _, summed = bridges(lambda p, x: anp.cumsum(x * p, axis=0), rows=3)
    with pytest.raises(OptionError, match="not independent of each other"):
        summed(P, np.zeros((8, 3)))  # all sums are zero
    _, centred = bridges(lambda p, x: anp.dot(x, p) + p[0] * anp.mean(x), rows=3)
    with pytest.raises(OptionError, match="not independent of each other"):
        centred(np.array([0.0, 1.0, 2.0]), X)  # the mean counts for nothing yet


def test_a_single_number_among_the_inputs_has_every_derivative():
    whole, chunked = bridges(lambda p, x, s: anp.sin(anp.dot(x, p) * s))

    def value(f):
        return lambda s: anp.sum(f(P, X, s) ** 2)

    np.testing.assert_allclose(grad(value(chunked))(0.7), grad(value(whole))(0.7), rtol=1e-12)
    np.testing.assert_allclose(grad(grad(value(chunked)))(0.7), grad(grad(value(whole)))(0.7), rtol=1e-12)


def test_rows_by_rows_in_chunks_that_do_not_fit_each_other_are_refused():
    _, chunked = bridges(lambda p, x: anp.dot(x * p, x.T), rows=5)
    with pytest.raises(OutputError, match=r"has shape \(5, 5\), \(3, 3\) on chunks of 5 rows"):
        chunked(P, X)


def test_what_can_only_be_evaluated_is_evaluated_in_chunks():
    jax = pytest.importorskip("jax")

    def halved(p, x):
        return jax.lax.while_loop(lambda y: abs(y).max() > 1e-3, lambda y: y / 2, x * p["w"])

    f = gb.bridge(halved, params={"w": P}, backend="jax", dtype="float64", rows_per_chunk=23 // 2 + 12)
    small = gb.bridge(
        lambda p, x: x * p["w"] * jax.lax.while_loop(lambda i: i < 3, lambda i: i + 1, 0),
        params={"w": P},
        backend="jax",
        dtype="float64",
        rows_per_chunk=4,
    )
    np.testing.assert_allclose(small(P, X), 3 * X * P, rtol=1e-12)
    assert f(P, X).shape == X.shape


def test_low_precision_is_looked_at_in_its_own_rounding():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    x = DRAW.normal(size=(40, 3))
    for dtype in ("bfloat16", "float16", "float32", "float64"):
        chunked = gb.bridge(net, dtype=dtype, rows_per_chunk=7)
        whole = gb.bridge(net, dtype=dtype)
        np.testing.assert_allclose(chunked(whole.params, x), whole(whole.params, x), rtol=0.02, atol=0.02)


def test_zeros_in_single_precision_are_no_reason_to_look_less_closely():
    torch = pytest.importorskip("torch")
    tiny = gb.bridge(
        lambda p, x: (x * p["w"]).sum(1) * (1 + 1e-3 * x.shape[0]),
        params={"w": torch.ones(3)},
        backend="torch",
        rows_per_chunk=3,
    )
    with pytest.raises(OptionError, match="not independent of each other"):
        tiny(np.ones(3), np.zeros((8, 3)))  # the outputs are zeros; their gradients differ by a thousandth


def test_a_first_look_that_tells_nothing_is_followed_by_another():
    seen = []

    def watched(p, x):
        seen.append(len(x))
        return anp.sqrt(anp.abs(anp.dot(x, p)))

    _, chunked = bridges(watched)
    still = X.copy()
    still[0] = 0.0
    with np.errstate(all="ignore"):  # gradients there are not finite
        np.testing.assert_allclose(chunked(P, still), np.sqrt(np.abs(still @ P)))
    for looks in (True, True, False):  # the one that tells, at a second call, and none at the third
        seen.clear()
        np.testing.assert_allclose(chunked(P, X), np.sqrt(np.abs(X @ P)))
        assert (max(seen) > 5) is looks


def test_rows_that_depend_on_each_other_are_noticed_after_a_look_that_told_nothing():
    _, chunked = bridges(
        lambda p, x: anp.sqrt(anp.abs(anp.dot(x, p))) * (1 + anp.sum(x[1:] ** 2) * anp.any(x[0]))
    )
    still = X * 0.0
    with np.errstate(all="ignore"):
        chunked(P, still)
    with pytest.raises(OptionError, match="not independent"):
        chunked(P, X)


@pytest.mark.parametrize("seed", range(5))
def test_outputs_that_are_zero_but_for_rounding_are_rows_of_their_own(seed):
    draw = np.random.default_rng(seed)
    p, x = draw.normal(size=3), draw.normal(size=(12, 3))
    _, chunked = bridges(lambda p, x: anp.log(anp.exp(anp.dot(x, p))) - anp.dot(x, p))
    np.testing.assert_allclose(chunked(p, x), 0.0, atol=1e-14)
    _, column = bridges(lambda p, x: 1e-30 * (anp.dot(x, p) - anp.mean(anp.dot(x, p))))
    with pytest.raises(OptionError, match="not independent"):
        column(p, x)


def test_a_model_that_keeps_something_of_its_first_rows_is_looked_at_again_when_it_keeps_nothing():
    torch = pytest.importorskip("torch")

    class Memo(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear, self.first = torch.nn.Linear(3, 1), None

        def forward(self, x):
            y = self.linear(x)
            if self.first is None:
                self.first = float(y.detach().mean())
            return y - self.first  # the same for all later calls, and so for all rows that are looked at

    f = gb.bridge(Memo(), rows_per_chunk=5)
    with pytest.raises(OptionError, match="the rows of Memo are not independent"):
        grad(lambda p: anp.sum(f(p, X) ** 2))(f.params)


def test_bridges_with_trees_of_dataclasses_are_pickled_for_processes_that_never_met_them(tmp_path):
    import subprocess
    import sys

    (tmp_path / "containers.py").write_text(
        "import dataclasses\n\n@dataclasses.dataclass\nclass Pair:\n    a: object\n    b: object\n\n"
        "def model(p, x):\n    return p.a * x + p.b\n"
    )
    write = (
        "import containers, pickle, gradbridge as gb, numpy as np\n"
        "f = gb.bridge(containers.model, params=containers.Pair(np.ones(1), np.zeros(1)), backend='autograd')\n"
        "open('bridge', 'wb').write(pickle.dumps(f))"
    )
    read = "import pickle\nf = pickle.load(open('bridge', 'rb'))\nprint(f([2.0, 1.0], 3.0), f.layout.names)"
    for code in (write, read):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout == "[7.] ('a', 'b')\n"


def centred(p, x, center=False):
    return (x - anp.mean(x, axis=0) if center else x) @ p["w"]


def test_a_dependence_that_a_keyword_turns_on_is_seen_in_its_first_call():
    f = gb.bridge(centred, params={"w": np.ones(2)}, backend="autograd", rows_per_chunk=4)
    x = np.arange(20.0).reshape(10, 2)
    assert np.allclose(f(f.params, x), x.sum(1))
    with pytest.raises(OptionError, match="not independent"):
        f(f.params, x, center=True)


def test_what_all_rows_share_is_not_cut_when_it_becomes_as_long_as_the_rows():
    def kernel(p, x, centres):
        return p["a"] * anp.sum(anp.exp(-((x[:, None] - centres[None]) ** 2).sum(-1)), 1)

    f = gb.bridge(kernel, params={"a": np.ones(())}, backend="autograd", rows_per_chunk=4)
    x, centres = np.random.default_rng(0).normal(size=(12, 2)), np.linspace(-1, 1, 12).reshape(6, 2)
    assert np.allclose(f(f.params, x, centres), kernel({"a": 1.0}, x, centres))
    with pytest.raises(OptionError, match="not independent"):
        f(f.params, x[:6], centres)


def test_a_gate_that_hides_a_dependence_at_its_start_is_seen_when_it_has_moved():
    def gated(p, x):
        return x @ p["w"] + p["a"] ** 2 * anp.mean(x)

    f = gb.bridge(gated, params={"a": np.zeros(()), "w": np.ones(2)}, backend="autograd", rows_per_chunk=4)
    x = np.random.default_rng(0).normal(size=(10, 2))
    assert np.allclose(f(f.params, x), x.sum(1))
    with pytest.raises(OptionError, match="not independent"):
        f(f.params + 1.0, x)


def test_an_output_as_long_as_the_pieces_are_many_is_none_of_rows():
    def means(p, x):
        return anp.mean(x, axis=0) * p["w"]

    f = gb.bridge(means, params={"w": np.ones(5)}, backend="autograd", rows_per_chunk=5)
    with pytest.raises(OptionError, match="no row for each row"):
        f(f.params, np.ones((10, 5)))  # 5 + 5 == 10
