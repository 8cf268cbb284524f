"""`gradbridge audit MODULE:NAME`: an audit of a model that an import gives."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from gradbridge.audit.report import Finding
from gradbridge.bridge import Bridge, bridge
from gradbridge.errors import OptionError
from gradbridge.primitive import Primitive
from gradbridge.wording import in_short, suggestion

_COLOURS = {"right": "green", "WRONG": "bold red", "note": "yellow", "-": "dim"}


def audit_command(
    target: str, inputs: Sequence[str], backend: str | None, dtype: str | None, params: str | None
) -> int:
    """Audit and print each row as soon as it is known.

    Args:
        target: ``module:name`` of a model, a bridge, a primitive, or a function without arguments that makes one.
        inputs: a shape (``8x3``), a shape of integers below a number (``8x3:100``), or ``module:name``.
        backend, dtype: as for `gradbridge.bridge`.
        params: ``module:name`` of a function's tree of parameters.

    Returns:
        The exit code: 0 where nothing is wrong.

    Raises:
        OptionError: no such module or name, or an input that says no shape.
    """
    console = Console()
    model = _imported(target)
    arrays = [_input(text, index) for index, text in enumerate(inputs)]
    if not isinstance(model, (Bridge, Primitive)):
        tree = None if params is None else _imported(params)
        model = bridge(model, backend=backend, dtype=dtype, params=tree)

    def told(finding: Finding) -> None:
        colour = _COLOURS.get(finding.outcome, "")
        row = f"{escape(finding.check):<34} [{colour}]{finding.outcome:<6}[/] {escape(finding.figure):<12} "
        console.print(row + escape(finding.meaning), highlight=False, soft_wrap=True)

    size = model.layout.size if isinstance(model, Bridge) else 0
    console.print(f"[bold]audit of {escape(target)}[/], {size} params", highlight=False)
    with console.status("…"):
        report = (
            model.audit(*arrays, told=told)
            if isinstance(model, Primitive)
            else model.audit(model.params, *arrays, told=told)
        )
    notes = sum(finding.outcome == "note" for finding in report)
    judged = f", {notes} noted, which you may judge" if notes else ""
    wrong = f"{len(report.wrong)} wrong" if report.wrong else "nothing wrong"
    console.print(f"{len(report)} rows, {wrong}{judged}", highlight=False)
    return 1 if report.wrong else 0


def _imported(target: str) -> Any:
    module_name, _, name = target.partition(":")
    if not name:
        raise OptionError(
            f"a model is named as MODULE:NAME, for example my_package.models:net, got {target!r}"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        value: Any = importlib.import_module(module_name)
    except Exception as error:
        raise OptionError(f"{module_name!r} of {target!r} cannot be imported: {in_short(error)}") from error
    for part in name.split("."):
        if not hasattr(value, part):
            near = suggestion(part, [n for n in vars(value) if not n.startswith("_")])
            raise OptionError(f"{module_name!r} has no {part!r}; {near}it is asked for by {target!r}")
        value = getattr(value, part)
    return value


def _input(text: str, index: int) -> Any:
    draw = np.random.default_rng(index)
    shape, _, below = text.partition(":")
    sizes = shape.split("x")
    if not all(size.isdigit() for size in sizes):
        if ":" in text:
            value = _imported(text)
            return value() if callable(value) else value
        raise OptionError(
            f"--input takes a shape (8x3), a shape of integers below a number (8x3:100), or MODULE:NAME, got {text!r}"
        )
    lengths = tuple(map(int, sizes))
    if not below:
        return draw.normal(size=lengths)
    if not below.isdigit() or not int(below):
        raise OptionError(f"--input {text!r}: integers below a number of 1 or more, got {below!r}")
    return draw.integers(int(below), size=lengths)
