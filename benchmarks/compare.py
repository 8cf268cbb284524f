"""This checkout against another one: two processes that run the same cases in turn, in one run on one machine."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import click

from benchmarks.figures import Figure, Report, ratio, seconds
from benchmarks.threads import one_thread

#: Largest ratio of new to old in CPU time, the median over the pairs of processes. Two equal checkouts come
#: within 1 or 2 % of 1 on a quiet machine; where others compute, wall times are off by 10 % and more.
BUDGET = 1.02
#: So many pairs of processes, one after the other: how a process comes to lie in memory makes 2 or 3 %, and
#: now and then 15.
PAIRS = 5
#: Length of a round, and how long each process works on a case, in seconds, about; rounds at least.
ROUND, SECONDS, ROUNDS = 0.002, 1.0, 8
WARM_UP = 10
#: "lowest" and "highest" are the CPU ratios of single pairs: what they differ by is noise.
HEADINGS = ("old, best", "new, best", "old, median", "new, median", "wall", "lowest", "highest", "CPU")
HERE = pathlib.Path(__file__).resolve().parents[1]


def run(report: Report, checkout: str = "", *names: str) -> None:
    """Print a table for each guest.

    Args:
        report: to print with.
        checkout: the other checkout's folder.
        *names: of cases, ``torch/tiny``, or of guests, ``torch``; all if there are none.

    Raises:
        click.UsageError: there is no such checkout, or no such case.
    """
    other = pathlib.Path(checkout).resolve()
    if not checkout or not (other / "core" / "gradbridge").is_dir():
        raise click.UsageError(
            f"compare takes the folder of another checkout of gradbridge first, got {checkout!r}"
        )
    for guest, cases in itertools.groupby(_chosen(names), key=_guest):
        taken: dict[str, list[list[Turn]]] = {case: [] for case in cases}
        refused: dict[str, str] = {}
        for pair in range(PAIRS):
            with Worker(other, pair) as old, Worker(HERE, pair) as new:
                for case, pairs in taken.items():
                    reason = refused.get(case) or _warm_up(case, old, new)
                    if reason:
                        refused[case] = reason
                    else:
                        pairs.append(_turns(case, old, new))
        title = f"{guest}: wall times of a call and new ÷ old, one thread; old is {other}"
        with report.table(title, "case", *HEADINGS, of=guest) as table:
            for case, pairs in taken.items():
                name = case.partition("/")[2]
                words = [refused.get(case, ""), *["–"] * (len(HEADINGS) - 1)]
                table.row(name, *(words if case in refused else _figures(pairs)))


def _chosen(names: tuple[str, ...]) -> list[str]:
    from benchmarks.cases import CASES

    for name in names:
        if not any(_is_named(case, name) for case in CASES):
            raise click.UsageError(f"there is no case {name!r}; there are: {', '.join(sorted(CASES))}")
    chosen = [case for case in CASES if not names or any(_is_named(case, name) for name in names)]
    return sorted(chosen, key=_guest)


def _guest(case: str) -> str:
    return case.partition("/")[0]


def _is_named(case: str, name: str) -> bool:
    return name in (case, _guest(case))


class Mean(NamedTuple):
    """Of one call in a round, in seconds."""

    wall: float
    cpu: float


class Turn(NamedTuple):
    """Two neighbouring rounds."""

    old: Mean
    new: Mean


def _warm_up(case: str, old: Worker, new: Worker) -> str:
    """Run the case some times in both; why one of them cannot, nothing if both can."""
    for name, worker in (("old", old), ("new", new)):
        for _ in range(WARM_UP):
            error = worker.ask(case=case, times=1).get("error")
            if error:
                return f"{name} raises {error}"
    return ""


def _turns(case: str, old: Worker, new: Worker) -> list[Turn]:
    """Rounds of both, each of them first as often as the other."""
    turns = []
    once = max(min(w.ask(case=case, times=1)["wall"] for _ in range(3)) for w in (old, new))
    times = max(1, int(ROUND / once))
    for i in range(max(ROUNDS, int(SECONDS / (times * once)))):
        order = (old, new) if i % 2 else (new, old)
        taken = {worker: Mean(**worker.ask(case=case, times=times)) for worker in order}
        turns.append(Turn(taken[old], taken[new]))
    return turns


def _figures(pairs: list[list[Turn]]) -> list[Figure]:
    """A figure for each of `HEADINGS`."""
    olds, news = ([turn[i].wall for turns in pairs for turn in turns] for i in (0, 1))
    wall = [statistics.median(turn.new.wall / turn.old.wall for turn in turns) for turns in pairs]
    cpu = [statistics.median(turn.new.cpu / turn.old.cpu for turn in turns) for turns in pairs]
    return [
        *map(seconds, (min(olds), min(news), statistics.median(olds), statistics.median(news))),
        *map(ratio, (statistics.median(wall), min(cpu), max(cpu))),
        ratio(statistics.median(cpu), at_most=BUDGET),
    ]


class Worker:
    """A process with one checkout's packages.

    Args:
        checkout: whose.
        seed: of its hashes, the same for both of a pair.
    """

    def __init__(self, checkout: pathlib.Path, seed: int) -> None:
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        one_thread(environment)
        folders = [str(checkout / name) for name in ("core", "backends", "plugins")]
        environment["PYTHONPATH"] = os.pathsep.join(folders)
        # Without -P this file's folder would come first, and a benchmark's name hide a module's.
        command = [sys.executable, "-P", str(HERE / "benchmarks" / "worker.py")]
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed when the worker is
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        found = pathlib.Path(self._answer()["gradbridge"]).resolve()
        if not found.is_relative_to(checkout):
            raise RuntimeError(f"expected the gradbridge of {checkout}, got {found}")

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, and its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            raise RuntimeError(f"a worker of the comparison ended; it said:\n{self._said.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *ignored: object) -> None:
        self._process.communicate()  # ends its stdin, and so itself
        self._said.close()
