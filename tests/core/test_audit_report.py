"""The audit on request: the report of `Bridge.audit`, and the command."""

import sys

import autograd.numpy as np
import numpy as onp
import pytest
from autograd.extend import defvjp
from autograd.extend import primitive as autograd_primitive
from click.testing import CliRunner

import gradbridge as gb
from gradbridge.cli import cli

X = onp.random.default_rng(0).normal(size=(5, 3))


def test_the_report_of_a_right_model_has_nothing_wrong_and_says_what_was_measured():
    f = gb.bridge(lambda p, x: np.tanh(np.dot(x, p)), params=onp.ones((3, 2)), backend="autograd")
    report = f.audit(f.params, X)
    assert report
    assert not report.wrong
    outcomes = {row.check: row for row in report}
    assert float(outcomes["gradient against differences"].figure) < 1e-8
    assert outcomes["second derivative"].outcome == "right"
    assert outcomes["third derivative"].outcome == "right"
    assert "differences of the derivative of one order less" in outcomes["third derivative"].meaning
    assert "independent" in outcomes["rows of the batch"].meaning
    assert str(report).count("\n") == len(report)
    onp.testing.assert_array_equal(f.params, onp.ones(6))


def test_the_report_names_what_is_wrong_and_raises_nothing(adapter_of):
    report = gb.bridge(adapter_of("halved")).audit(gb.bridge(adapter_of("halved")).params, X)
    assert not report
    assert [row.check for row in report.wrong] == ["second derivative"]
    wrong = gb.primitive(lambda x: x**2)
    wrong.defvjp(lambda ans, x: lambda v: 3 * x * v)
    row = next(r for r in wrong.audit(onp.arange(1.0, 4.0)) if r.check == "gradient against differences")
    assert row.outcome == "note"
    assert float(row.figure) == pytest.approx(0.2, abs=0.01)
    assert "differences of the outputs disagree with the gradient" in row.meaning


def test_a_model_that_remembers_shows_as_mended(adapter_of):
    rows = gb.bridge(adapter_of("forgetful")).audit(gb.bridge(adapter_of("forgetful")).params, X)
    assert rows[0].check == "mended"
    assert rows


MODELS = """
import autograd.numpy as np
import numpy as onp
import gradbridge as gb

params = onp.ones(3)
X = onp.ones((4, 3))

def linear(p, x):
    return np.dot(x, p)

@gb.primitive
def wrong(x):
    return x**2

calls = []

def counting(p, x):
    calls.append(1)
    return np.dot(x, p) * len(calls)
"""


def test_the_command_audits_what_an_import_gives(tmp_path, monkeypatch):
    (tmp_path / "audited_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    run = lambda *args: CliRunner().invoke(cli, ["audit", *args])
    function = ["--backend", "autograd", "--params", "audited_models:params"]
    good = run("audited_models:linear", *function, "--input", "4x3")
    assert good.exit_code == 0, good.output
    assert "nothing wrong" in good.output
    assert run("audited_models:linear", *function, "--input", "audited_models:X").exit_code == 0
    bad = run("audited_models:counting", *function, "--input", "4x3")
    assert bad.exit_code == 1
    assert "keeps something between calls" in bad.output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["audited_models"], "MODULE:NAME"),
        (["no_such_module:net"], "cannot be imported"),
        (["gradbridge:bridg"], "did you mean 'bridge'"),
        (["gradbridge:bridge", "--input", "4y3"], "takes a shape"),
    ],
)
def test_the_command_says_what_it_does_not_understand(args, said, capsys):
    result = CliRunner().invoke(cli, ["audit", *args])
    assert result.exit_code == 1
    assert said in result.output + result.stderr


def test_an_empty_batch_is_audited():
    f = gb.bridge(lambda p, x: np.dot(x, p), params=onp.ones(2), backend="autograd")
    assert f.audit(f.params, onp.zeros((0, 2)))


def test_the_report_calls_nothing_right_that_was_not_compared():
    cube = autograd_primitive(lambda x: x**3)
    once = autograd_primitive(lambda v, x: 3 * x**2 * v)
    defvjp(cube, lambda ans, x: lambda v: once(v, x))  # and once has no derivative of its own
    models = {
        "cannot be asked": lambda p, x: cube(np.dot(x, p)),
        "nothing can be determined here: a kink": lambda p, x: np.abs(np.sin(1e6 * np.dot(x, p))),
    }
    for said, model in models.items():
        f = gb.bridge(model, params=onp.ones(3), backend="autograd")
        rows = {row.check: row for row in f.audit(f.params, X)}
        assert rows["second derivative"].outcome == "-"
        assert said in rows["second derivative"].meaning
