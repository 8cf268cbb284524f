"""Shapes and dtypes of what plain code returns, by trying it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.call_spec import CallSpec
from gradbridge.constants import constant_key
from gradbridge.notices import notice, tried
from gradbridge.protocol import ArraySpec

#: How many tries of a function are remembered.
_KEPT = 64


class TriedOutputs:
    """What a function returns for which inputs, found out by one evaluation at arrays of ones.

    Args:
        label: of the function.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._tried: dict[Hashable, Any] = {}
        self._is_announced = False

    def of(self, inputs: Sequence[Any], spec: CallSpec, function: Callable[[list[Any]], Any]) -> Any:
        """The output tree, with an `ArraySpec` in place of each array.

        Args:
            inputs: an `ArraySpec` for each leaf that is an array, and the others as they are.
            spec: how they fit together.
            function: of leaves.
        """
        key = (spec.structure, *(x if isinstance(x, ArraySpec) else constant_key(x) for x in inputs))
        if key in self._tried:
            return self._tried[key]
        if not self._is_announced:
            self._is_announced = True
            notice(tried(self._label))
        output = function([np.ones(x.shape, x.dtype) if isinstance(x, ArraySpec) else x for x in inputs])
        leaves, structure = trees.flatten(output)
        specs = trees.unflatten(structure, list(map(ArraySpec.of, leaves)))
        if len(self._tried) < _KEPT and None not in key:
            self._tried[key] = specs
        return specs
