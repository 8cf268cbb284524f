"""Run the benchmarks named on the command line, or all of them."""

from __future__ import annotations

import importlib
import sys

from rich.console import Console

ALL = ("startup", "steps", "jacobians", "memory", "engine")


def main(names: list[str]) -> None:
    """Run each and print its tables.

    Args:
        names: which benchmarks, of `ALL`; all if empty.
    """
    console = Console(width=118)
    for name in names or ALL:
        if name not in ALL:
            raise SystemExit(f"there is no benchmark {name!r}; there are: {', '.join(ALL)}")
        importlib.import_module(f"benchmarks.{name}").run(console)


if __name__ == "__main__":
    main(sys.argv[1:])
