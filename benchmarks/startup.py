"""`import gradbridge`: at most 0.25 s, and no framework."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.figures import Report, seconds

BUDGET = 0.25
CODE = """
import time; start = time.perf_counter()
import gradbridge
print(time.perf_counter() - start)
"""


def run(report: Report) -> None:
    """Print the best of five fresh interpreters."""
    times = [
        float(subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    report.line("import gradbridge", seconds(min(times), at_most=BUDGET))
