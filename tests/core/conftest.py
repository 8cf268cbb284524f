"""Plugins as they would be installed."""

import importlib.metadata
import sys
import types

import pytest


@pytest.fixture
def plugin(monkeypatch):
    """Make a plugin module of functions, and its entry point."""

    def make(name, **functions):
        module = types.ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)
        return importlib.metadata.EntryPoint(name, name, "gradbridge")

    return make


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Make a plugin module whose import runs some code, and its entry point."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, code):
        (tmp_path / f"{name}.py").write_text(code)
        return importlib.metadata.EntryPoint(name, name, "gradbridge")

    return make
