"""A process that runs cases of the comparison on request, with the gradbridge that its path leads to.

Run by its file, so that the measuring is this checkout's whatever `PYTHONPATH` names. Requests and
answers are lines of JSON on stdin and stdout: {"case": name, "times": n} → {"wall": …, "cpu": …}, the
means of one call in seconds.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from typing import IO, Any

HERE = pathlib.Path(__file__).resolve().parents[1]


def main() -> None:
    """Answer requests until stdin ends; the first answer says where gradbridge was found."""
    # What a framework prints must not get among the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.path.append(str(HERE))  # last: everything of gradbridge comes from the other checkout
    import gradbridge

    _answer(answers, {"gradbridge": str(gradbridge.__file__)})
    name, case = None, None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["case"] != name:
                name, case = None, None  # one case at a time: what the last one kept is let go first
                case = _made(request["case"])
                name = request["case"]
            _answer(answers, _means(case, request["times"]))
        except Exception as error:  # the old checkout may not be able to do what the new one can
            _answer(answers, {"error": f"{type(error).__name__}: {error}"})


def _made(name: str) -> Any:
    from benchmarks.cases import CASES

    return CASES[name]()


def _means(case: Any, times: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        case()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    # The CPU's time is of all threads; at least its clock's step, since ratios are taken.
    return {"wall": wall / times, "cpu": max(cpu, 1e-6) / times}


def _answer(answers: IO[str], content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
