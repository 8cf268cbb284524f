"""`new-backend`: what it writes can be filled in, and then it is right."""

import importlib.metadata
import re
import sys

import pytest
from click.testing import CliRunner

from gradbridge.errors import OptionError
from gradbridge.protocol import GuestOptions
from gradbridge.registry import Registry
from gradbridge.scaffold import new_backend
from gradbridge.testing import find, run

# A framework of one class: dual arrays that carry the rule of their pullback.
FRAMEWORK = """
import numpy as np

class Array:
    def __init__(self, data, pull=None): self.data, self.pull = np.asarray(data), pull or (lambda v, add: add(self, v))
    dtype, shape = property(lambda self: self.data.dtype), property(lambda self: self.data.shape)
    def __getitem__(self, key): return Array(self.data[key])
    def __pow__(self, n): return Array(self.data**n, lambda v, add: self.pull(v * n * self.data**(n - 1), add))
    def __mul__(self, o):
        def pull(v, add): self.pull(v * o.data, add); o.pull(v * self.data, add)
        return Array(self.data * o.data, pull)
    def sum(self): return Array(self.data.sum(), lambda v, add: self.pull(v * np.ones_like(self.data), add))
"""

# What the author of a backend puts in the place of each line that raises, by how its sentence begins.
FILLED = {
    "make a native array": "return onearray.Array(own)",
    "give its numbers": "return native.data",
    "tell the arrays": "return isinstance(value, onearray.Array)",
    "tell floating numbers": 'return native.dtype.kind == "f"',
    "pull one cotangent": """gradients = {}

            def add(leaf, v):
                gradients[id(leaf)] = gradients.get(id(leaf), 0.0) + v

            for output, cotangent in zip(outputs, cotangents):
                output.pull(cotangent.data, add)
            return [onearray.Array(gradients[id(x)]) if id(x) in gradients else None for x in primals]""",
}


def filled(text):
    def body(line):
        return next(body for begins, body in FILLED.items() if line[1].startswith(begins))

    text, count = re.subn(r'raise NotImplementedError\(f?"(.*)"\)', body, text)
    assert count == len(FILLED)
    return text.replace("from gradbridge.extend", "import onearray\n\nfrom gradbridge.extend", 1)


@pytest.fixture
def registry(monkeypatch):
    entry = importlib.metadata.EntryPoint("onearray", "gradbridge_onearray", "gradbridge")

    def forget():
        for name in [n for n in sys.modules if n.startswith(("gradbridge_onearray", "onearray"))]:
            del sys.modules[name]

    forget()
    yield lambda: Registry([entry])
    forget()


def test_the_package_fills_in_and_then_passes_the_kit(tmp_path, monkeypatch, registry):
    new_backend("onearray", tmp_path / "package")
    source = tmp_path / "package" / "src"
    framework = source / "gradbridge_onearray" / "framework.py"
    framework.write_text(filled(framework.read_text(encoding="utf-8")), encoding="utf-8")
    (source / "onearray.py").write_text(FRAMEWORK)
    monkeypatch.syspath_prepend(source)
    report = run(find("onearray", registry()))
    assert report.passed, report
    assert len(report.of("passed")) > 20


def test_unfilled_steps_say_what_to_do(tmp_path, monkeypatch, registry):
    new_backend("onearray", tmp_path / "package")
    (tmp_path / "package" / "src" / "onearray.py").write_text(FRAMEWORK)
    monkeypatch.syspath_prepend(tmp_path / "package" / "src")
    report = run(find("onearray", registry()), checks=["gradient_is_right"], scenarios=["energy"])
    assert not report.passed
    said = "PluginError: OnearrayFramework.asarray of gradbridge_onearray.framework is still to be written: make a native array"
    assert said in str(report)


def test_before_the_framework_is_there_the_backend_says_what_is_missing(tmp_path, monkeypatch, registry):
    new_backend("onearray", tmp_path / "package")
    monkeypatch.syspath_prepend(tmp_path / "package" / "src")
    info = registry().infos()["onearray"]
    assert not info.available
    assert "needs onearray, which is not installed" in info.reason


@pytest.mark.parametrize("option", [{"dtype": "int8"}, {"device": "cuda"}, {"extra": {"speed": 11}}])
def test_options_that_it_does_not_have_are_refused_from_the_start(tmp_path, monkeypatch, registry, option):
    new_backend("onearray", tmp_path / "package")
    (tmp_path / "package" / "src" / "onearray.py").write_text(FRAMEWORK)
    monkeypatch.syspath_prepend(tmp_path / "package" / "src")
    with pytest.raises(OptionError):
        registry().guest("onearray")(lambda x: x, GuestOptions(**option))


@pytest.mark.parametrize("name", ["My Framework", "Big", "class", "2d", "é", "_x", "x_", "x__y", "x-y", ""])
def test_names_that_cannot_be_are_refused(tmp_path, name):
    with pytest.raises(OptionError, match="lower-case letters"):
        new_backend(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "word"), [("numpy", "there is a backend"), ("seldonian", "gradbridge_seldonian")]
)
def test_names_that_are_taken_are_refused(tmp_path, name, word):
    with pytest.raises(OptionError, match=word):
        new_backend(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_files_are_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(OptionError, match="not empty"):
        new_backend("fresh", tmp_path)


def test_the_command_writes_the_package(tmp_path):
    from gradbridge.cli import cli

    result = CliRunner().invoke(cli, ["new-backend", "fresh", "--folder", str(tmp_path / "f")])
    assert result.exit_code == 0, result.output
    modules = list((tmp_path / "f").rglob("*.py"))
    assert {path.name for path in modules} >= {"framework.py", "guest.py", "conformance.py"}
    for path in modules:
        compile(path.read_text(encoding="utf-8"), path.name, "exec")


def test_what_is_written_imports_from_one_module(tmp_path):
    for path in new_backend("fresh", tmp_path / "f"):
        if path.suffix == ".py":
            imported = set(
                re.findall(r"^from (gradbridge[.\w]*) import", path.read_text(encoding="utf-8"), re.M)
            )
            assert imported <= {"gradbridge.extend", "gradbridge.testing"} | {
                name for name in imported if name.startswith("gradbridge_fresh")
            }
