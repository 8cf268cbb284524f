"""`docs/laws.md` lists the checks of the kit: all of them, under the law that each tests, in its own words."""

import pathlib

from gradbridge.testing import CHECKS, LAWS
from gradbridge.testing.hosts import HOST_CHECKS

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "laws.md"


HOSTS = "## Hosts\n"


def tables():
    lines = []
    for law, title in LAWS.items():
        checks = [check for check in CHECKS.values() if check.law == law]
        lines += [f"## {law}. {title[0].upper()}{title[1:]}", "", "| check | what must hold |", "|---|---|"]
        lines += [f"| `{check.name}` | {check.statement} |" for check in checks]
        lines.append("")
    return "\n".join(lines)


def host_table():
    lines = ["| check | law | what must hold |", "|---|:-:|---|"]
    for law in LAWS:
        checks = [check for check in HOST_CHECKS.values() if check.law == law]
        lines += [f"| `{check.name}` | {law} | {check.statement} |" for check in checks]
    return "\n".join([*lines, ""])


def test_the_page_lists_the_checks_of_the_kit():
    page, _, _ = PAGE.read_text(encoding="utf-8").partition(HOSTS)
    _, heading, rest = page.partition("## 1.")
    assert heading + rest.rstrip("\n") + "\n" == tables(), f"docs/laws.md must have:\n\n{tables()}"


def test_the_page_lists_the_checks_of_hosts():
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(HOSTS)
    assert rest.endswith("\n\n" + host_table()), f"docs/laws.md must end with:\n\n{host_table()}"
