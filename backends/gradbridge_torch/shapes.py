"""Shapes before the run: torch's fake tensors, which have all but numbers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)

from gradbridge.errors import Unsupported
from gradbridge.framework import Computation, Form
from gradbridge.protocol import ArraySpec

#: What torch raises where a shape cannot be told; where a model asks for `.numpy()`, it is a mere RuntimeError.
_BY_NUMBERS = DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException

_log = logging.getLogger("torch._subclasses.fake_tensor")


def shapes_of(
    fn: Computation, specs: Sequence[ArraySpec], device: torch.device | None, label: str
) -> tuple[list[ArraySpec], Form]:
    """Shapes and dtypes of a computation's outputs.

    Args:
        fn: the computation; what it holds besides its leaves, buffers say, is taken for fake, too.
        specs: of its leaves, with torch's dtypes.
        device: where it computes.
        label: of the model.

    Raises:
        Unsupported: they depend on the numbers.
    """
    here = threading.get_ident()

    def from_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != here

    # What does not fit is told by our error, and not by a traceback of torch's in the log besides.
    _log.addFilter(from_elsewhere)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            leaves = [torch.empty(spec.shape, dtype=spec.dtype, device=device) for spec in specs]  # type: ignore[arg-type]
            floats, others, form, _ = fn(leaves)
    except RuntimeError as error:
        if not isinstance(error, _BY_NUMBERS) and ".numpy() is not supported" not in str(error):
            raise
        raise Unsupported(
            f"{label} decides by the numbers in its arrays, so that its shapes are known only after it has "
            f"computed ({type(error).__name__}: {error})"
        ) from error
    finally:
        _log.removeFilter(from_elsewhere)
    return [ArraySpec(tuple(y.shape), y.dtype) for y in form.merge(floats, others)], form
