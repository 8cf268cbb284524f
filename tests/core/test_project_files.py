"""What is written in several places of the project says the same in all of them."""

import ast
import pathlib
import re
import tomllib

import pytest

import gradbridge
import gradbridge_ray.errors

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_version_is_written_once():
    assert "version" not in PROJECT["project"]
    assert "version" in PROJECT["project"]["dynamic"]
    source = ROOT / PROJECT["tool"]["hatch"]["version"]["path"]
    assert source.read_text(encoding="utf-8").count(f'__version__ = "{gradbridge.__version__}"') == 1
    assert "\nversion:" not in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_changelog_has_the_form_of_keep_a_changelog_and_an_entry_for_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (.*)$", text, re.M)
    assert versions[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(gradbridge.__version__)}\] - \d{{4}}-\d\d-\d\d", versions[1])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.M)) <= kinds


def test_every_package_of_the_wheel_is_marked_as_typed():
    for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert (ROOT / package / "py.typed").is_file(), package
    assert {
        pathlib.Path(p).name for p in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    } == set(PROJECT["tool"]["check-wheel-contents"]["toplevel"])


@pytest.mark.parametrize("name", ["torch", "jax", "tensorflow"])
def test_the_line_that_installs_a_framework_asks_for_the_release_that_its_extra_asks_for(name):
    (requirement,) = EXTRAS[name]
    assert gradbridge.backends()[name].install == f'pip install "{requirement}"'


def test_the_other_lines_that_install_something_agree_with_the_extras():
    assert f'pip install "{EXTRAS["ray"][0]}"' == gradbridge_ray.errors.INSTALL
    numeric = (ROOT / "backends/gradbridge_numpy/differences.py").read_text(encoding="utf-8")
    assert f'pip install "{EXTRAS["numeric"][0]}"' in numeric
    needs = " ".join(f'"{one}"' if ">" in one else one for one in EXTRAS["seldonian"])
    engine = ast.parse((ROOT / "plugins/gradbridge_seldonian/engine.py").read_text(encoding="utf-8"))
    (install,) = [
        ast.literal_eval(node.value)
        for node in engine.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "INSTALL"
    ]
    assert install.startswith(f"pip install {needs} && pip install --no-deps seldonian-engine==")


def test_no_line_installs_from_an_index_what_is_not_there():
    places = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*")]
    places += [
        p for house in ("core", "backends", "plugins", "benchmarks") for p in (ROOT / house).rglob("*")
    ]
    for path in places:
        if path.is_file() and path.suffix in (".md", ".py", ".tmpl", ".ipynb"):
            text = path.read_text(encoding="utf-8")
            for line in re.findall(r"pip install [^\n`]*", text):
                asked = re.sub(r"-e \S+", "", line).partition("&&")[0]  # -e is followed by a folder
                assert not re.search(r"(?<![\w./-])gradbridge", asked), f"{path}: {line}"


def test_workflows_call_sessions_that_there_are_and_nothing_else():
    sessions = set(
        re.findall(
            r"^@nox\.session[^\n]*\n(?:@nox[^\n]*\n)*def (\w+)\(", (ROOT / "noxfile.py").read_text(), re.M
        )
    )
    assert {"tests", "build", "typecheck"} <= sessions
    assert WORKFLOWS
    for path in WORKFLOWS:
        runs = re.findall(r"run: (.*)", path.read_text(encoding="utf-8"))
        assert "python -m pip install nox" in runs
        for line in set(runs) - {"python -m pip install nox"}:
            assert line.startswith("python -m nox -s ")
            assert set(line.removeprefix("python -m nox -s ").split()) <= sessions


def test_workflows_run_on_every_python_that_the_package_is_for():
    prefix = "Programming Language :: Python :: 3."
    pythons = [
        c.removeprefix("Programming Language :: Python :: ")
        for c in PROJECT["project"]["classifiers"]
        if c.startswith(prefix)
    ]
    assert pythons
    for path in WORKFLOWS:
        (listed,) = re.findall(r"python: \[(.*)\]", path.read_text(encoding="utf-8"))
        assert re.findall(r'"([\d.]+)"', listed) == pythons


def test_the_hooks_before_a_commit_have_the_pins_of_the_constraints():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    asked = re.findall(r"[\w.-]+==[\w.]+", text)
    assert {one.split("==")[0] for one in asked} >= {"ruff", "mypy", "numpy"}
    assert set(asked) <= set(pins)
    required = {re.split(r"[<>=]", one)[0] for one in PROJECT["project"]["dependencies"]}
    assert required <= {one.split("==")[0] for one in asked}, "mypy knows the types of what core requires"


def test_pages_for_contributors_name_files_and_sessions_that_there_are():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:core|backends|plugins|tests|docs)/[\w./]+)`", text):
        assert path.endswith("gradbridge_NAME") or (ROOT / path).exists(), path
    sessions = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    for names in re.findall(r"nox -s ([a-z ]+)", text):
        assert all(f"def {name}(" in sessions for name in names.split())
