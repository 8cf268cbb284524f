"""Every block of Python in the README and on the pages of the site runs: in order, a page in one namespace.

A block that cannot run alone is marked on the line above it, `<!-- not run: the reason -->`, and counted here; a page that
another test runs is named with that test. Tutorials are executed when the site is built.
"""

import pathlib
import re
import sys
import warnings

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SKIPPED = {"_build", "_ext", "tutorials"}
PAGES = [
    ROOT / "README.md",
    *(
        p
        for p in sorted((ROOT / "docs").rglob("*.md"))
        if not SKIPPED & set(p.relative_to(ROOT / "docs").parts)
    ),
]

#: {page: the test that runs its code, in a process or an environment of its own}
RUN_ELSEWHERE = {
    "docs/ray.md": "tests/ray/test_whose_cluster.py",
    "docs/howto/cluster.md": "tests/ray/test_cluster_page.py",
    "docs/experiments.md": "tests/plugins/test_seldonian_experiments.py",
    "docs/seldonian.md": "tests/plugins/test_seldonian_guide.py",
}

#: {page: how many of its blocks are marked as not run}; a page that is not here has none.
NOT_RUN = {
    "docs/overview.md": 4,
    "docs/writing-a-backend.md": 12,
    "docs/howto/port.md": 1,
    "docs/howto/processes.md": 1,
}

BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+?) -->\n)?^( *)```python\n(?P<code>.*?)^\2```",
    re.DOTALL | re.MULTILINE,
)


def named(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page):
    """(line at which it begins, code, why it is not run or None) of each block."""
    text = page.read_text(encoding="utf-8")
    return [(text[: m.start("code")].count("\n"), m["code"], m["reason"]) for m in BLOCK.finditer(text)]


WITH_CODE = [page for page in PAGES if blocks(page)]


def frameworks(code):
    """The packages that some code imports."""
    return {name.split(".")[0] for name in re.findall(r"^ *(?:import|from) ([\w.]+)", code, re.MULTILINE)} | {
        name
        for line in re.findall(r"^ *import ([\w., ]+)", code, re.MULTILINE)
        for name in re.findall(r", (\w+)", line)
    }


@pytest.mark.parametrize("page", [p for p in WITH_CODE if named(p) not in RUN_ELSEWHERE], ids=named)
def test_the_code_of_a_page_runs_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = [(line, code) for line, code, reason in blocks(page) if reason is None]
    for name in sorted(frameworks("".join(code for _, code in code)) - sys.stdlib_module_names):
        pytest.importorskip(name)
    namespace = {"__name__": "page"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for line, block in code:
            # Compiled from where it stands, so that an error names the page's line.
            exec(compile("\n" * line + block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", WITH_CODE, ids=named)
def test_blocks_that_are_not_run_are_counted_and_say_why(page):
    reasons = [reason for _, _, reason in blocks(page) if reason is not None]
    assert len(reasons) == NOT_RUN.get(named(page), 0)
    assert all(len(reason.split()) >= 3 for reason in reasons)


def test_every_block_of_python_is_seen():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("```python") == len(blocks(page)), named(page)


@pytest.mark.parametrize(("page", "test"), RUN_ELSEWHERE.items())
def test_pages_that_run_elsewhere_are_read_by_that_test(page, test):
    assert pathlib.PurePath(page).name in (ROOT / test).read_text(encoding="utf-8")
