"""`::::{columns}`: what stands before a line `+++` beside what stands after it; one below the other where it is narrow."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Columns(SphinxDirective):
    """The parts as containers of a container."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        parts, start = [], 0
        ends = [i for i, line in enumerate(self.content) if line.strip() == "+++"] + [len(self.content)]
        for end in ends:
            part = nodes.container(classes=["column"])
            lines = StringList(list(self.content[start:end]), source=self.get_source_info()[0])
            self.state.nested_parse(lines, self.content_offset + start, part)
            parts.append(part)
            start = end + 1
        return [nodes.container("", *parts, classes=["columns"])]


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls it."""
    app.add_directive("columns", Columns)
    return {"parallel_read_safe": True}
