"""tf.functions within a model, run in line while it is traced: as Python, not as a trace of before.

A `tf.function` remembers its traces, and what these have in them: a size that was open, a global's old
value, gradients with TensorFlow's faults. And it would remember ours, so that the user's own calls found
traces that a bridge has made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager.polymorphic_function import polymorphic_function
from tensorflow.python.eager.polymorphic_function.autograph_util import py_func_from_autograph

#: Where `tf.function` has its call.
Function = polymorphic_function.Function


def inlined(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a `tf.function` in line: by AutoGraph if it says so, with tensors in and out as it has them."""
    body = function.python_function
    if function._autograph:
        body = py_func_from_autograph(body, function._experimental_autograph_options)
    args, kwargs = tf.nest.map_structure(_argument, (args, kwargs))
    return tf.nest.map_structure(_result, body(*args, **kwargs))


def is_inlinable(function: Any) -> bool:
    """Whether it may have been traced before: one without arguments is made where it is called."""
    return function.input_signature != ()


def _argument(value: Any) -> Any:
    return tf.convert_to_tensor(value) if isinstance(value, (np.ndarray, np.generic)) else value


def _result(value: Any) -> Any:
    return value if value is None or tf.is_tensor(value) else tf.convert_to_tensor(value)
