"""Every error with an example: a piece of code, run while the site is built, and what it raised."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

from site_docstrings import escape
from site_markdown import generated, quiet
from sphinx.application import Sphinx

from gradbridge import errors

EXAMPLES = pathlib.Path(__file__).parents[1] / "reference" / "error_examples.txt"


def examples() -> dict[str, str]:
    """{name of an error: code that raises it}, from the file beside the page."""
    parts = re.split(r"^=== (\w+)\n", EXAMPLES.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))


def raised(name: str, code: str) -> str:
    """The message of the error that some code raises.

    Raises:
        AssertionError: it raises none, or another.
    """
    expected = getattr(errors, name)
    try:
        with quiet():
            exec(compile(code, f"<example of {name}>", "exec"), {"__name__": "example"})
    except errors.GradbridgeError as error:
        if type(error) is expected:
            return str(error)
        raise AssertionError(f"the example of {name} raised {type(error).__name__}: {error}") from error
    raise AssertionError(f"the example of {name} raised nothing")


def tree() -> Iterator[tuple[int, type[Exception]]]:
    """(depth, class) of every error, a base before what derives from it, in the order of the module."""

    def below(cls: type[Exception], depth: int) -> Iterator[tuple[int, type[Exception]]]:
        yield depth, cls
        for derived in cls.__subclasses__():
            if derived.__module__ == errors.__name__ and derived.__bases__[0] is cls:
                yield from below(derived, depth + 1)

    return below(errors.GradbridgeError, 0)


def markdown() -> str:
    """A heading, the description and the example for each error, in the order of the tree."""
    known, lines = examples(), list[str]()
    for _, cls in tree():
        words = [cls.__doc__ or ""]
        escape(None, "", "", cls, None, words)
        directive = [f".. py:exception:: gradbridge.errors.{cls.__name__}", "", f"   {words[0]}"]
        bases = [f":exc:`{base.__name__}`" for base in cls.__bases__ if base is not Exception]
        if bases:
            directive += ["", f"   Bases: {', '.join(bases)}."]
        lines += [f"### {cls.__name__}", "", "```{eval-rst}", *directive, "```", ""]
        if cls.__name__ in known:
            code = known[cls.__name__]
            lines += ["```python", code, "```", "", "```text", raised(cls.__name__, code), "```", ""]
        elif not cls.__subclasses__():
            raise AssertionError(f"there is no example of {cls.__name__} in {EXAMPLES.name}")
    return "\n".join(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls it."""
    app.add_directive("gradbridge-errors", generated(markdown))
    return {"parallel_read_safe": False}
