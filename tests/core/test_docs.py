"""The documents are true: their first example runs, their links lead somewhere, every hook is described."""

import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

from gradbridge import hookspecs

ROOT = pathlib.Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    *(p for p in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in p.parts),
]


def test_the_host_that_is_written_on_the_page_is_one_and_is_right(tmp_path):
    """The blocks of the section as the files that they say they are: the kit finds the host, and it passes."""
    pytest.importorskip("mygrad")
    page = (ROOT / "docs" / "writing-a-backend.md").read_text(encoding="utf-8")
    section = page.partition("\n## Writing a host\n")[2].partition("\n## ")[0]
    files = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", section, re.DOTALL)
    assert len(files) == section.count("```python")
    for name, code in files:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding="utf-8")
    program = """
        import sys
        sys.path.insert(0, ".")
        import gradbridge_mygrad
        from gradbridge.registry import default_registry
        default_registry().register(gradbridge_mygrad)
        import try_it
        from gradbridge.testing.hosts import find_host, run_hosts
        every = run_hosts(find_host("mygrad"))
        print(every.summary)
        assert try_it.report.passed and every.passed, every
        assert every.cell("reference").order == 1
        """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 failed, " in done.stdout


def test_the_page_shows_the_host_half_of_the_example():
    page = (ROOT / "docs" / "writing-a-backend.md").read_text(encoding="utf-8")
    source = (ROOT / "examples/gradbridge-mygrad/src/gradbridge_mygrad/host.py").read_text(encoding="utf-8")
    assert source in page


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_to_files_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_hook_is_described():
    for name, hook in vars(hookspecs).items():
        if name.startswith("gradbridge_"):
            assert hook.__doc__, name


def test_every_public_name_is_described():
    import gradbridge

    for name in gradbridge.__all__:
        assert getattr(gradbridge, name).__doc__, name
