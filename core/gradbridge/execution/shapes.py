"""Shapes and dtypes of outputs before anything runs: what the user says, or what the adapter knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.call_spec import CallSpec
from gradbridge.errors import OptionError, OutputError
from gradbridge.protocol import Adapter, ArraySpec
from gradbridge.wording import first_line


def output_spec(adapter: Adapter, declared: Any, inputs: Sequence[Any], spec: CallSpec) -> Any:
    """The tree of a call's outputs, with an `ArraySpec` in place of each array.

    Args:
        adapter: that would be called.
        declared: what the user said with ``outputs=``; None asks the adapter.
        inputs: an `ArraySpec` for each input leaf that is an array, and the others as they are.
        spec: how they fit together.

    Raises:
        Unsupported: nobody knows them before the model has run.
        OptionError: what was declared names no shapes, or raises.
    """
    if declared is None:
        told = adapter.output_spec(inputs, spec)
        if not all(isinstance(leaf, ArraySpec) for leaf in trees.flatten(told)[0] or (None,)):
            raise OutputError(
                f"the output_spec of {adapter.label} returned {told!r}; its backend must return the output tree with an "
                f"ArraySpec in place of each array, or raise Unsupported"
            )
        return told
    if callable(declared):
        args, kwargs = spec.bind(inputs)
        try:
            declared = declared(*args, **kwargs)
        except Exception as error:
            raise OptionError(
                f"the function that outputs= of {adapter.label} is raised {type(error).__name__}: {first_line(error)}; it is "
                f"given an ArraySpec, with shape and dtype and no numbers, for each input that is an array, and returns "
                f"(shape, dtype) or such an ArraySpec for each output"
            ) from error
    return _specs(declared, adapter.label)


def refuse_no_shapes(declared: Any, label: str) -> None:
    """Refuse what ``outputs=`` cannot be; what a function of the inputs returns is seen when it is called.

    Raises:
        OptionError: it names no shapes.
    """
    if declared is not None and not callable(declared):
        _specs(declared, label)


def _specs(declared: Any, label: str) -> Any:
    """A tree of specs, of (shape, dtype) pairs, or of arrays as examples → a tree of specs."""
    if isinstance(declared, ArraySpec):
        return declared
    if (
        isinstance(declared, tuple)
        and len(declared) == 2
        and _is_shape(declared[0])
        and _is_dtype(declared[1])
    ):
        return ArraySpec(tuple(declared[0]), np.dtype(declared[1]))
    if hasattr(declared, "shape") and hasattr(declared, "dtype"):
        return ArraySpec.of(declared)
    if isinstance(declared, dict):
        return {key: _specs(value, label) for key, value in declared.items()}
    if isinstance(declared, (list, tuple)):
        return type(declared)(_specs(value, label) for value in declared)
    if trees.is_container(declared):
        leaves, structure = trees.flatten(declared)
        return trees.unflatten(structure, [_specs(leaf, label) for leaf in leaves])
    raise OptionError(
        f"outputs= of {label} must name shapes and dtypes, as (shape, dtype), an array as an example, a tree of them, "
        f"or a function of the inputs that returns such a tree; got {declared!r}"
    )


def _is_shape(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(n, (int, np.integer)) for n in value)


def _is_dtype(value: Any) -> bool:
    try:
        np.dtype(value)
    except TypeError:
        return False
    return isinstance(value, (str, type, np.dtype))
