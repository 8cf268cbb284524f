"""What shard_rows refuses: rows that depend on each other, different models, wrong options."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad

ray = pytest.importorskip("ray")
torch = pytest.importorskip("torch")

from row_models import X, network  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import (  # noqa: E402
    AuditError,
    GuestError,
    OptionError,
    OutputError,
    UnknownModelError,
)
from gradbridge_ray import shard_rows  # noqa: E402


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


def test_what_is_cut_because_it_is_as_long_is_named_where_a_shard_fails_over_it(cluster):
    def turned(p, x, matrix):
        return anp.dot(anp.dot(x, matrix), p)

    with shard_rows(turned, workers=2, params=np.ones(4), backend="autograd") as g:
        x, matrix = np.arange(16.0).reshape(4, 4), np.eye(4)
        with pytest.raises(GuestError, match=r"input 1 was cut, too, .*g\.place\(x, rows=False\)"):
            g(g.params, g.place(x), matrix)
        np.testing.assert_array_equal(g(g.params, g.place(x), g.place(matrix, rows=False)), x.sum(1))


def test_a_primitive_is_told_that_models_have_their_params_first():
    with pytest.raises(OptionError, match=r"function of arrays alone.*\(params, \*inputs\)"):
        shard_rows(gb.primitive(lambda x: x**2, backend="autograd"), workers=2)
