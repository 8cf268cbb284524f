"""What runs recorded, in graphs: by number, each for as long as a tensor lives that has its number in it.

TensorFlow takes an aligned array of NumPy as a tensor without copying it, and lets go of the array with the last
reader of that tensor: at the end of the step, of the loop, or of the tape that holds it. So nothing is kept that
nobody can ask for, and nothing forgotten that somebody may, however large it is. Where a tensor was copied (rows
that a map stacks) the record goes with the first one, and the call is made again.
"""

from __future__ import annotations

import itertools
import weakref

import numpy as np
import tensorflow as tf

from gradbridge.layout import Array
from gradbridge.lifting import Run
from gradbridge_tensorflow.tensors import aligned

#: Of the tensors that records travel by: (number, noise of the run).
SPEC = tf.TensorSpec([2], tf.int64)

_runs: dict[int, Run] = {}
_numbers = itertools.count(1)


def put(run: Run) -> Array:
    """Keep a record. Returns the array that leads to it: the very one that TensorFlow is to be given."""
    array, number = aligned(2, np.dtype(np.int64)), next(_numbers)
    array[:] = number, run.noise
    _runs[number] = run
    weakref.finalize(array, _runs.pop, number, None).atexit = False
    return array


def get(record: Array) -> Run | None:
    """What a record leads to; None where it is there no more."""
    return _runs.get(int(record[0]))
