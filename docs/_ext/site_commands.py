"""The command line, the entry points and the names of `gradbridge.extend`, read from the code."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Iterator
from typing import Any

import click
from docutils import nodes
from docutils.statemachine import StringList
from site_markdown import code, generated, table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import gradbridge.cli
import gradbridge.errors
import gradbridge.extend
from gradbridge.registry import default_registry


def commands() -> str:
    """Every command, those of plugins too, with its help."""
    root = gradbridge.cli.cli
    added = gradbridge.cli._plugin_commands(default_registry())
    group = click.Group("gradbridge", help=root.help, commands={**added, **root.commands}, params=root.params)
    return "\n".join(_described(group, "gradbridge", None))


def _described(command: click.Command, path: str, parent: click.Context | None) -> Iterator[str]:
    settings = {"terminal_width": 90, "max_content_width": 90, "help_option_names": ["-h", "--help"]}
    context = click.Context(command, info_name=path.split()[-1], parent=parent, **settings)
    yield from ("", f"## `{path}`", "", "```text", command.get_help(context), "```", "")
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            yield from _described(inner, f"{path} {name}", context)


def entry_points() -> str:
    """Those of the group `gradbridge`, each with its distribution."""
    found = importlib.metadata.entry_points(group="gradbridge")
    rows = [[code(e.name), code(e.value), e.dist.name if e.dist else ""] for e in sorted(found)]
    return table(["name", "module", "distribution"], rows)


class Extend(SphinxDirective):
    """Autodoc of every name of `gradbridge.extend`, by its kind."""

    def run(self) -> list[nodes.Node]:
        lines: list[str] = []
        described = {n: _documented(n, getattr(gradbridge.extend, n)) for n in gradbridge.extend.__all__}
        linked = sorted(n for n, some in described.items() if some[0].startswith("- "))
        for name in [*linked, *sorted(set(described) - set(linked), key=str.lower)]:
            lines += ["", *described[name]]
        inner = nodes.Element()
        inner.document = self.state.document
        text = ["```{eval-rst}", *lines, "```"]
        self.state.nested_parse(StringList(text, source="gradbridge.extend"), self.content_offset, inner)
        return list(inner.children)


def _documented(name: str, value: Any) -> list[str]:
    path = f"gradbridge.extend.{name}"
    if value is getattr(gradbridge.errors, name, None):
        return [f"- :exc:`gradbridge.errors.{name}`"]
    if name in gradbridge.__all__:
        return [f"- :class:`gradbridge.{name}`"]
    if name == "Array":
        return [f".. py:data:: {path}", "", "   An array of NumPy, `numpy.ndarray`, of any dtype."]
    if inspect.isclass(value) and value.__module__.startswith("gradbridge"):
        options = ["   :members:", "   :inherited-members: tuple, ABC, object, Generic"]
        return [*_second_anchor(name, value), f".. autoclass:: {path}", *options]
    if inspect.ismodule(value):
        return [f".. automodule:: {value.__name__}", "   :members:"]
    if inspect.isfunction(value):
        return [f".. autofunction:: {path}"]
    return [f".. autodata:: {path}", "   :no-value:"]


def _second_anchor(name: str, value: Any) -> list[str]:
    """Where a class shares its file with one of `gradbridge`, the way back from its source takes it for one, too."""
    public = (getattr(gradbridge, other) for other in gradbridge.__all__)
    if not any(getattr(other, "__module__", "") == value.__module__ for other in public):
        return []
    return [".. raw:: html", "", f'   <span id="gradbridge.{name}"></span>', ""]


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls it."""
    app.add_directive("gradbridge-commands", generated(commands))
    app.add_directive("gradbridge-entry-points", generated(entry_points))
    app.add_directive("gradbridge-extend", Extend)
    return {"parallel_read_safe": False}
