"""The documents are true: their first example runs, their links lead somewhere, every hook is described."""

import pathlib
import re

import pytest

from gradbridge import hookspecs

ROOT = pathlib.Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_first_example_of_the_readme_runs():
    pytest.importorskip("torch")
    first = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(compile(first.group(1), "README.md", "exec"), names)
    gradient = names["grad"](names["loss"])(names["f"].params)
    assert gradient.shape == names["f"].params.shape
    assert gradient.any()


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
