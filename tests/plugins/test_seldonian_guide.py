"""The guide's code runs as it is printed, and naming the plugin loads neither engine nor framework."""

import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip("seldonian")
pytest.importorskip("torch")

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "seldonian.md"


def test_the_guides_code_runs_as_printed(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    script = tmp_path / "guide.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "safety test passed: True" in done.stdout
    assert (tmp_path / "selection.png").exists()


def test_naming_the_plugin_imports_neither_the_engine_nor_a_framework():
    code = (
        "import sys, gradbridge_seldonian as g; g.__all__; "
        "print([m for m in ('seldonian', 'torch', 'matplotlib', 'autograd') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
