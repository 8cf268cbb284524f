"""Bars of what `python -m benchmarks hosts --json` wrote: the cost of a value and gradient, relative to the guest alone."""

from __future__ import annotations

import json
import pathlib
import re
from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FIGURES = pathlib.Path(__file__).parents[1] / "explanation" / "speed.json"
_NAME = re.compile(r"(?P<title>.*? host, \w+), (?P<way>[^,]+), (?P<guest>\w+), (?P<program>[^:]+): ÷ guest")
WIDTH, LEFT, RIGHT, HEIGHT = 760, 300, 70, 22


def ratios(figures: list[dict[str, Any]]) -> dict[str, list[tuple[str, float, bool]]]:
    """{what was measured: [(way, guest and program; ratio to the guest alone; whether it is gradbridge)]}."""
    found: dict[str, list[tuple[str, float, bool]]] = {}
    for figure in figures:
        if match := _NAME.fullmatch(figure["name"]):
            label = f"{match['way']}: {match['guest']}, {match['program']}"
            found.setdefault(match["title"].removeprefix("hosts: "), []).append(
                (label, figure["value"], "gradbridge" in match["program"])
            )
    return found


def chart(title: str, bars: list[tuple[str, float, bool]]) -> str:
    """One chart as SVG, which takes its colours from the page, with the guest alone as a line at 1."""
    longest = max(2.0, *(value for _, value, _ in bars))
    scale = (WIDTH - LEFT - RIGHT) / longest
    height = HEIGHT * len(bars) + 12
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" class="bars"><title>{escape(title)}</title>']
    for i, (label, value, is_ours) in enumerate(bars):
        y, kind = i * HEIGHT + 4, "ours" if is_ours else "theirs"
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{value * scale:.1f}" height="{HEIGHT - 6}"/>',
            f'<text x="{LEFT + value * scale + 5:.1f}" y="{y + 13}">{value:.3g} ×</text>',
        ]
    x = LEFT + scale
    parts += [f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>', "</svg>"]
    return "".join(parts)


class Figures(SphinxDirective):
    """A chart for each table whose title has the words of the argument."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(FIGURES))
        charts = ratios(json.loads(FIGURES.read_text(encoding="utf-8")))
        made: list[nodes.Node] = []
        for title, bars in charts.items():
            if self.arguments[0] in title:
                made += [nodes.rubric(title, title), nodes.raw("", chart(title, bars), format="html")]
        if not made:
            raise self.error(f"no figure of {FIGURES.name} is of {self.arguments[0]!r}")
        return made


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls it."""
    app.add_directive("gradbridge-figures", Figures)
    return {"parallel_read_safe": True}
