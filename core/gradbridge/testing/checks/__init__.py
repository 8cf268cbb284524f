"""The checks: one function per law, and per known way to break it silently.

`CHECKS` holds them all by name. A check takes a `gradbridge.testing.Subject`, one scenario on one
backend, and raises AssertionError where the law is broken, with what was expected and what came.
"""

from gradbridge.testing.checks import (
    audited,
    batches,
    borders,
    built,
    crowds,
    function,
    honest,
    leaves,
    numbers,
    orders,
    outside,
    pure,
    recorded,
    reentrant,
    right,
    structure,
    waves,
)
from gradbridge.testing.checks.catalogue import CHECKS, Check, check

__all__ = [
    "CHECKS",
    "Check",
    "audited",
    "batches",
    "borders",
    "built",
    "check",
    "crowds",
    "function",
    "honest",
    "leaves",
    "numbers",
    "orders",
    "outside",
    "pure",
    "recorded",
    "reentrant",
    "right",
    "structure",
    "waves",
]
