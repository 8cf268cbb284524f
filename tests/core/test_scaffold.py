"""`new-backend`: what it writes can be filled in, and then it is right."""

import importlib.metadata
import sys

import pytest
from click.testing import CliRunner

from gradbridge.errors import OptionError
from gradbridge.registry import Registry
from gradbridge.scaffold import new_backend
from gradbridge.testing import find, run

# A framework of one class: dual arrays that carry the rule of their pullback.
FRAMEWORK = """
import numpy as np

class Array:
    def __init__(self, data, pull=None): self.data, self.pull = np.asarray(data), pull or (lambda v, add: add(self, v))
    def __pow__(self, n): return Array(self.data**n, lambda v, add: self.pull(v * n * self.data**(n - 1), add))
    def __mul__(self, o):
        def pull(v, add): self.pull(v * o.data, add); o.pull(v * self.data, add)
        return Array(self.data * o.data, pull)
    def sum(self): return Array(self.data.sum(), lambda v, add: self.pull(v * np.ones_like(self.data), add))
"""

FILLED = {
    'raise NotImplementedError("make a native array of `own`: a floating one in self._dtype, if that is given")':
        'return onearray.Array(own.astype(self._dtype) if own.dtype.kind == "f" and self._dtype else own)',
    'raise NotImplementedError("cut params with self.layout.unravel(params), and make native arrays of the pieces")':
        "return []",
    'raise NotImplementedError("pull the cotangents back through the recorded call")': """output, native = residuals
        found = {}
        def add(leaf, v): found[id(leaf)] = found.get(id(leaf), 0.0) + v
        output.pull(cotangents[0].astype(output.data.dtype), add)
        zeros = lambda p: np.zeros(native[p - 1].data.shape) if p else np.zeros(0)
        return [np.array(found[id(native[p - 1])]) if p and id(native[p - 1]) in found else zeros(p) for p in wrt]""",
    "from gradbridge import trees": "import onearray\n\nfrom gradbridge import trees",
}  # fmt: skip


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
    guest = source / "gradbridge_onearray" / "guest.py"
    text = guest.read_text()
    for before, after in FILLED.items():
        assert before in text
        text = text.replace(before, after, 1)
    start = text.index('        raise NotImplementedError(\n            "see to it')
    end = text.index("    def zero")
    text = (
        text[:start]
        + ("        return np.array(output.data), ((output, native) if wrt else None)\n\n")
        + text[end:]
    )
    guest.write_text(text)
    (source / "onearray.py").write_text(FRAMEWORK)
    monkeypatch.syspath_prepend(source)
    report = run(find("onearray", registry()))
    assert report.passed, report
    assert len(report.of("passed")) > 20


def test_unfilled_steps_say_what_to_do(tmp_path, monkeypatch, registry):
    new_backend("onearray", tmp_path / "package")
    monkeypatch.syspath_prepend(tmp_path / "package" / "src")
    report = run(find("onearray", registry()), checks=["gradient_is_right"], scenarios=["energy"])
    assert not report.passed
    assert "make native arrays" in str(report) or "make a native array" in str(report)


@pytest.mark.parametrize("name", ["My Framework", "Big", "class", "2d", "numpy"])
def test_names_that_cannot_be_are_refused(tmp_path, name):
    with pytest.raises(OptionError):
        new_backend(name, tmp_path / "new")


def test_files_are_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(OptionError, match="not empty"):
        new_backend("fresh", tmp_path)


def test_the_command_writes_the_package(tmp_path):
    from gradbridge.cli import cli

    result = CliRunner().invoke(cli, ["new-backend", "fresh", "--folder", str(tmp_path / "f")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "f" / "src" / "gradbridge_fresh" / "guest.py").exists()
    compile((tmp_path / "f" / "src" / "gradbridge_fresh" / "guest.py").read_text(), "guest.py", "exec")
