"""The command `gradbridge`: what it lists, and what it says to a name that it does not know."""

import subprocess
import sys

import pytest


def test_the_command_line_lists_the_backends_with_reasons():
    run = subprocess.run(
        [sys.executable, "-c", "from gradbridge.cli import main; main()", "backends"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "autograd" in run.stdout
    assert "numpy" in run.stdout


def test_a_mistyped_command_exits_with_an_error():
    run = subprocess.run(
        [sys.executable, "-c", "from gradbridge.cli import main; main()", "bakends"],
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "bakends" in run.stderr


@pytest.mark.parametrize("typed", ["backend", "Backends", "bakends"])
def test_a_misspelt_command_gets_the_nearest_one(typed):
    from click.testing import CliRunner

    from gradbridge.cli import cli

    result = CliRunner().invoke(cli, [typed])
    assert result.exit_code == 2
    assert f"there is no command '{typed}'; did you mean 'backends'? there are audit, " in result.output
