"""The benchmarks count what they say, answer what they cannot do, and write down what they print. No times here."""

import importlib
import io
import json
import pathlib
import subprocess
import sys

import pytest
from rich.console import Console

ROOT = pathlib.Path(__file__).parents[2]
FIRST = """
from toy_second import inner

def outer():
    inner()
    inner()
    last()

def last():
    len("")

def generated():
    return sum(i for i in range(2))
"""
SECOND = """
import json

def inner():
    json.dumps(1)
"""


@pytest.fixture
def benchmarks(monkeypatch):
    """A module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A package of two, `toy` and `toy_second`, and one that only sounds like it."""
    for package, source in (("toy", FIRST), ("toy_second", SECOND), ("toys", "def inner(): pass")):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("toy")
    for package in ("toy", "toy_second", "toys"):
        sys.modules.pop(package, None)


def test_own_calls_are_counted_with_their_files_and_the_moves_between_them(benchmarks, toy):
    counted = benchmarks("own_calls").own_calls(toy.outer, "toy")
    assert [call.function for call in counted.calls] == ["outer", "inner", "inner", "last"]
    assert [call.depth for call in counted.calls] == [0, 1, 1, 1]
    assert (len(counted), counted.files, counted.moves) == (4, 2, 2)
    assert str(counted).splitlines() == [
        "toy/__init__.py",
        "    outer",
        "toy_second/__init__.py",
        "      inner",
        "      inner",
        "toy/__init__.py",
        "      last",
    ]


def test_a_generator_counts_each_time_that_it_goes_on(benchmarks, toy):
    counted = benchmarks("own_calls").own_calls(toy.generated, "toy")
    assert [call.function for call in counted.calls] == ["generated"] + ["generated.<locals>.<genexpr>"] * 3


def test_what_only_sounds_like_our_own_is_not_counted(benchmarks, toy):
    toys = importlib.import_module("toys")
    assert len(benchmarks("own_calls").own_calls(toys.inner, "toy")) == 0


def test_counting_stops_when_the_function_raises(benchmarks, toy):
    before = sys.getprofile()
    with pytest.raises(ZeroDivisionError):
        benchmarks("own_calls").own_calls(lambda: 1 / 0, "toy")
    assert sys.getprofile() is before


def test_figures_are_printed_with_their_budgets_and_written_as_json(benchmarks, tmp_path):
    figures = benchmarks("figures")
    printed = io.StringIO()
    report = figures.Report(Console(file=printed, width=118))
    report.benchmark = "toy"
    with report.table("a title", "guest", "model", "time", "calls", "ratio") as table:
        cells = (
            figures.seconds(2e-3),
            figures.count(3, "calls", at_most=2),
            figures.ratio(12.0, at_least=10),
        )
        table.row("torch", "[MLP]", *cells)
        table.row("jax", "raises an error", *["–"] * 3)
    report.write(tmp_path / "figures.json")
    for words in ("[MLP]", "2.00 ms", "calls ≤ 2: MISSED", "ratio ≥ 10 ×: kept", "none"):
        assert words in printed.getvalue()
    assert json.loads((tmp_path / "figures.json").read_text()) == [
        {"name": "toy: torch, [MLP]: time", "value": 2e-3, "unit": "s", "budget": None, "kept": None},
        {"name": "toy: torch, [MLP]: calls", "value": 3, "unit": "calls", "budget": "≤ 2", "kept": False},
        {"name": "toy: torch, [MLP]: ratio", "value": 12.0, "unit": "×", "budget": "≥ 10 ×", "kept": True},
    ]


