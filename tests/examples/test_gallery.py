"""The scripts of the gallery: each saves its picture, and agrees with what it compares itself to."""

import ast
import importlib.util
import pathlib
import re
import sys

import pytest

pytest.importorskip("matplotlib")
ROOT = pathlib.Path(__file__).parents[2]
# What a script needs, how it is called, and how far off its comparison may be: rounding, the error of a difference
# or of a solver, the digits of a published number.
SCRIPTS = {
    "constrained_digits": (["torch", "sklearn", "seldonian"], [], 1e-12),
    "fairness": (["jax", "sklearn", "seldonian"], ["--quick"], 1e-12),
    "inverse_design": (["torch", "scipy", "ceviche"], ["--quick"], 1e-6),
    "neural_ode": (["torch", "jax", "torchdiffeq"], ["--quick"], 1e-6),
    "points_on_a_sphere": (["jax", "scipy", "pymanopt"], [], 1e-8),
    "survival_with_band": (["torch", "scipy"], [], 1e-7),
    "hosts_and_guests": (["torch", "jax", "tensorflow"], [], 1e-13),
}


@pytest.fixture
def script(monkeypatch):
    """A script's module by its name; `jax_enable_x64`, which some set, is as before afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    before = None

    def load(name, packages):
        nonlocal before
        if before is None and importlib.util.find_spec("jax"):
            import jax  # first: packages set it when they are imported

            before = jax.config.jax_enable_x64
        for package in packages:
            pytest.importorskip(package)
        spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.modules.pop("pictures", None)
    if before is not None:
        sys.modules["jax"].config.update("jax_enable_x64", before)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_of_the_gallery_agrees_with_something_independent(script, name, tmp_path, capsys):
    packages, arguments, most = SCRIPTS[name]
    module = script(name, packages)
    picture = tmp_path / f"{name}.png"
    module.run(module.main, "--out", str(picture), *arguments)
    checks = re.findall(r"^check: .*: (\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert checks
    assert all(0 <= float(off) <= most for off in checks), checks
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000


def test_the_page_shows_the_picture_of_every_script_and_links_to_it():
    page = (ROOT / "docs" / "gallery.md").read_text()
    for name in SCRIPTS:
        assert f"](gallery/{name}.png)" in page, name
        assert f"](../examples/{name}.py)" in page, name
        assert (ROOT / "docs" / "gallery" / f"{name}.png").stat().st_size <= 120_000, name


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_of_the_gallery_has_at_most_sixty_lines_with_one_statement_each(name):
    source = (ROOT / "examples" / f"{name}.py").read_text()
    assert source.count("\n") <= 60
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    assert len({node.lineno for node in statements}) == len(statements)
    assert max(map(len, source.splitlines())) <= 120
