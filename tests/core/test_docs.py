"""The documents are true: their first example runs, their links lead somewhere, every hook is described."""

import ast
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

from gradbridge import hookspecs

ROOT = pathlib.Path(__file__).parents[2]
HOSTS = ROOT / "docs" / "hosts.md"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


README = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", README, ids=["jax", "torch", "tensorflow", "autograd"])
def test_the_examples_of_the_readme_run(block):
    for framework in ("torch", "jax", "tensorflow", "keras"):
        if re.search(rf"\b{framework}\b", block):
            pytest.importorskip(framework)
    exec(compile(block, "README.md", "exec"), {})


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


def blocks(document):
    """Its code, each by the line at which it begins."""
    text = document.read_text()
    return {
        text[: m.start(1)].count("\n") + 1: m.group(1)
        for m in re.finditer(r"```python\n(.*?)```", text, re.DOTALL)
    }


@pytest.mark.parametrize("line", blocks(HOSTS))
def test_the_code_of_the_page_on_hosts_runs(line):
    code = blocks(HOSTS)[line]
    imports = [n for n in ast.walk(ast.parse(code)) if isinstance(n, (ast.Import, ast.ImportFrom))]
    for name in {a.name for n in imports if isinstance(n, ast.Import) for a in n.names}:
        pytest.importorskip(name)
    # Compiled from where it stands, so that an error names the page's line.
    exec(compile("\n" * (line - 1) + code, str(HOSTS), "exec"), {})


@pytest.mark.parametrize(("section", "needs"), [("A builder", "numpy"), ("More hooks", "autograd")])
def test_the_code_of_a_section_on_backends_runs(section, needs):
    pytest.importorskip(needs)
    page = (ROOT / "docs" / "writing-a-backend.md").read_text(encoding="utf-8")
    text = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, section, "exec"), {"__name__": "section"})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
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
