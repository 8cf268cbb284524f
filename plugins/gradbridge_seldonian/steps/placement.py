"""Which number of theta each number of a native model is, as update_model_params loads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradbridge.layout import Array

_BASE = 64  # 1 + digit / 64 is exact in every floating dtype, bfloat16 too


def placement(load: Callable[[Array], None], read: Callable[[], Array], size: int) -> Any:
    """Load the digits of the places in theta, and read where they have gone.

    Args:
        load: takes (size,) float64; it must be of no consequence what is loaded.
        read: the native model's numbers, (n,) float64.
        size: of theta.

    Returns:
        (n,) int: for each number of the model its place in theta, -1 where it is loaded from none. None where they
        are not copies of theta's: scaled, transformed.
    """
    places = np.arange(size)

    def loaded(values: Array) -> Array:
        load(values.copy())
        return read()

    ones, twos = loaded(np.ones(size)), loaded(np.full(size, 2.0))
    if ones.shape != twos.shape:
        return None
    moved = ones != twos
    if not (np.all(ones[moved] == 1.0) and np.all(twos[moved] == 2.0)):
        return None
    index, unit = np.zeros(ones.shape, dtype=np.int64), 1
    while unit < max(size, 1):
        digits = (loaded(1.0 + places // unit % _BASE / _BASE) - 1.0) * _BASE
        if digits.shape != ones.shape or not np.isin(digits[moved], np.arange(_BASE)).all():
            return None
        index[moved] += digits[moved].astype(np.int64) * unit
        unit *= _BASE
    index[~moved] = -1
    trial = 1.0 + np.random.default_rng(0).integers(0, _BASE, size) / _BASE
    found = loaded(trial)
    if index.max(initial=-1) >= size or found.shape != ones.shape:
        return None
    if not np.array_equal(found[moved], trial[index[moved]]) or not np.array_equal(
        found[~moved], ones[~moved]
    ):
        return None
    return index
