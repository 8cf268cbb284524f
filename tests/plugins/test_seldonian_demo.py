"""The demonstration as a user starts it, and its pictures."""

import functools
import os
import subprocess
import sys

import matplotlib
import matplotlib.image
import numpy as np
import pytest

pytest.importorskip("seldonian")
pytest.importorskip("torch")
import scipy.stats
from click.testing import CliRunner
from sklearn.datasets import load_digits

import gradbridge
from gradbridge_seldonian.demo.command import demo
from gradbridge_seldonian.demo.stories import digits, fairness
from gradbridge_seldonian.demo.story import Setting


def colours(path):
    """How many different colours a picture has: a blank one has a single."""
    pixels = (matplotlib.image.imread(path)[..., :3] * 255).astype(np.uint8).reshape(-1, 3)
    return len(np.unique(pixels, axis=0))


def test_the_regression_story_reaches_the_engines_own_solution(tmp_path):
    result = CliRunner().invoke(demo, ["--only", "regression", "--out", str(tmp_path), "--backend", "torch"])
    assert result.exit_code == 0, result.output
    assert result.output.count("0.16911355") == 2
    assert result.output.count("0.17381460") == 2
    assert result.output.count("passed") == 2
    assert colours(tmp_path / "regression_candidate_selection.png") > 50


def setting(quick=False):
    return Setting(functools.partial(gradbridge.build, backend="torch"), lambda: None, quick)


def standard_error(sample):
    return float(np.std(sample, ddof=1) / np.sqrt(len(sample)))


def test_digits_pass_and_fail_by_margins_that_another_machine_keeps_and_the_promise_costs():
    constrained, unconstrained = (story := digits(setting())).outcomes
    assert constrained.passed
    assert not unconstrained.passed
    assert constrained.loss > 1.5 * unconstrained.loss
    labels = load_digits().target[np.random.default_rng(0).permutation(1797)][-len(constrained.predictions) :]
    sure = dict(story.rows)['mean probability of "8" for eights']
    for outcome in story.outcomes:
        eights = outcome.predictions[labels == 8, 8]
        error = standard_error(eights)
        # The engine's bound is that of Student's t-test.
        bound = eights.mean() - error * scipy.stats.t.ppf(0.95, len(eights) - 1)
        np.testing.assert_allclose(0.85 - outcome.bounds[0], bound, rtol=1e-6)
        assert abs(bound - 0.85) > 3 * error
        assert sure(outcome) == f"{eights.mean():.3f}"


def test_a_measured_gap_under_the_limit_that_fails_is_explained_with_its_bound(tmp_path):
    story = fairness(setting())
    free = story.outcomes[1]
    assert not free.passed
    measured, bound = (dict(story.rows)[row](free) for row in list(dict(story.rows))[:2])
    assert float(measured) < 0.2 < float(bound)
    np.testing.assert_allclose(float(bound), 0.2 + free.bounds[0], atol=6e-4)
    assert f"So {measured} under a limit of 0.2 fails: it may be up to {bound}." in story.notes[0]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        words = story.pictures["comparison"](tmp_path / "one.svg").read_text()
    assert f"bound {bound}" in words
    assert f"So {measured} under a limit of 0.2 fails" in " ".join(words.split())


def test_a_story_of_a_network_that_the_backend_cannot_build_is_left_out_with_the_reason(tmp_path):
    result = CliRunner().invoke(demo, ["--only", "digits", "--out", str(tmp_path), "--backend", "NumPy"])
    assert result.exit_code == 1
    assert "digits is left out: the numpy backend builds dense layers only" in " ".join(result.output.split())


@pytest.mark.parametrize("width", ["60", "80"])
def test_what_is_told_fits_the_terminal(tmp_path, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    result = CliRunner().invoke(demo, ["--only", "fairness", "--quick", "--out", str(tmp_path)])
    told = [line for line in result.output.splitlines() if not line.startswith("picture: ")]
    assert max(map(len, told)) <= int(width)
    assert "…\n" not in result.output
    assert "must hold with probability 0.9: abs((FNR | [sex_1]) - (FNR | [sex_2])) <= 0.2" in " ".join(
        result.output.split()
    )


@pytest.mark.parametrize("story", ["digits", "fairness"])
def test_the_stories_of_real_data_are_told_and_drawn(tmp_path, story):
    result = CliRunner().invoke(demo, ["--quick", "--only", story, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "unconstrained" in result.output
    for picture in ("candidate_selection", "comparison"):
        assert colours(tmp_path / f"{story}_{picture}.png") > 50


def test_a_line_can_be_trained_in_plain_numpy(tmp_path):
    result = CliRunner().invoke(demo, ["--only", "regression", "--out", str(tmp_path), "--backend", "numpy"])
    assert result.exit_code == 0, result.output


def test_a_mistyped_backend_gets_the_nearest():
    result = CliRunner().invoke(demo, ["--backend", "troch"])
    assert "did you mean 'torch'" in str(result.exception)


def test_a_backend_may_be_called_by_another_name(tmp_path):
    result = CliRunner().invoke(
        demo, ["--only", "Regression", "--out", str(tmp_path), "--backend", "PyTorch"]
    )
    assert result.exit_code == 0, result.output
    assert "models in torch" in result.output


@pytest.mark.parametrize(
    ("story", "hint"),
    [("poetry", ""), ("fairnes", "did you mean 'fairness'? "), ("Digit", "did you mean 'digits'? ")],
)
def test_a_story_that_does_not_exist_is_refused_with_the_nearest(story, hint):
    result = CliRunner().invoke(demo, ["--only", story])
    assert result.exit_code == 2
    assert f"there is no story {story!r}; {hint}there are regression, digits" in " ".join(
        result.output.split()
    )


def test_a_pipe_without_all_letters_gets_the_story(tmp_path):
    told = subprocess.run(
        [sys.executable, "-m", "gradbridge", "demo", "--only", "regression", "--out", str(tmp_path)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=120,
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.count(b"0.16911355") == 2


def test_without_the_engine_the_word_is_how_to_install_it(monkeypatch):
    from gradbridge.errors import BackendUnavailableError

    monkeypatch.delitem(sys.modules, "gradbridge_seldonian.engine")
    monkeypatch.setitem(sys.modules, "seldonian.models", None)
    with pytest.raises(BackendUnavailableError, match="--no-deps seldonian-engine==0.8.11"):
        __import__("gradbridge_seldonian.engine")


@pytest.mark.parametrize("out", ["taken", "taken/inner", "/proc/nowhere", "folder"])
def test_a_folder_that_takes_no_pictures_is_refused_before_anything_is_trained(tmp_path, monkeypatch, out):
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "folder" / "regression_candidate_selection.png").mkdir(parents=True)
    monkeypatch.setattr("gradbridge_seldonian.demo.command._with_progress", pytest.fail)
    result = CliRunner().invoke(demo, ["--only", "regression", "--out", str(tmp_path / out)])
    assert result.exit_code == 2
    assert "--out" in result.output
    assert "the pictures cannot go there" in result.output
    assert (tmp_path / "taken").read_text() == "mine"
