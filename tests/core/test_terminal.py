"""The command line in wide and narrow terminals, in pipes, with NO_COLOR, as JSON, and by the Tab key."""

import functools
import json
import os
import pty
import re
import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from rich.console import Console
from rich.table import Table

import gradbridge
from gradbridge import cli
from gradbridge.declarations import Backend
from gradbridge.errors import BackendUnavailableError
from gradbridge.hookspecs import hookimpl
from gradbridge.registry import Registry
from gradbridge.terminal import print_table
from gradbridge.testing import check_command
from gradbridge.testing.rows import row_of

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*3\d")


def wide_table():
    table = Table(title="of two rows")
    for heading in ("a first heading", "second", "third"):
        table.add_column(heading)
    table.add_row("incomprehensibilities", "[green]right[/]", "counterrevolutionaries")
    table.add_row("short", "", "word")
    return table


def printed(width, *tables):
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        print_table(console, *tables)
    return captured.get().splitlines()


def test_a_table_that_fits_is_drawn():
    assert any(
        "incomprehensibilities │ right  │ counterrevolutionaries" in line
        for line in printed(80, wide_table())
    )


def test_a_narrow_terminal_has_the_rows_below_each_other_and_no_word_cut():
    assert printed(40, wide_table()) == [
        "of two rows",
        "incomprehensibilities",
        "    second: right",
        "    third: counterrevolutionaries",
        "short",
        "    third: word",
    ]


def test_of_two_tables_the_first_that_fits_is_drawn():
    small = Table("one", "two")
    small.add_row("1", "2")
    assert "│ 1   │ 2   │" in printed(40, wide_table(), small)
    assert "│ 1   │ 2   │" not in printed(80, wide_table(), small)


def run(stream, *arguments, **env):
    """The command with one stream as a terminal, the other as a pipe: (text of the terminal, text of the pipe)."""
    ours, theirs = pty.openpty()
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: theirs}
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    others = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TF_CPP_MIN_LOG_LEVEL")
    kept = {key: value for key, value in os.environ.items() if key not in others}
    command = [sys.executable, "-m", "gradbridge", *arguments]
    with subprocess.Popen(command, **streams, env={**kept, "TERM": "xterm-256color", **env}) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # how Linux says that nobody writes any more
                break
            if not chunk:
                break
            shown += chunk
        piped = getattr(process, other).read().decode()
        assert process.wait() == 0, shown + piped.encode()
    os.close(ours)
    return shown.decode(), piped


CHECK = ("check", "numpy", "--only", "value_is_right")


def test_progress_is_shown_on_standard_error_and_results_in_a_pipe_are_plain():
    shown, piped = run("stderr", *CHECK)
    assert "checking numpy" in ESCAPE.sub("", shown)
    assert "\x1b" not in piped
    assert "checking numpy" not in piped
    assert "value_is_right" in piped
    assert max(map(len, piped.splitlines()[:8])) <= 80


def test_the_backends_are_listed_with_progress_and_without_log_lines_of_frameworks():
    shown, piped = run("stderr", "backends")
    shown = ESCAPE.sub("", shown)
    assert re.search(r"^│ autograd .* yes", piped, re.MULTILINE)
    assert re.search(r"^│ numpy .* yes", piped, re.MULTILINE)
    assert "importing frameworks" in shown
    assert not re.search(r"\.cc:\d+\]|absl::", shown)


@pytest.mark.parametrize(
    ("level", "left_out"),
    [(None, ["an info", "an error", "before absl"]), ("1", ["an info", "before absl"]), ("0", [])],
)
def test_log_lines_below_the_level_are_left_out_of_what_imports_write_and_nothing_else(
    tmp_path, level, left_out
):
    lines = [
        "WARNING: All log messages before absl::InitializeLog() is called",
        "I0000 00:00:1795789983.092418    3815 port.cc:153] an info",
        "E1231 23:59:59.571281    3815 cuda_platform.cc:52] an error",
        "Illegal instruction",
    ]
    written = "\n".join(lines)
    (tmp_path / "noisy.py").write_text(
        f"import os, sys\nos.write(2, {written.encode()!r} + b'\\n')\nprint('of Python', file=sys.stderr)\n"
    )
    code = "from gradbridge.terminal import silence_logs; silence_logs({'noisy'}); import noisy"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    env = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    env |= {"PYTHONPATH": path} | ({} if level is None else {"TF_CPP_MIN_LOG_LEVEL": level})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    expected = [line for line in lines if not any(word in line for word in left_out)]
    assert sorted(done.stderr.splitlines()) == sorted([*expected, "of Python"])


