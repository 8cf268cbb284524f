"""The demonstration as a user starts it, and its pictures."""

import sys

import matplotlib.image
import numpy as np
import pytest

pytest.importorskip("seldonian")
pytest.importorskip("torch")
from click.testing import CliRunner

from gradbridge_seldonian import plot_candidate_selection, plot_comparison
from gradbridge_seldonian.command import demo


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


def test_a_story_that_does_not_exist_is_refused():
    assert CliRunner().invoke(demo, ["--only", "poetry"]).exit_code == 2


def test_pictures_take_results_with_wild_and_infinite_values(tmp_path):
    steps = 30
    result = {
        "f_vals": np.linspace(2, 1, steps),
        "g_vals": np.column_stack([np.linspace(5, -1, steps), np.r_[np.inf, np.zeros(steps - 1)]]),
        "lamb_vals": np.ones((steps, 2)),
        "constraint_strs": ["a <= 1", "b <= 2"],
        "best_index": 20,
        "found_feasible_solution": True,
    }
    assert colours(plot_candidate_selection(result, tmp_path / "deep" / "one.png")) > 50
    two = plot_comparison("t", [("loss", {"a": 1.0, "b": -2.0}, 0.5)], tmp_path / "two.png", note="n")
    assert colours(two) > 20


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
    monkeypatch.setattr("gradbridge_seldonian.command._with_progress", pytest.fail)
    result = CliRunner().invoke(demo, ["--only", "regression", "--out", str(tmp_path / out)])
    assert result.exit_code == 2
    assert "--out" in result.output
    assert "the pictures cannot go there" in result.output
    assert (tmp_path / "taken").read_text() == "mine"
