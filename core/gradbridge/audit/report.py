"""What an audit found, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """A row of the table.

    Attributes:
        check: what was looked at.
        outcome: ``"right"``, ``"WRONG"``, ``"note"`` for what is worth knowing, or ``"-"`` where it cannot be asked.
        figure: what was measured.
        meaning: in a sentence.
    """

    check: str
    outcome: str
    figure: str
    meaning: str

    def __str__(self) -> str:
        return f"{self.check:<34} {self.outcome:<6} {self.figure:<12} {self.meaning}".rstrip()


class AuditReport(Sequence[Finding]):
    """What an audit found; prints as a table, and is true where nothing is wrong."""

    def __init__(self, title: str, findings: Sequence[Finding]) -> None:
        self._title, self._findings = title, tuple(findings)

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """Those that are wrong."""
        return tuple(f for f in self._findings if f.outcome == "WRONG")

    def __getitem__(self, index: Any) -> Any:
        return self._findings[index]

    def __len__(self) -> int:
        return len(self._findings)

    def __bool__(self) -> bool:
        return not self.wrong

    def __str__(self) -> str:
        return "\n".join([self._title, *map(str, self._findings)])

    __repr__ = __str__
