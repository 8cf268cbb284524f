"""The wheel holds what the editable install has, and nothing else."""

import pathlib
import subprocess
import sys
import zipfile

import pytest

import gradbridge

ROOT = pathlib.Path(__file__).parents[2]
pytest.importorskip("hatchling", reason="building a wheel needs hatchling")


def test_the_wheel_holds_the_packages_and_nothing_else(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    sources = {
        str(path.relative_to(house))
        for house in (ROOT / "core", ROOT / "backends", ROOT / "plugins")
        for path in house.glob("gradbridge*/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == sources
    assert wheel.name.startswith(f"gradbridge-{gradbridge.__version__}-")
    packages = {name.partition("/")[0] for name in names}
    assert {
        f"{package}/py.typed" for package in packages
    } <= names  # annotations are for those who use it, too
    assert any(name.startswith("gradbridge/scaffold/templates/") for name in names)
