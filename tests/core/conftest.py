"""Plugins as they would be installed, and adapters on paper with faults that an audit finds."""

import copy
import importlib.metadata
import sys
import types

import pytest

from gradbridge.protocol import GuestOptions
from gradbridge.testing import SCENARIOS, Subject
from gradbridge.testing.reference import Reference, ReferenceAdapter, ReferencePullback


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


class Forgetful(ReferenceAdapter):
    """Computes with the params of its first call, unless each call is by a fresh copy."""

    is_isolated = False
    isolates = True

    def __init__(self, *args):
        super().__init__(*args)
        self.known = None

    def forward(self, loaded, inputs, spec, wrt):
        if self.known is None or self.is_isolated:
            self.known = copy.deepcopy(loaded)
        return super().forward(self.known, inputs, spec, wrt)

    def fresh(self):
        twin = copy.copy(self)
        twin.known = None
        return twin

    def isolate_calls(self):
        if not self.isolates:
            return False
        changes, self.is_isolated = not self.is_isolated, True
        return changes


class HalfOfTheTerms(ReferencePullback):
    def backward(self, residuals, cotangents, wrt):
        gradients = super().backward(residuals, cotangents, wrt)
        return [0.5 * g if argument < len(self.layout) else g for g, argument in zip(gradients, wrt)]


class Halved(ReferenceAdapter):
    def pullback(self, spec, wrt, residuals=None):
        twin = super().pullback(spec, wrt, residuals)
        twin.__class__ = HalfOfTheTerms
        return twin


@pytest.fixture
def adapter_of():
    """Make an adapter of the perceptron: "right", "forgetful" or "halved", or of a class."""
    kinds = {"right": ReferenceAdapter, "forgetful": Forgetful, "halved": Halved}

    def make(kind):
        subject = Subject(Reference(), SCENARIOS["mlp"])
        return kinds.get(kind, kind)(subject.build(subject.initial()).model, GuestOptions(dtype="float64"))

    return make
