"""Runs drawn programs, one after the other: `python -m fuzz --guest torch --count 1000 --minutes 30`."""

from __future__ import annotations

import importlib
import os
import pprint
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # what they import reads the environment that `main` sets
    from fuzz.built import Guest
    from fuzz.judging import Fault
    from fuzz.programs import Program

#: {guest: (module, class)}
GUESTS = {
    "torch": ("in_torch", "Torch"),
    "jax": ("in_jax", "Jax"),
    "tensorflow": ("in_tensorflow", "TensorFlow"),
    "autograd": ("in_autograd", "Autograd"),
}
#: Seconds between two lines of progress.
EVERY = 20.0


@click.command()
@click.option("--guest", type=click.Choice(list(GUESTS)), multiple=True, help="One or more; all by default.")
@click.option("--seed", default=0, show_default=True, help="The number of the first program.")
@click.option("--count", default=100, show_default=True, help="How many programs per guest.")
@click.option(
    "--minutes", default=10.0, show_default=True, help="No program begins after so many, per guest."
)
@click.option("--keep-going", is_flag=True, help="Go on after a failure.")
@click.option("--show", is_flag=True, help="Print each program before it runs.")
def main(guest: tuple[str, ...], seed: int, count: int, minutes: float, keep_going: bool, show: bool) -> None:
    """Ask bridges over drawn networks what is known otherwise. Exit code 1 if an answer was wrong."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # TensorFlow 2.21's own kernel for a float32 matmul with a broadcast batch axis overwrites memory.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    failures = sum(_run(name, seed, count, 60 * minutes, keep_going, show) for name in guest or tuple(GUESTS))
    sys.exit(1 if failures else 0)


def _run(name: str, seed: int, count: int, seconds: float, keep_going: bool, show: bool) -> int:
    """Run the programs of one guest. Returns how many failed."""
    from fuzz.judging import fault_of
    from fuzz.programs import drawn

    module, of = GUESTS[name]
    guest = getattr(importlib.import_module(f"fuzz.{module}"), of)()
    start = told = time.monotonic()
    warned: Counter[str] = Counter()
    done = queries = failures = 0
    for number in range(seed, seed + count):
        now = time.monotonic()
        if now - start > seconds:
            click.echo(f"{name}: the time is over")
            break
        if now - told > EVERY:
            told = now
            click.echo(
                f"{name}: {done} of {count} programs, {queries} queries, {failures} wrong, {now - start:.0f} s"
            )
        program = drawn(number, name, guest)
        if show:
            click.echo(pprint.pformat(program, width=110))
        fault = fault_of(program, guest, lambda text: warned.update([text]))
        done, queries = done + 1, queries + len(program.queries)
        if fault is not None:
            failures += 1
            _tell(program, guest, fault)
            if not keep_going:
                break
    took = time.monotonic() - start
    click.echo(f"{name}: {done} programs, {queries} queries, {failures} wrong, in {took:.0f} s")
    for text, times in warned.most_common(12):
        click.echo(f"    warned {times} times: {text}")
    return failures


def _tell(program: Program, guest: Guest, fault: Fault) -> None:
    """Print a failure, the program as small as it still fails, and the line that repeats it."""
    from fuzz.judging import fault_of
    from fuzz.shrinking import shrunk

    smallest = shrunk(program, lambda other: _same_fault(fault_of(other, guest), fault))
    last = fault_of(smallest, guest) or fault
    click.echo(f"\nFAILED: python -m fuzz --guest {program.guest} --seed {program.number} --count 1")
    click.echo(f"asked, as small as it still fails:\n{pprint.pformat(smallest, width=110)}")
    click.echo(f"query: {last.query}\nexpected: {last.expected}\ngot: {last.got}\n")


def _same_fault(one: Fault | None, other: Fault) -> bool:
    """Whether both are wrong answers, or both the same kind of error."""
    if one is None:
        return False
    if "Traceback" not in one.got or "Traceback" not in other.got:
        return ("Traceback" in one.got) == ("Traceback" in other.got)
    return _last_line(one) == _last_line(other)


def _last_line(fault: Fault) -> str:
    return fault.got.strip().splitlines()[-1].split(":")[0]


if __name__ == "__main__":
    main(prog_name="python -m fuzz")
