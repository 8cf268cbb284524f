"""The experiments package over models of each framework: in one process and in two, refused where it would hang.

The program is that of the guide; all of its code runs here.
"""

import csv
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("seldonian")
if importlib.util.find_spec("experiments") is None:
    pytest.skip("seldonian-experiments is not installed", allow_module_level=True)
if not hasattr(os, "fork"):
    pytest.skip("there are no forks here", allow_module_level=True)

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "experiments.md"


@pytest.fixture(name="program")
def _program(tmp_path):
    """Runs the guide's program, or other code that may import it, within a time limit."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "experiment.py").write_text("\n".join(blocks), encoding="utf-8")

    def run(*arguments, code=None, file="experiment.py"):
        start = [tmp_path / file] if code is None else ["-c", code]
        folders = [str(tmp_path), *filter(None, sys.path)]
        return subprocess.run(
            [sys.executable, *start, *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        )

    return run


def results(folder):
    """{(fraction, trial): (accuracy, whether it passed, the constraint's value)} of a finished experiment."""
    with open(folder / "qsa_results" / "qsa_results.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return {
        (float(line["data_frac"]), int(line["trial_i"])): (
            float(line["performance"]),
            line["passed_safety"] == "True",
            float(line["gvec"].strip("[]")),
        )
        for line in lines
    }


def table(folder):
    found = results(folder)
    assert sorted(found) == [(0.5, 0), (0.5, 1), (1.0, 0), (1.0, 1)]
    return np.array([found[key] for key in sorted(found)], dtype=float)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_the_guides_experiment_finds_the_same_with_one_worker_and_with_two(framework, program, tmp_path):
    # PyTorch in forked workers, Keras in spawned ones.
    pytest.importorskip(framework)
    done = program(framework, 1, 2)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (table(tmp_path / f"{framework}_{n}") for n in (1, 2))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-7)
    assert one[:, 1].all()
    assert (tmp_path / f"{framework}_2" / "curves.png").exists()


def test_a_jax_model_finds_what_the_engines_own_finds_in_forked_workers_until_its_parent_starts_jax(
    program, tmp_path
):
    pytest.importorskip("jax")
    done = program(
        code="""
import numpy as np
import experiment
from seldonian.models.models import BinaryLogisticRegressionModel

class Own(BinaryLogisticRegressionModel):
    def initial_solution(self, *data):
        return np.array([0.0, 1.0, 1.0, 1.0])

experiment.experiment("jax", 2, "two_workers")
experiment.experiment("jax", 1, "one_worker")
bridged, experiment.make_model = experiment.make_model, lambda framework: Own()
experiment.experiment("engine", 1, "own")
experiment.make_model = bridged
print("so far it runs", flush=True)
experiment.experiment("jax", 2, "refused")
"""
    )
    assert "so far it runs" in done.stdout, done.stdout + done.stderr
    expected = table(tmp_path / "own")
    for folder in ("two_workers", "one_worker"):
        np.testing.assert_allclose(table(tmp_path / folder), expected, rtol=0, atol=1e-7)
    assert done.returncode != 0
    assert re.search(r"ForkError: JAX was started in process \d+, which then forked", done.stderr)
    assert "get_context('spawn')" in done.stderr
    assert not list(tmp_path.glob("refused/qsa_results/trial_data/*.csv"))


def test_a_keras_model_is_refused_in_forked_workers(program):
    pytest.importorskip("keras")
    done = program(code="import experiment; experiment.experiment('keras', 2, 'keras')")
    assert done.returncode != 0
    assert re.search(r"ForkError: TensorFlow was started in process \d+, which then forked", done.stderr)


def test_a_model_that_does_not_fit_ends_the_experiment_and_is_no_trial_without_a_solution(program, tmp_path):
    # It is tried where the engine first computes, within the trial: JAX was not started before.
    pytest.importorskip("jax")
    (tmp_path / "wrong.py").write_text(
        """
import numpy as np
import experiment
from gradbridge.errors import GradbridgeError
from gradbridge_seldonian import SeldonianModel

def two_outputs(p, x):
    return x @ p["w"]

def make_model(framework):
    return SeldonianModel(two_outputs, backend="jax", params={"w": np.ones((3, 2))})

if __name__ == "__main__":
    experiment.make_model = make_model
    for n_workers in (2, 1):
        try:
            experiment.experiment("jax", n_workers, "wrong")
        except GradbridgeError as error:
            print(isinstance(error, ValueError), error)
""",
        encoding="utf-8",
    )
    done = program(file="wrong.py")
    assert done.returncode == 0, done.stderr
    told = [
        line for line in done.stdout.splitlines() if "classification needs predictions of shape (n,)" in line
    ]
    assert [line.split()[0] for line in told] == ["False", "False"]
    assert not list(tmp_path.glob("wrong/qsa_results/trial_data/*.csv"))