def test_every_benchmark_that_is_named_is_there(benchmarks):
    for name in (*benchmarks("__main__").ALL, "compare"):
        assert (ROOT / "benchmarks" / f"{name}.py").exists()


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["startup", "nope"], "there is no benchmark 'nope'; there are: startup, calls"),
        (["startup", "compare"], "and compare OLD_CHECKOUT [CASE ...], by itself"),
        (["compare"], "compare takes the folder of another checkout of gradbridge first, got ''"),
        (["compare", str(ROOT), "nope"], "there is no case 'nope'; there are: autograd/small"),
    ],
)
def test_what_there_is_not_is_answered_before_anything_runs(arguments, answer):
    command = [sys.executable, "-m", "benchmarks", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert answer in " ".join(run.stderr.split())
    assert run.stdout == ""


def test_a_worker_of_the_comparison_answers_what_it_can_and_goes_on(benchmarks):
    with benchmarks("compare").Worker(ROOT, 0) as worker:
        assert set(worker.ask(case="rule/tiny", times=2)) == {"wall", "cpu"}
        assert worker.ask(case="nope", times=1) == {"error": "KeyError: 'nope'"}
        assert worker.ask(case="rule/tiny", times=1)["wall"] > 0


def reported(benchmarks, name, *arguments, **options):
    """What a benchmark prints, and its figures by their names."""
    printed = io.StringIO()
    report = benchmarks("figures").Report(Console(file=printed, width=118))
    report.benchmark = name
    benchmarks(name).run(report, *arguments, **options)
    return printed.getvalue(), {figure["name"]: figure for figure in report._figures}


def test_every_guest_is_timed_in_a_host_beside_what_it_is_alone(benchmarks):
    pytest.importorskip("jax")
    hosts = benchmarks("hosts")
    printed, figures = reported(benchmarks, "hosts", "jax", sizes=("tiny",), length=0.0)
    for guest in hosts.available():
        for way in ("eager", "jitted"):
            for form in ("tree", "vector"):
                # That it gives the gradient of the others is checked before it is timed.
                assert (
                    figures[f"hosts: JAX host, tiny, {way}, {guest}, gradbridge, {form}: time"]["value"] > 0
                )
    assert "raises" not in printed
    budget = figures["hosts: JAX host, tiny, jitted, jax, gradbridge, tree: ÷ guest"]["budget"]
    assert budget == "≤ 1.05 ×"


def test_a_program_that_gives_another_gradient_is_not_timed(benchmarks, monkeypatch):
    hosts = benchmarks("hosts")
    system = hosts.system("autograd")
    right = type(system).alone

    def wrong(self, weights, X, way):
        step = right(self, weights, X, way)
        return lambda: (step()[0], [2 * g for layer in step()[1] for g in layer])

    monkeypatch.setattr(type(system), "alone", wrong)
    with pytest.raises(AssertionError, match="eager, autograd, alone: value and gradient are not those"):
        reported(benchmarks, "hosts", "autograd", sizes=("tiny",), length=0.0)


def test_a_peer_that_is_not_installed_is_named_with_what_installs_it(benchmarks, monkeypatch):
    hosts, peers = benchmarks("hosts"), benchmarks("host_programs.peers")
    missing = peers.Peer(
        "a bridge", "autograd", "numpy", ("eager",), ("no_such_module",), "pip install it", ":"
    )
    monkeypatch.setattr(hosts, "PEERS", (missing,))
    printed, _ = reported(benchmarks, "hosts", "autograd", sizes=("tiny",), length=0.0)
    assert "not installed: a bridge, which calls numpy in autograd: pip install it" in " ".join(
        printed.split()
    )


def test_what_memory_torch_and_jax_share_is_counted_where_there_is_no_accelerator(benchmarks):
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    if torch.cuda.is_available() or any(d.platform == "gpu" for d in jax.devices()):
        pytest.skip("there is one")
    printed, figures = reported(benchmarks, "device", size="small")
    assert "no accelerator that both can use" in printed
    # A guest of the host's own system computes with the host's arrays themselves.
    assert figures["device: JAX, jitted, JAX, weights: shared"]["value"] == 4
    assert {name.rpartition(": ")[2] for name in figures} == {"arrays", "shared", "copied"}


def test_copies_between_host_and_device_are_told_from_others(benchmarks):
    def event(name, size, kind="gpu_memcpy"):
        return {"ph": "X", "cat": kind, "name": name, "args": {"bytes": size}}

    events = [
        event("Memcpy DtoH (Device -> Pageable)", 40),
        event("Memcpy DtoH (Device -> Pinned)", 2),
        event("Memcpy HtoD (Pageable -> Device)", 7),
        event("Memcpy DtoD (Device -> Device)", 1000),
        event("cudaMemcpyAsync", 500, "cuda_runtime"),
        {"ph": "M", "name": "process_name", "args": {"name": "python"}},
    ]
    assert benchmarks("device").bytes_copied(events) == (42, 7)
