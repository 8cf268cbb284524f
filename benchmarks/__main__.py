"""Run the benchmarks named on the command line, or all of them."""

from __future__ import annotations

import importlib
import os
import sys

import click
from rich.console import Console

from benchmarks.figures import Report
from benchmarks.threads import one_thread
from benchmarks.timing import take_wall_times

ALL = (
    "startup",
    "calls",
    "steps",
    "second",
    "jacobians",
    "buffers",
    "compile",
    "audit",
    "memory",
    "lifetimes",
    "engine",
    "shards",
    "hosts",
    "device",
)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME ...] | compare OLD_CHECKOUT [CASE ...]")
@click.option(
    "--json",
    "path",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write every figure there, too; - for standard output, with the tables on standard error.",
)
@click.option("-v", "--verbose", is_flag=True, help="Print what lies behind the figures: calls lists them.")
@click.option("--wall", is_flag=True, help="Take wall times, not CPU times: for quiet machines.")
def main(names: tuple[str, ...], path: str | None, verbose: bool, wall: bool) -> None:
    """Run benchmarks by NAME, or all of them; or compare this checkout with another one, case by case."""
    if names[:1] == ("compare",):
        runs: dict[str, tuple[str, ...]] = {"compare": names[1:]}
    else:
        runs = dict.fromkeys(names or ALL, ())
        for name in runs:
            if name not in ALL:
                raise click.UsageError(
                    f"there is no benchmark {name!r}; there are: {', '.join(ALL)}; "
                    f"and compare OLD_CHECKOUT [CASE ...], by itself"
                )
    one_thread(os.environ)
    if wall:
        take_wall_times()
    report = Report(Console(stderr=path == "-"), verbose)
    try:
        for i, (name, arguments) in enumerate(runs.items(), 1):
            if sys.stderr.isatty():  # a line, not a bar: whatever draws itself anew is measured, too
                click.echo(f"measuring {name} ({i} of {len(runs)}) …", err=True)
            report.benchmark = name
            importlib.import_module(f"benchmarks.{name}").run(report, *arguments)
    finally:
        if path is not None:
            report.write(path)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
