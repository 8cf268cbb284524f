"""Functions of tensors as guests, with or without a tree of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from gradbridge import trees
from gradbridge.errors import OptionError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Array, GuestOptions
from gradbridge.signatures import argument_names
from gradbridge_tensorflow.adapters import ModelAdapter
from gradbridge_tensorflow.autographed import called
from gradbridge_tensorflow.programs import Traced
from gradbridge_tensorflow.tensors import compute_device, floating_dtype, to_array


class FunctionAdapter(ModelAdapter):
    """A callable of tensors, with or without a tree of parameters as its first argument."""

    def __init__(self, function: Callable[..., Any], options: GuestOptions) -> None:
        self._function = function
        self._has_params = options.params is not None
        self.argument_names = argument_names(function, skip=int(self._has_params))
        dtype, device = floating_dtype(options.dtype), compute_device(options.device)
        layout, self._present, dtypes = ParameterLayout.empty(), np.empty(0), []
        if self._has_params:
            leaves, structure = trees.flatten(options.params)
            tensors = [tf.convert_to_tensor(leaf) for leaf in leaves]
            layout = ParameterLayout.of_tree(trees.unflatten(structure, tensors))
            for name, tensor in zip(layout.names, tensors):
                if not tensor.dtype.is_floating:
                    raise OptionError(
                        f"parameter {name!r} of params= has dtype {tensor.dtype.name}; parameters are real "
                        f"floating arrays: keep constants in the function itself"
                    )
            self._present = layout.ravel(trees.unflatten(structure, [to_array(t) for t in tensors]))
            dtypes = [dtype or t.dtype for t in tensors]
        label = getattr(function, "__name__", type(function).__name__)
        super().__init__(label, layout, dtypes, dtype or (dtypes[0] if dtypes else None), device, False)

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self._present.copy()

    def model(self, params: Array) -> Callable[..., Any]:
        """See `Adapter.model`: the function of tensors with these parameters filled in."""
        function = self._function
        if not self._has_params:
            return function
        tree = self._tree(self.update(params))
        return lambda *args, **kwargs: function(tree, *args, **kwargs)

    def compute(self, given: Traced) -> Any:
        """Call the function."""
        args, kwargs = given.bind()
        if self._has_params:
            args = (self._tree(given.pieces), *args)
        output = called(self._function, args, kwargs)
        if isinstance(output, (float, int)):
            return tf.convert_to_tensor(output, dtype=self._dtype)
        return output

    def _tree(self, pieces: list[tf.Tensor]) -> Any:
        assert self.layout.structure is not None
        return trees.unflatten(self.layout.structure, pieces)
