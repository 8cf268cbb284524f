"""Docstrings quote signatures as they are written, `(n, *output shape)`; reStructuredText takes a star for emphasis."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

# A star before a word that no star ends, outside of code.
_STAR = re.compile(r"(?<![\\*\w])(\*{1,2})(?=\w)(?!\w[\w ]*\*)")


def escape(app: Sphinx | None, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Escape those stars, in place; in literal blocks they are what they are."""
    depth: int | None = None  # indentation of what introduced the literal block that a line is in
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if depth is not None and line.strip() and indent <= depth:
            depth = None
        if depth is None:
            parts = re.split(r"(``.*?``|`[^`]*`)", line)
            lines[i] = "".join(p if p.startswith("`") else _STAR.sub(_escaped, p) for p in parts)
            if line.rstrip().endswith("::"):
                depth = indent


def _escaped(found: re.Match[str]) -> str:
    return found.group(1).replace("*", "\\*")


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls it. After napoleon, which escapes the stars of argument names itself."""
    app.connect("autodoc-process-docstring", escape, priority=600)
    return {"parallel_read_safe": True}
