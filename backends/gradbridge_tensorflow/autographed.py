"""Calling a user's code while a graph is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def called(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function of symbolic tensors; with AutoGraph if it branches on their values in Python.

    AutoGraph rewrites the source, so code that does not need it is spared it.
    """
    try:
        return function(*args, **kwargs)
    except tf.errors.OperatorNotAllowedInGraphError:
        return tf.function(lambda: function(*args, **kwargs), autograph=True)()
