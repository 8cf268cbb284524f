"""tinygrad's models: functions of tensors, and callable objects whose attributes are tensors, or hold some."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Self

from tinygrad import Tensor, nn
from tinygrad.dtype import DType

from gradbridge.extend import Array, CallSpec, FunctionModel, GuestOptions, Model, ParameterLayout
from gradbridge_tinygrad.framework import TinygradFramework
from gradbridge_tinygrad.isolation import Isolated, turns


class TinygradFunction(Isolated, FunctionModel):
    """A function of tensors, with or without a tree of parameters."""

    def __init__(
        self,
        framework: TinygradFramework,
        function: Callable[..., Any],
        options: GuestOptions,
        dtype: DType | None,
    ) -> None:
        super().__init__(framework, function, options, dtype)
        self.training = options.mode == "train"

    def _parameter(self, leaf: Any) -> Tensor:
        # Numbers that are its own: a tensor may be assigned to.
        array = self._framework.asnumpy(leaf) if self._framework.is_array(leaf) else leaf
        return super()._parameter(array)


class TinygradModel(Isolated, Model):
    """An object with tensors in it: ``tinygrad.nn.state`` says which.

    Args:
        framework: holds the device.
        model: the object.
        options: what the guest half was told.
        dtype: to compute in; None keeps the model's own.
    """

    def __init__(
        self, framework: TinygradFramework, model: Any, options: GuestOptions, dtype: DType | None
    ) -> None:
        self._framework, self._model = framework, model
        self.label, self.training = type(model).__name__, options.mode == "train"
        params, _ = states(model)
        self.layout = ParameterLayout(
            tuple(params),
            tuple(tuple(int(n) for n in tensor.shape) for tensor in params.values()),
            tuple(map(framework.dtype_name, params.values())),
        )
        self.dtypes = [dtype or tensor.dtype for tensor in params.values()]
        self.dtype = dtype or self.dtypes[0]

    def in_dtype(self, name: str) -> Self:
        twin, dtype = copy.copy(self), self._framework.floating_dtype(name)
        twin.dtype, twin.dtypes = dtype, [dtype] * len(self.dtypes)
        return twin

    def weights(self) -> list[Array]:
        return [self._framework.asnumpy(tensor) for tensor in states(self._model)[0].values()]

    def native(self, weights: Sequence[Array]) -> Any:
        with turns:
            tensors = [self._framework.asarray(w, dtype) for w, dtype in zip(weights, self.dtypes)]
            return self._holding(tensors, lambda buffer: self._framework.computed(buffer).clone())

    def call(
        self, weights: Sequence[Tensor], inputs: list[Any], spec: CallSpec, extras: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        args, kwargs = spec.bind(inputs)
        # A copy per call, so that calls in flight do not meet.
        return self._holding(weights, lambda buffer: buffer)(*args, **kwargs), ()

    def _holding(self, weights: Sequence[Tensor], of_buffer: Callable[[Tensor], Tensor]) -> Any:
        """A copy of the model with other parameters in it."""
        params, buffers = states(self._model)
        # What deepcopy finds in its memo it takes instead of copying.
        memo: dict[int, Any] = {id(old): new for old, new in zip(params.values(), weights)}
        memo |= {id(buffer): of_buffer(buffer) for buffer in buffers.values()}
        return copy.deepcopy(self._model, memo)


def states(model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """({name: parameter}, {name: buffer}) of a model; one that it holds twice appears once."""
    params: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in nn.state.get_state_dict(model).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            (params if tensor.is_param and tensor.is_floating_point() else buffers)[name] = tensor
    return params, buffers
