"""Directives whose content is Markdown that a function writes while the site is built."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

Writer = Callable[[], str]


def generated(write: Writer) -> type[SphinxDirective]:
    """A directive without arguments that stands for what `write` returns, headings included."""

    class Generated(SphinxDirective):
        has_content = False

        def run(self) -> list[nodes.Node]:
            lines = StringList(write().splitlines(), source=f"<{write.__module__}.{write.__name__}>")
            inner = nodes.Element()
            inner.document = self.state.document
            self.state.nested_parse(lines, self.content_offset, inner, match_titles=True)
            return list(inner.children)

    return Generated


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown. A bar within a cell is escaped, a line break a space."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("\n", " ").replace("|", "\\|")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Warnings and what frameworks log and print while examples run are none of the build's."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def code(name: str) -> str:
    """A name in the type of code; nothing for nothing."""
    return f"`{name}`" if name else ""
