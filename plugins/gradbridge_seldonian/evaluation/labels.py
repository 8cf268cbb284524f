"""Labels as objectives compute with them: of a dtype that minus and differences are right in."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np


def signed(dataset: Any) -> Any:
    """A data set whose labels are as they are, in a dtype that holds their negatives and differences.

    ``-Y`` of unsigned labels wraps around without a word, narrow integers overflow, and booleans have no
    minus. A data set without such labels comes back itself; otherwise a shallow copy, with float64 labels (int64
    where they number classes).
    """
    labels = getattr(dataset, "labels", None)
    dtype = getattr(labels, "dtype", None)
    if not isinstance(dtype, np.dtype) or not (
        dtype.kind in "ub" or (dtype.kind == "i" and dtype.itemsize < 8)
    ):
        return dataset
    if dtype.kind == "b" and dataset.meta.sub_regime == "multiclass_classification":
        return dataset  # they number no classes
    found = copy.copy(dataset)
    numbers_classes = dataset.meta.sub_regime == "multiclass_classification"
    found.labels = labels.astype(np.int64 if numbers_classes else np.float64)
    return found
