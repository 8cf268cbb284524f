"""Candidate selection with rows over workers ends where it ends in one process."""

import numpy as np
import pytest

pytest.importorskip("ray")
pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")

import gradbridge as gb  # noqa: E402
from gradbridge_ray import shard_rows  # noqa: E402
from gradbridge_seldonian import SeldonianModel, SpecError, over_workers, supervised_spec  # noqa: E402


def data():
    from seldonian.dataset import SupervisedDataSet, SupervisedMetaData

    draw = np.random.default_rng(0)
    X, sex = draw.normal(size=(301, 3)), draw.integers(0, 2, size=301)
    y = (X @ [1.0, -2.0, 0.5] + 0.4 * sex + draw.normal(size=301) > 0).astype(float)
    meta = SupervisedMetaData(
        "classification", ["F", "M", "a", "b", "c", "y"], ["a", "b", "c"], ["y"], ["F", "M"]
    )
    return SupervisedDataSet(
        features=X,
        labels=y,
        sensitive_attrs=np.stack([sex, 1 - sex], axis=1),
        num_datapoints=301,
        meta=meta,
    )


def network():
    torch.manual_seed(0)
    layers = torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1), torch.nn.Sigmoid()
    return torch.nn.Sequential(*layers)


CONSTRAINTS = ["abs((FNR | [F]) - (FNR | [M])) <= 0.3", "PR >= 0.2"]


def run(model, **options):
    from seldonian.seldonian_algorithm import SeldonianAlgorithm

    spec = supervised_spec(data(), model, CONSTRAINTS, [0.1, 0.1], num_iters=25, **options)
    algorithm = SeldonianAlgorithm(spec)
    with gb.trace() as t:
        passed, _ = algorithm.run()
    bounds = [float(tree.root.upper) for tree in algorithm.st_result.values()]
    return spec, passed, algorithm.cs_result["candidate_solution"], algorithm.cs_result, bounds, t.counts


def test_a_run_over_workers_is_the_run_in_one_process(cluster):
    _, passed, theta, selection, bounds, counts = run(SeldonianModel(network()))
    model = SeldonianModel(network())
    spec, over, same, theirs, found, made = run(model, workers=2)
    try:
        np.testing.assert_allclose(same, theta, rtol=1e-12, atol=1e-12)
        for key in ("f_vals", "g_vals", "L_vals", "lamb_vals"):
            np.testing.assert_allclose(theirs[key], selection[key], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found, bounds, rtol=1e-12, atol=1e-12)
        assert (over, made) == (
            passed,
            counts,
        )  # the groups' rows come from the objective's evaluation here, too
        assert spec.model is not model
        assert type(model.bridge) is gb.Bridge
        tallies = spec.model.bridge.status().values()
        assert len(tallies) == 2
        assert all(tally.rows > 25 * 60 for tally in tallies)
        # Candidate features, safety features, and the rows of the looks: sent once each.
        assert len(spec.model.bridge._remembered._kept) <= 8
    finally:
        spec.model.bridge.close()


def test_rows_that_are_passed_again_are_sent_once_and_recognised_by_what_they_are(cluster):
    X = np.arange(12.0).reshape(4, 3)
    with shard_rows(gb.bridge(network()), workers=2, cpus_per_worker=0.5, remember_rows=2) as g:
        first = g(g.params, X)
        kept = g._remembered._kept
        assert np.array_equal(g(g.params, X.copy()), first)
        assert g._remembered._kept is kept
        X[0] = 7.0  # in place
        assert not np.array_equal(g(g.params, X), first)
        g(g.params, X + 1)
        assert len(g._remembered._kept) == 2


def test_workers_are_for_models_of_ours_and_asked_for_once(cluster):
    from seldonian.models.models import BinaryLogisticRegressionModel

    with pytest.raises(SpecError, match="workers must be None or a number of workers"):
        run(SeldonianModel(network()), workers=0)
    with pytest.raises(SpecError, match="a BinaryLogisticRegressionModel computes in its own way"):
        run(BinaryLogisticRegressionModel(), workers=2, initial_solution=np.zeros(4))
    sharded = over_workers(SeldonianModel(network()), 2)
    with pytest.raises(SpecError, match="the model is over 2 workers already"):
        run(sharded, workers=2)
    sharded.bridge.close()


def test_the_demonstration_tells_what_the_workers_did(cluster, tmp_path):
    from click.testing import CliRunner

    from gradbridge_seldonian.demo.command import demo

    done = CliRunner().invoke(
        demo,
        ["--only", "fairness", "--workers", "2", "--quick", "--backend", "torch", "--out", str(tmp_path)],
    )
    assert done.exit_code == 0, done.output
    told = " ".join(done.output.split())
    assert "Rows over 2 workers. worker 1: " in told
    assert "iterations the loss differs from that of one process by" in told
    assert (tmp_path / "fairness_comparison.png").stat().st_size > 10_000
