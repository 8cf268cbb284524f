"""Functions as models: a callable of natives, with or without a tree of parameters as its first argument."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np

from gradbridge import trees
from gradbridge.call_spec import CallSpec, argument_names
from gradbridge.closures import surroundings
from gradbridge.framework import Framework, Model
from gradbridge.layout import ParameterLayout, leaf_names
from gradbridge.options import GuestOptions, not_a_parameter, parameter_array


class FunctionModel(Model):
    """A callable of a framework's arrays.

    Args:
        framework: whose arrays it takes.
        function: ``fn(*inputs)``, or ``fn(parameter tree, *inputs)`` if `options.params` is given.
        options: what the guest half was told.
        dtype: to compute in, the framework's; None keeps that of the parameters, or of the inputs.

    Raises:
        OptionError: a parameter is not real and floating.
    """

    def __init__(
        self, framework: Framework, function: Callable[..., Any], options: GuestOptions, dtype: Any = None
    ) -> None:
        self._framework, self._function = framework, function
        if framework.traits.compiles:  # what it read from outside is in the program
            self.surroundings = surroundings(function)
        self._has_params = options.params is not None
        self.label = getattr(function, "__name__", type(function).__name__)
        self.argument_names = argument_names(function, skip=int(self._has_params))
        self.layout = ParameterLayout.empty()
        self._present: tuple[np.ndarray[Any, Any], ...] = ()
        self.dtype = dtype
        if self._has_params:
            leaves, structure = trees.flatten(options.params)
            for leaf, name in zip(leaves, leaf_names(structure)):
                if not framework.is_array(leaf):
                    parameter_array(leaf, name)
            natives = [self._parameter(leaf) for leaf in leaves]
            layout = ParameterLayout.of_tree(trees.unflatten(structure, natives))
            self.layout = replace(layout, dtypes=tuple(map(framework.dtype_name, natives)))
            for name, native in zip(self.layout.names, natives):
                if not framework.is_inexact(native) or framework.is_complex(native):
                    raise not_a_parameter(name, native.dtype)
            # Law 5: the caller may change the arrays of the tree later.
            self._present = tuple(np.array(framework.asnumpy(native)) for native in natives)
            self.dtypes = [dtype if dtype is not None else native.dtype for native in natives]
            if dtype is None and natives:
                self.dtype = self.common_dtype(self.dtypes)

    def in_dtype(self, name: str) -> Self:
        if not self._has_params:
            return self  # it computes in the dtype of its inputs, or in the one that was asked for
        dtype = self._framework.floating_dtype(name)
        if self.dtype == dtype and all(d == dtype for d in self.dtypes):
            return self
        twin = copy.copy(self)
        twin.dtype, twin.dtypes = dtype, [dtype] * len(self.dtypes)
        return twin

    def in_eval_mode(self) -> Self:
        return self  # a function has no mode

    def common_dtype(self, dtypes: Sequence[Any]) -> Any:
        """What floating inputs are cast to where nobody says: that of the first parameter."""
        return dtypes[0]

    def weights(self) -> Sequence[Any]:
        return self._present

    def native(self, weights: Sequence[np.ndarray[Any, Any]]) -> Callable[..., Any]:
        """The function with the parameters filled in: ``fn(*inputs)``."""
        function = self._function
        if not self._has_params:
            return function
        tree = self._tree([self._framework.asarray(w, d) for w, d in zip(weights, self.dtypes)])
        return lambda *args, **kwargs: function(tree, *args, **kwargs)

    def call(
        self, weights: Sequence[Any], inputs: list[Any], spec: CallSpec, extras: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        args, kwargs = spec.bind(inputs)
        if self._has_params:
            args = (self._tree(weights), *args)
        return self.returned(self._function(*args, **kwargs)), ()

    def returned(self, output: Any) -> Any:
        """What the function returned, where the framework has something to mend or to refuse in it."""
        return output

    def _parameter(self, leaf: Any) -> Any:
        """A leaf of the parameters as a native array."""
        return leaf if self._framework.is_array(leaf) else self._framework.asarray(np.asarray(leaf), None)

    def _tree(self, weights: Sequence[Any]) -> Any:
        assert self.layout.structure is not None
        return trees.unflatten(self.layout.structure, weights)