def test_a_narrow_terminal_without_colours_shows_results_alone():
    shown, piped = run("stdout", *CHECK, NO_COLOR="1", COLUMNS="40")
    assert not COLOUR.search(shown)
    assert piped == "", "progress is for terminals"
    table, _, _ = ESCAPE.sub("", shown).partition("\n–")
    assert "passed: 9 ✓" in table
    assert max(len(line.rstrip("\r")) for line in table.split("\n")) <= 40


def test_a_terminal_has_colours_unless_they_are_turned_off():
    shown, _ = run("stdout", *CHECK)
    assert COLOUR.search(shown)


def test_python_m_gradbridge_is_the_command():
    command = [sys.executable, "-m", "gradbridge", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"gradbridge, version {gradbridge.__version__}\n"


@pytest.fixture
def listed(plugin, imported, monkeypatch):
    """The list of a backend that works, one without its framework, and two plugins that fail."""

    def declares(**fields):
        return hookimpl(lambda: Backend(**fields), specname="gradbridge_backend")

    nowhere = {"name": "nowhere", "framework": ("no_such_framework", "n"), "install": "pip install n"}
    registry = Registry(
        [
            plugin(
                "works", f=declares(name="works", guest="gradbridge_numpy.guest:adapt", aliases=("other",))
            ),
            plugin("nowhere_plugin", f=declares(**nowhere, guest="a:b")),
            plugin("halfway", f=declares(name="halfway", guest="no_such_module_at_all:guest")),
            imported("explodes", "1 / 0"),
        ]
    )
    monkeypatch.setattr(gradbridge, "backends", registry.infos)
    return functools.partial(CliRunner().invoke, cli.cli)


def test_a_plugin_that_failed_is_listed_as_failed_and_a_framework_that_is_missing_as_not_installed(listed):
    lines = listed(["backends"], env={"COLUMNS": "80"}).output.splitlines()
    (row,) = [line for line in lines if line.startswith("│ explodes")]
    assert "failed" in row
    assert "not installed" not in row
    (row,) = [line for line in lines if line.startswith("│ halfway")]
    assert "failed" in row
    (row,) = [line for line in lines if line.startswith("│ nowhere")]
    assert row.count("not installed") == 2
    below = [line for line in lines if line.startswith("explodes: ")]
    assert "failed on import of explodes: ZeroDivisionError: division by zero" in below[0]
    assert (
        "nowhere: backend 'nowhere' needs no_such_framework, which is not installed; install it with: pip install n"
        in lines
    )


def test_the_backends_as_json_have_their_state_and_its_reason(listed):
    found = {one["name"]: one for one in json.loads(listed(["backends", "--json"]).output)}
    assert {name: one["state"] for name, one in found.items()} == {
        "works": "works",
        "nowhere": "missing",
        "halfway": "failed",
        "explodes": "failed",
    }
    assert found["works"]["reason"] is None
    assert found["works"]["roles"] == ["guest"]
    assert found["nowhere"]["install"] == "pip install n"
    assert "ZeroDivisionError" in found["explodes"]["reason"]


def completions(*words):
    complete = ShellComplete(cli.cli, {}, "gradbridge", "_GRADBRIDGE_COMPLETE")
    return [one.value for one in complete.get_completions(list(words[:-1]), words[-1])]


def test_commands_backends_and_checks_are_completed():
    assert completions("ma") == ["matrix"]
    assert completions("check", "nu") == ["numpy"]
    assert completions("check", "numpy", "--only", "gradient_is") == ["gradient_is_right"]
    assert completions("matrix", "--only", "host_hess") == ["host_hessian"]


def test_the_help_says_how_completion_is_turned_on():
    text = CliRunner().invoke(cli.cli, ["--help"]).output
    for shell in ("bash", "zsh", "fish"):
        assert f"_GRADBRIDGE_COMPLETE={shell}_source gradbridge" in text


@pytest.fixture
def broken(tmp_path, monkeypatch, plugin):
    """A backend whose module of scenarios has some code, checked by the command."""
    folder = tmp_path / "broken_backend"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "guest.py").write_text("from gradbridge_numpy.guest import adapt")
    monkeypatch.syspath_prepend(tmp_path)

    def check(code):
        (folder / "conformance.py").write_text(code)
        for name in ("broken_backend", "broken_backend.guest", "broken_backend.conformance"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        declared = Backend(name="broken", guest="broken_backend.guest:adapt")
        known = Registry(
            [plugin("broken_plugin", f=hookimpl(lambda: declared, specname="gradbridge_backend"))]
        )
        return check_command("broken", known)

    check.file = str(folder / "conformance.py")
    return check


@pytest.mark.parametrize(
    ("code", "line", "said"),
    [
        (
            "\nimport no_such_module_at_all\n",
            2,
            "ModuleNotFoundError: No module named 'no_such_module_at_all'",
        ),
        (
            "class UnderTest:\n    def __init__(self, registry):\n        registry.nothing\n",
            3,
            "AttributeError",
        ),
        ("import math\n\n\nmath.no_such_number\n", 4, "AttributeError"),
        ("x = 1\nraise ValueError('of its own')\n", 2, "ValueError: of its own"),
    ],
)
def test_scenarios_that_raise_are_told_with_file_and_line(broken, code, line, said):
    with pytest.raises(BackendUnavailableError) as caught:
        broken(code)
    assert said in str(caught.value)
    assert f'File "{broken.file}", line {line}, in ' in str(caught.value)


def test_a_half_that_raises_is_told_with_file_and_line_by_the_command(imported, plugin, monkeypatch):
    imported("half_that_raises", "x = 1\n\nraise ValueError('of its own')\n")
    declared = Backend(name="half", guest="half_that_raises:adapt")
    known = Registry([plugin("half_plugin", f=hookimpl(lambda: declared, specname="gradbridge_backend"))])
    monkeypatch.setattr("gradbridge.testing.commands.default_registry", lambda: known)
    result = CliRunner().invoke(cli.cli, ["check", "half"])
    assert result.exit_code == 1
    assert "ValueError: of its own\n" in result.output
    assert re.search(r'\n  File "\S+half_that_raises\.py", line 3, in <module>\n', result.output)


def test_scenarios_that_are_not_there_are_asked_for(broken):
    with pytest.raises(
        BackendUnavailableError, match="expected a class UnderTest in the module broken_backend"
    ):
        broken("")


def test_a_check_that_stumbles_over_what_it_was_given_shows_where():
    def stumbles():
        None.shape  # noqa: B018

    row = row_of("some_check", 1, "Something holds.", "mlp", stumbles)
    assert row.outcome == "failed"
    assert f'File "{__file__}", line {stumbles.__code__.co_firstlineno + 1}, in stumbles' in row.traceback
    assert "AttributeError" in row.message


def test_benchmarks_are_refused_outside_of_a_clone(monkeypatch, tmp_path):
    monkeypatch.setattr(
        gradbridge, "__file__", str(tmp_path / "site-packages" / "gradbridge" / "__init__.py")
    )
    result = CliRunner().invoke(cli.cli, ["bench"])
    assert result.exit_code == 1
    assert "in a clone" in result.output


def test_the_command_runs_the_benchmarks_of_the_clone():
    done = subprocess.run(
        [sys.executable, "-m", "gradbridge", "bench", "strartup"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "there is no benchmark 'strartup'; there are: startup, " in done.stderr
