"""For every check backends that break its law, silently, in ways that have been seen or feared.

`FAULTS` maps each check to the faults that it must catch. Those who add a check add its faults, in
the module of the same name as the check's.
"""

from gradbridge.testing.faulty import (
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
from gradbridge.testing.faulty.catalogue import FAULTS, Fault, breaks

__all__ = [
    "FAULTS",
    "Fault",
    "audited",
    "batches",
    "borders",
    "breaks",
    "built",
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
