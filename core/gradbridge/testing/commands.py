"""``gradbridge check`` and ``gradbridge matrix``: the kits for guests and for hosts on the terminal."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from gradbridge.errors import OptionError
from gradbridge.registry import Registry, default_registry
from gradbridge.terminal import Told, print_table, progress
from gradbridge.testing.backend import BackendUnderTest
from gradbridge.testing.checks import CHECKS
from gradbridge.testing.drawing import drawing
from gradbridge.testing.hosts.checks import HOST_CHECKS
from gradbridge.testing.hosts.finding import find_host
from gradbridge.testing.hosts.report import HostReport, reference, run_hosts
from gradbridge.testing.matrix import LEGEND, Matrix, matrix_of
from gradbridge.testing.report import Report, find, run
from gradbridge.testing.rows import known


def check_command(
    name: str, registry: Registry | None = None, only: Sequence[str] = (), guests: Sequence[str] = ()
) -> int:
    """``gradbridge check NAME``: run the kits for what the backend is, guest or host, and print the tables.

    Args:
        name: of the backend.
        registry: the plugins to choose from.
        only: names of the checks to run; all by default.
        guests: of a host: backends whose scenarios it is checked with, beside the reference; by default its own.

    Returns:
        The exit code: 0 if every law that could be checked holds, else 1.

    Raises:
        UnknownBackendError, BackendUnavailableError
        OptionError: there is no check of such a name.
    """
    registry = registry if registry is not None else default_registry()
    known(only, [*CHECKS, *HOST_CHECKS], "check")
    console = Console()
    reports: list[Report | HostReport] = []
    own: list[BackendUnderTest] = []
    declared = registry.backend(name)
    if declared.guest is not None or declared.host is None:
        own = [find(name, registry)]
        checks = [check for check in only if check in CHECKS]
        if checks or not only:
            with progress(f"checking {name}") as told:
                reports.append(run(own[0], checks or None, told=told))
            _print(console, reports[-1])
    if declared.host is not None:
        checks = [check for check in only if check in HOST_CHECKS]
        if checks or not only:
            with progress(f"checking {name} as a host") as told:
                reports.append(_checked_host(name, registry, own, guests, checks or None, told))
            _print(console, reports[-1])
    return 0 if all(report.passed for report in reports) else 1


def _checked_host(
    name: str,
    registry: Registry,
    own: Iterable[BackendUnderTest],
    guests: Iterable[str],
    checks: Iterable[str] | None,
    told: Told | None,
) -> HostReport:
    """The report of a host with the reference and some guests."""
    host = find_host(name, registry)
    others = [find(guest, registry) for guest in guests] or list(own)
    return run_hosts(host, [reference(registry), *others], checks, told)


def _print(console: Console, report: Report | HostReport) -> None:
    if isinstance(report, Report):
        print_table(console, report.table(), report.count_table())
    else:
        print_table(console, report.table())
    for note in report.notes():
        console.print(Text(note), soft_wrap=True)
    console.print(Text(report.summary, style="bold green" if report.passed else "bold red"))


def matrix_command(
    registry: Registry | None = None,
    only: Sequence[str] = (),
    save: str | os.PathLike[str] | None = None,
    as_json: bool = False,
) -> int:
    """``gradbridge matrix``: host × guest and guest × law, of every backend that works here.

    Args:
        registry: the plugins to choose from.
        only: names of the checks to run; all by default.
        save: a file that both are drawn into, as SVG.
        as_json: print what was found as JSON, and nothing else.

    Returns:
        The exit code: 1 if a law is broken, else 0.

    Raises:
        OptionError: there is no check of such a name; the file is called otherwise than ``….svg``, or is in no folder.
        OSError: it cannot be written.
    """
    if save is not None and not os.fspath(save).endswith(".svg"):
        raise OptionError(f"--save draws SVG, so the file must be called ….svg, got {os.fspath(save)!r}")
    if save is not None and not pathlib.Path(save).resolve().parent.is_dir():
        raise OptionError(f"--save: there is no folder for {os.fspath(save)!r}; make it first")
    registry = registry if registry is not None else default_registry()
    console = Console(stderr=as_json)
    matrix = matrix_of(registry, only, progress)
    if as_json:
        print(json.dumps(matrix.as_dict(), indent=2, ensure_ascii=False))
    else:
        _print_matrix(console, matrix)
    if save is not None:
        pathlib.Path(save).write_text(drawing(matrix), encoding="utf-8")
        console.print(Text(f"drawn into {os.fspath(save)}"))
    return 0 if matrix.passed else 1


def _print_matrix(console: Console, matrix: Matrix) -> None:
    for line in matrix.left_out:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    if matrix.hosts:
        print_table(console, matrix.host_table())
        console.print(Text(LEGEND))
        for line in matrix.reasons():
            console.print(Text(line))
        console.print()
    if matrix.guests:
        print_table(console, matrix.guest_table())
    for note in matrix.failures():
        console.print(note, markup=False, highlight=False, soft_wrap=True)
