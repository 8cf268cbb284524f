"""Law 1 for the models that `gradbridge.build` makes: one layout of the params for every framework."""

from __future__ import annotations

import numpy as np

from gradbridge.testing.checks.catalogue import BUILT, check
from gradbridge.testing.subject import Subject, expect_right


@check(1, BUILT)
def builder_is_canonical(subject: Subject) -> None:
    """What the backend's builder makes holds the params in the canonical order, bias before weights, and computes it."""
    layout = subject.adapter().layout
    expected = tuple(subject.scenario.shapes.values())
    assert layout.shapes == expected, (
        f"expected the shapes {expected}, which are those of {list(subject.scenario.shapes)}, got {layout.shapes} "
        f"of {list(layout.names)}"
    )
    wrong = np.flatnonzero(subject.order != np.arange(subject.scenario.size))
    assert not wrong.size, (
        f"expected number {wrong[0]} of the params where the canonical layout has it, got number "
        f"{subject.order[wrong[0]]}"
    )
    squeezes = subject.scenario.architecture is not None and subject.scenario.architecture.squeeze
    for rows in (4, 1) if squeezes else (4,):
        expect_right(subject, subject.point(170, rows), f"of {rows} rows")
