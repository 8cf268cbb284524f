"""The code of docs/howto/cluster.md runs as it is printed, in a process of its own."""

import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip("ray")
pytest.importorskip("torch")

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "howto" / "cluster.md"


def test_the_code_of_the_page_on_clusters_runs_as_printed(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=140)
    assert done.returncode == 0, done.stderr
