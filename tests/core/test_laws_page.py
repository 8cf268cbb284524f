"""`docs/laws.md` lists the checks of the kit: all of them, under the law that each tests, in its own words."""

import pathlib

from gradbridge.testing import CHECKS, LAWS

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "laws.md"


def tables():
    lines = []
    for law, title in LAWS.items():
        checks = [check for check in CHECKS.values() if check.law == law]
        lines += [f"## {law}. {title[0].upper()}{title[1:]}", "", "| check | what must hold |", "|---|---|"]
        lines += [f"| `{check.name}` | {check.statement} |" for check in checks]
        lines.append("")
    return "\n".join(lines)


def test_the_page_lists_the_checks_of_the_kit():
    _, heading, rest = PAGE.read_text(encoding="utf-8").partition("## 1.")
    assert heading + rest == tables(), f"docs/laws.md must end with:\n\n{tables()}"
