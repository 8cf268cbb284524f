"""The matrix as a picture: SVG, light, with marks of different shapes beside their colors."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from gradbridge.testing.hosts.report import Cell
from gradbridge.testing.laws import LAWS
from gradbridge.testing.matrix import SHOWN, Matrix
from gradbridge.testing.report import ABILITIES
from gradbridge.testing.rows import FAILED, PASSED, SKIPPED

#: Pixels. Text of 20 is readable at half the size.
_WIDTH, _MARGIN, _TEXT, _TITLE, _SMALL = 1320, 36, 20, 27, 18
_HOST_COLUMN, _LAW_COLUMN, _LINE, _ROW = 160, 440, 29, 35

_INK, _GREY, _RULE, _PAPER, _TINT = "#1a1a1a", "#6b6b6b", "#c9c9c9", "#ffffff", "#f3f6fa"
#: A disk with a tick, a ring with a dash, a square with a cross: blue and vermilion, of different lightness.
_GOOD, _BAD = "#1c4f8a", "#c2410c"


class _Sheet:
    """Elements from the top down.

    Attributes:
        y: how far down the sheet is filled.
    """

    def __init__(self) -> None:
        self.y = float(_MARGIN)
        self._elements: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int = _TEXT,
        color: str = _INK,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """Words on a baseline."""
        weight = ' font-weight="bold"' if bold else ""
        self._elements.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}"{weight}>'
            f"{escape(words)}</text>"
        )

    def box(self, x: float, y: float, width: float, height: float, fill: str, line: str = "none") -> None:
        """A rectangle."""
        self._elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" stroke="{line}"/>'
        )

    def rule(self, x: float, y: float, width: float) -> None:
        """A horizontal line."""
        self._elements.append(f'<path d="M{x:g} {y:g}h{width:g}" stroke="{_RULE}" fill="none"/>')

    def mark(self, x: float, y: float, outcome: str, r: float = 10) -> None:
        """The mark of an outcome around a point; nothing where it was not checked."""
        if outcome == PASSED:
            shape = f'<circle cx="{x:g}" cy="{y:g}" r="{r:g}" fill="{_GOOD}"/>'
            sign, color = f"M{x - 0.5 * r:g} {y:g}l{0.35 * r:g} {0.4 * r:g}l{0.65 * r:g} {-0.8 * r:g}", _PAPER
        elif outcome == FAILED:
            shape = f'<rect x="{x - r:g}" y="{y - r:g}" width="{2 * r:g}" height="{2 * r:g}" fill="{_BAD}"/>'
            d = 0.45 * r
            sign = f"M{x - d:g} {y - d:g}l{2 * d:g} {2 * d:g}m0 {-2 * d:g}l{-2 * d:g} {2 * d:g}"
            color = _PAPER
        elif outcome == SKIPPED:
            shape = (
                f'<circle cx="{x:g}" cy="{y:g}" r="{r - 1:g}" fill="{_PAPER}" stroke="{_GREY}" '
                f'stroke-width="1.5"/>'
            )
            sign, color = f"M{x - 0.5 * r:g} {y:g}h{r:g}", _GREY
        else:
            return
        self._elements += [shape, f'<path d="{sign}" stroke="{color}" stroke-width="2.6" fill="none"/>']

    def svg(self) -> str:
        """All of it."""
        height = int(self.y + _MARGIN)
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
                f'viewBox="0 0 {_WIDTH} {height}" font-family="Helvetica, Arial, Liberation Sans, sans-serif">',
                f'<rect width="{_WIDTH}" height="{height}" fill="{_PAPER}"/>',
                *self._elements,
                "</svg>\n",
            ]
        )


def drawing(matrix: Matrix) -> str:
    """Host × guest and guest × law as one picture.

    Args:
        matrix: what the kits found.

    Returns:
        The text of an SVG file.
    """
    sheet = _Sheet()
    if matrix.hosts:
        _hosts(sheet, matrix)
    if matrix.guests:
        _guests(sheet, matrix)
    _legend(sheet, matrix)
    return sheet.svg()


def _hosts(sheet: _Sheet, matrix: Matrix) -> None:
    _heading(sheet, "host × guest", "the program that differentiates × the model that it calls")
    columns = matrix.columns
    width = (_WIDTH - 2 * _MARGIN - _HOST_COLUMN) / max(len(columns), 1)
    left, height = _MARGIN + _HOST_COLUMN, (1 + len(SHOWN)) * _LINE + 18
    _column_heads(sheet, columns, left, width)
    for host, report in matrix.hosts.items():
        sheet.text(_MARGIN, sheet.y + height / 2 + 7, host, bold=True)
        for index, guest in enumerate(columns):
            if guest in report.guests:
                _cell(sheet, report.cell(guest), left + index * width, width, height)
        sheet.y += height + 10
    sheet.y += 26


def _cell(sheet: _Sheet, cell: Cell, x: float, width: float, height: float) -> None:
    sheet.box(x + 4, sheet.y, width - 8, height, _TINT, _BAD if cell.outcome == FAILED else _RULE)
    for line, (words, outcome) in enumerate(_lines(cell)):
        y = sheet.y + 9 + _LINE * (line + 0.5)
        sheet.mark(x + 26, y, outcome)
        sheet.text(x + 44, y + 7, words, color=_GREY if outcome == SKIPPED else _INK)


def _lines(cell: Cell) -> list[tuple[str, str]]:
    """(words, outcome) of what is shown of a cell."""
    orders = {0: "no gradient", 1: "order 1", 2: "orders 1, 2"}.get(cell.order, f"orders 1 to {cell.order}")
    higher = [cell.abilities[ability] for ability in ("second order", "third order")]
    lines = [(orders, FAILED if cell.order == 0 or FAILED in higher else PASSED)]
    for ability in SHOWN:
        first_alone = ability == "compiled" and cell.abilities["compiled second order"] != PASSED
        outcome = cell.abilities[ability]
        lines.append((ability + (", order 1" if first_alone and outcome == PASSED else ""), outcome))
    if cell.outcome == FAILED and all(outcome != FAILED for _, outcome in lines):
        lines[0] = ("a law is broken", FAILED)
    return lines


def _guests(sheet: _Sheet, matrix: Matrix) -> None:
    _heading(sheet, "guest × law", "what every guest must keep, and what some offer beyond")
    columns = list(matrix.guests)
    width = (_WIDTH - 2 * _MARGIN - _LAW_COLUMN) / len(columns)
    left = _MARGIN + _LAW_COLUMN
    _column_heads(sheet, columns, left, width)
    reports = matrix.guests.values()
    rows = [(f"{law}. {words}", [r.laws()[law] for r in reports]) for law, words in LAWS.items()]
    beyond = [(what, [r.abilities()[what] for r in reports]) for what in ABILITIES]
    for part in (rows, beyond):
        for words, outcomes in part:
            sheet.text(_MARGIN, sheet.y + 0.5 * _ROW + 7, words)
            for index, outcome in enumerate(outcomes):
                sheet.mark(left + (index + 0.5) * width, sheet.y + 0.5 * _ROW, outcome)
            sheet.y += _ROW
            sheet.rule(_MARGIN, sheet.y, _WIDTH - 2 * _MARGIN)
        sheet.y += 14
    sheet.y += 12


def _legend(sheet: _Sheet, matrix: Matrix) -> None:
    x, y = float(_MARGIN), sheet.y + 12
    words = {PASSED: "right, against closed forms", SKIPPED: "not there, and said so", FAILED: "broken"}
    for outcome, said in words.items():
        sheet.mark(x + 10, y, outcome)
        sheet.text(x + 28, y + 6, said, _SMALL)
        x += 60 + 9.2 * len(said)
    sheet.y = y + 34
    made = ", ".join(f"{name} {version}" for name, version in matrix.versions.items() if version)
    sheet.text(
        _MARGIN,
        sheet.y,
        f"float64; to 1e-12, 1e-10 and 1e-8 for orders 1, 2 and 3 in hosts. {made}",
        _SMALL,
        _GREY,
    )


def _heading(sheet: _Sheet, title: str, words: str) -> None:
    sheet.text(_MARGIN, sheet.y + _TITLE, title, _TITLE, bold=True)
    sheet.text(_MARGIN + 16 * len(title) + 10, sheet.y + _TITLE, words, _TEXT, _GREY)
    sheet.y += _TITLE + 22


def _column_heads(sheet: _Sheet, columns: Iterable[str], left: float, width: float) -> None:
    for index, name in enumerate(columns):
        sheet.text(left + (index + 0.5) * width, sheet.y + 20, name, anchor="middle", bold=True)
    sheet.y += 34
