"""For every check a backend that breaks its law, silently, in a way that has been seen or feared.

`FAULTS` maps each check to the fault that it must catch. Those who add a check add its fault, in
the module of the same name as the check's.
"""

from gradbridge.testing.faulty import (
    borders,
    function,
    honest,
    leaves,
    orders,
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
    "borders",
    "breaks",
    "function",
    "honest",
    "leaves",
    "orders",
    "pure",
    "recorded",
    "reentrant",
    "right",
    "structure",
    "waves",
]
