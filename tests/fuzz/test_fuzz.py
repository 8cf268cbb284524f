"""Drawn programs: the same for the same number, right without a fault, and caught with one."""

import importlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from gradbridge.execution.functional import FunctionalAdapter

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def fuzz(monkeypatch):
    """A module of the fuzzer by its name."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"fuzz.{name}")


@pytest.fixture
def programs(fuzz):
    """(guest autograd, its first programs)."""
    guest = fuzz("in_autograd").Autograd()
    return guest, [fuzz("programs").drawn(number, "autograd", guest) for number in range(12)]


def faults(fuzz, guest, programs):
    return [fault for one in programs if (fault := fuzz("judging").fault_of(one, guest)) is not None]


def test_a_program_is_the_same_whenever_it_is_drawn(fuzz, programs):
    guest, drawn = programs
    again = fuzz("programs").drawn(3, "autograd", guest)
    assert again == drawn[3] != drawn[4]
    for name, array in again.network.weights().items():
        assert np.array_equal(array, drawn[3].network.weights()[name])


def test_nothing_is_wrong_where_nothing_is(fuzz, programs):
    assert not faults(fuzz, *programs)


def scaled_by_a_little(monkeypatch):
    right = FunctionalAdapter.backward
    monkeypatch.setattr(
        FunctionalAdapter, "backward", lambda self, *args: [g * (1 + 1e-7) for g in right(self, *args)]
    )


def of_the_first_params_ever(monkeypatch):
    right, first = FunctionalAdapter.update, {}
    monkeypatch.setattr(
        FunctionalAdapter, "update", lambda self, weights: first.setdefault(id(self), right(self, weights))
    )


def that_raises(monkeypatch):
    def forward(self, *args):
        raise RuntimeError("out of order")

    monkeypatch.setattr(FunctionalAdapter, "forward", forward)


@pytest.mark.parametrize("fault", [scaled_by_a_little, of_the_first_params_ever, that_raises])
def test_a_fault_of_an_adapter_is_caught(fuzz, programs, monkeypatch, fault):
    fault(monkeypatch)
    assert faults(fuzz, *programs)


def test_a_wrong_derivative_within_the_network_is_caught(fuzz, programs, monkeypatch):
    """The guest's sine alone: the reference keeps its own."""
    import autograd.numpy as anp
    from autograd.extend import defvjp, primitive

    sine = primitive(np.sin)
    defvjp(sine, lambda ans, z: lambda v: v * anp.sin(z))
    guest, _ = programs
    in_autograd = fuzz("in_autograd")
    wrong = type("Words", (in_autograd.Words,), {"sin": staticmethod(sine)})
    monkeypatch.setattr(in_autograd, "Words", wrong)
    number = next(n for n in range(1000) if _has_sine(fuzz("programs").drawn(n, "autograd", guest)))
    program = fuzz("programs").drawn(number, "autograd", guest)
    fault = fuzz("judging").fault_of(program, guest)
    assert fault is not None
    assert fault.expected != fault.got


def _has_sine(program):
    has = any(layer.option == "sin" for layer in program.network.layers)
    return has and program.queries[0].kind == "gradient" and program.queries[0].wrt == "params"


def test_a_program_is_made_smaller_as_long_as_it_fails(fuzz, programs):
    _, drawn = programs
    long = max(drawn, key=lambda program: len(program.queries))
    smallest = fuzz("shrinking").shrunk(long, lambda other: len(other.network.layers) > 0, tries=200)
    assert len(smallest.queries) == 1
    assert not smallest.options.get("audit")
    assert smallest.queries[0].terms in ((), smallest.queries[0].terms[:1])


FAULTY = """
import sys
from gradbridge.execution.functional import FunctionalAdapter
right = FunctionalAdapter.backward
FunctionalAdapter.backward = lambda self, *args: [g * (1 + 1e-7) for g in right(self, *args)]
from fuzz.__main__ import main
main()
"""


def test_a_failure_is_told_with_the_line_that_repeats_it(fuzz):
    command = [sys.executable, "-c", FAULTY, "--guest", "autograd", "--count", "5"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    line = next(line for line in run.stdout.splitlines() if line.startswith("FAILED: "))
    assert line.startswith("FAILED: python -m fuzz --guest autograd --seed ")
    repeated = subprocess.run(
        [sys.executable, "-c", FAULTY, *line.split("-m fuzz ")[1].split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert repeated.returncode == 1
    for words in (line, "expected: ", "got: ", "autograd: 1 programs"):
        assert words in repeated.stdout


def test_without_a_failure_the_exit_code_is_zero_and_the_counts_are_printed():
    command = [sys.executable, "-m", "fuzz", "--guest", "autograd", "--seed", "20", "--count", "2"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert "autograd: 2 programs, " in run.stdout
