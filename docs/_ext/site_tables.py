"""What backends, guests and hosts can do, as tables that are made by asking them while the site is built."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from site_markdown import code, generated, quiet, table
from sphinx.application import Sphinx

import gradbridge
from gradbridge.registry import default_registry
from gradbridge.testing import find, run
from gradbridge.testing.hosts import ABILITIES as HOST_ABILITIES
from gradbridge.testing.hosts import HOST_CHECKS, find_host, run_hosts
from gradbridge.testing.report import ABILITIES as GUEST_ABILITIES
from gradbridge.testing.rows import MARKS, PASSED, worst


def backends() -> str:
    """Names, classes and commands, from the declarations."""
    infos, rows = gradbridge.backends(), []
    for name, info in infos.items():
        backend = default_registry().backend(name)
        rows.append(
            [
                code(name),
                " and ".join(info.roles),
                info.version or "needs none",
                ", ".join(map(code, backend.aliases)),
                code(info.install),
                ", ".join(code(f"f.{layer}()") for layer in backend.wrappers),
                _listed(backend.arrays),
                _listed(backend.models),
            ]
        )
    headings = ("backend", "can be", "built with", "also called", "installed by", "layers")
    return table([*headings, "classes of arrays", "classes of models"], rows)


def guests() -> str:
    """Abilities × guests, by the checks of the kit that tell; and why something is not there."""
    names = _able("guest")
    marks: dict[str, list[str]] = {ability: [] for ability in GUEST_ABILITIES}
    notes: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        if (under_test := _found(name)) is None:
            continue  # it calls other backends' models, and has their abilities
        with quiet():
            report = run(under_test, checks=list(dict.fromkeys(GUEST_ABILITIES.values())))
        for ability, check in GUEST_ABILITIES.items():
            rows = [row for row in report.rows if row.check == check]
            marks[ability].append(_mark(worst(rows)))
            if worst(rows) != PASSED:
                notes.setdefault(name, []).append((ability, _reason(rows)))
    columns = [name for name in names if _found(name) is not None]
    return "\n".join(
        [table(["a guest's", *columns], [[a, *m] for a, m in marks.items()]), "", *_notes(notes)]
    )


def hosts() -> str:
    """Abilities × hosts, with the NumPy guest, which has no AD of its own; and why something is not there."""
    checks = ["host_gradients", *(check.name for check in HOST_CHECKS.values() if check.ability)]
    with quiet():
        cells = {
            name: run_hosts(find_host(name), [find("numpy")], checks).cell("numpy") for name in _able("host")
        }
    rows = [[ability, *(_mark(c.abilities[ability]) for c in cells.values())] for ability in HOST_ABILITIES]
    notes = {
        name: [(what, reason) for what, reason in cell.reasons.items() if what in HOST_ABILITIES]
        for name, cell in cells.items()
    }
    return "\n".join([table(["a host's", *cells], rows), "", *_notes(notes)])


def pairs() -> str:
    """Host × guest: the highest order of derivatives that agrees with the closed form, of those that are checked."""
    orders = [
        check.name for check in HOST_CHECKS.values() if check.ability in ("second order", "third order")
    ]
    guests = {name: under_test for name in _able("guest") if (under_test := _found(name)) is not None}
    rows = []
    with quiet():
        for host in _able("host"):
            report = run_hosts(find_host(host), guests.values(), ["host_gradients", *orders])
            rows.append([host, *(report.cell(guest).order for guest in guests)])
    return table(["host", *guests], rows)


def _able(role: str) -> list[str]:
    """The backends that have a role and work here."""
    return [name for name, info in gradbridge.backends().items() if role in info.roles and info.available]


def _found(name: str) -> Any:
    """What the author of a backend gave the kit; None where a backend is not a framework of its own."""
    try:
        return find(name)
    except (ImportError, LookupError, gradbridge.GradbridgeError):
        return None


def _mark(outcome: str) -> str:
    """The kit's mark of an outcome, without the colours that it has on a terminal."""
    return re.sub(r"\[.*?\]", "", MARKS[outcome])


def _reason(rows: Iterable[Any]) -> str:
    message = next((row.message for row in rows if row.message), "not offered")
    return message.removeprefix("not offered, and another way is taken: ")


def _notes(notes: dict[str, list[tuple[str, str]]]) -> list[str]:
    """A line for each reason, with all that it is the reason of."""
    lines = []
    for name, some in notes.items():
        alike: dict[str, list[str]] = {}
        for what, reason in some:
            alike.setdefault(reason.removeprefix(f"{name}: "), []).append(what)
        lines += [f"- **{name}**, {', '.join(whats)}: {reason}" for reason, whats in alike.items()]
    return lines


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(code, names))


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls it."""
    for name, write in {"backends": backends, "guests": guests, "hosts": hosts, "pairs": pairs}.items():
        app.add_directive(f"gradbridge-{name}", generated(write))
    return {"parallel_read_safe": False}
