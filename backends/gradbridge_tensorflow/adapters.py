"""Adapters over programs: the four steps once for models, modules, functions and their pullbacks."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gradbridge import trees
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter, Array, Signature
from gradbridge_tensorflow.explain import explained, refuse_missing_derivatives
from gradbridge_tensorflow.forward_mode import push_function
from gradbridge_tensorflow.isolation import eagerly
from gradbridge_tensorflow.jacobians import pulled_many, row_function
from gradbridge_tensorflow.programs import Compiled, Program, Traced, seeds_of
from gradbridge_tensorflow.tensors import joined, pieces_of, to_array, to_tensor


class ProgramAdapter(Adapter):
    """A compiled function of tensors.

    Args:
        label: what errors call it.
        layout: of the parameters.
        dtypes: of each parameter in the computation.
        dtype: of floating inputs in the computation; None keeps theirs.
        device: where it computes; None leaves it to TensorFlow.
        any_rows: see `Program`.
    """

    takes_complex = True

    #: How many random generators the model has; each gets a seed from the call's noise.
    generators = 0

    def __init__(
        self,
        label: str,
        layout: ParameterLayout,
        dtypes: Sequence[tf.DType],
        dtype: tf.DType | None,
        device: str | None,
        any_rows: bool,
    ) -> None:
        self.label = label
        self.layout = layout
        self._dtypes = tuple(dtypes)
        self._dtype = dtype
        self._device = device
        self._any_rows = any_rows
        self._program = self._new_program()

    @abstractmethod
    def _new_program(self) -> Program:
        """The program behind this adapter, not traced yet."""

    def state(self) -> list[tf.Tensor]:
        """The model's moving variables as they stand."""
        return []

    def move(self, state: list[tf.Tensor]) -> None:
        """Take over the state that a forward left behind."""

    def update(self, params: Array) -> list[tf.Tensor]:
        """See `Adapter.update`: one tensor per parameter, in the dtype of the computation."""
        return eagerly(self._device, lambda: pieces_of(params, self.layout, self._dtypes))

    def forward(
        self, loaded: list[tf.Tensor], inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """See `Adapter.forward`."""
        return eagerly(self._device, lambda: self._forward(loaded, inputs, signature, wrt))

    def backward(
        self, residuals: _Residuals, cotangents: Sequence[Array], wrt: tuple[int, ...]
    ) -> list[Array]:
        """See `Adapter.backward`. Gradients are returned by TensorFlow rather than added up."""
        return eagerly(self._device, lambda: self._backward(residuals, cotangents, wrt))

    def backward_many(
        self, residuals: _Residuals, cotangents: Sequence[Array], wrt: tuple[int, ...]
    ) -> list[Array] | None:
        """See `Adapter.backward_many`: ``tf.vectorized_map`` of the backward half."""
        return eagerly(self._device, lambda: self._backward_many(residuals, cotangents, wrt))

    def row_jacobians(
        self,
        loaded: list[tf.Tensor],
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        rowed: tuple[bool, ...],
    ) -> list[list[Array]] | None:
        """See `Adapter.row_jacobians`: ``tf.vectorized_map`` of the model's gradient."""
        if self.stochastic or self.generators:
            return None
        return eagerly(self._device, lambda: self._row_jacobians(loaded, inputs, signature, wrt, rowed))

    def pushforward(
        self,
        loaded: list[tf.Tensor],
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        """See `Adapter.pushforward`: ``tf.autodiff.ForwardAccumulator``."""
        return eagerly(
            self._device, lambda: self._pushed(loaded, inputs, signature, wrt, list(tangents), False)
        )

    def pushforward_many(
        self,
        loaded: list[tf.Tensor],
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        """See `Adapter.pushforward_many`: ``tf.vectorized_map`` of it. None for models that draw numbers."""
        if self.stochastic or self.generators:
            return None
        return eagerly(
            self._device, lambda: self._pushed(loaded, inputs, signature, wrt, list(tangents), True)
        )

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> PullbackAdapter:
        """See `Adapter.pullback`."""
        return PullbackAdapter(self, signature, wrt)

    def input_tensor(self, index: int, leaf: Any) -> Any:
        """An input leaf as the computation takes it: arrays become tensors, the rest stays."""
        return to_tensor(leaf, self._dtype) if type(leaf) is np.ndarray else leaf

    # -- private ------------------------------------------------------------------------------

    def _forward(
        self, loaded: list[tf.Tensor], inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        leaves = [self.input_tensor(i, leaf) for i, leaf in enumerate(inputs)]
        state = self.state()
        compiled = self._program.compiled(signature.structure, leaves, wrt, state)
        seeds = [tf.constant(seeds_of(self.noise(signature), self.generators))] if self.generators else []
        tensors = [leaf for leaf in leaves if isinstance(leaf, tf.Tensor)]
        try:
            results, residuals = compiled.halves.forward(*loaded, *seeds, *state, *tensors)
            count = len(results) - compiled.moved
            arrays = [to_array(t) for t in results[:count]]
        except Exception as error:
            raise explained(error, self.label, leaves) from error
        if compiled.moved and not signature.replay:
            self.move(results[count:])
        kept = _Residuals(compiled, residuals, wrt) if wrt else None
        if compiled.structure is None:
            return arrays[0], kept
        return trees.unflatten(compiled.structure, arrays), kept

    def _backward(
        self, residuals: _Residuals, cotangents: Sequence[Array], wrt: tuple[int, ...]
    ) -> list[Array]:
        compiled = residuals.compiled
        backward: Any = compiled.halves.backward
        pulled = [to_tensor(c, dtype) for c, dtype in zip(cotangents, compiled.floating) if dtype is not None]
        try:
            (found,) = backward(*residuals.tensors, *pulled)
            rest = iter(found)
            gradients = {p: self._gradient(p, rest) for p in residuals.wrt}
        except Exception as error:
            refuse_missing_derivatives(error, backward.graph, self.label)
            raise explained(error, f"the backward of {self.label}", pulled) from error
        return [gradients[p] for p in wrt]

    def _backward_many(
        self, residuals: _Residuals, cotangents: Sequence[Array], wrt: tuple[int, ...]
    ) -> list[Array] | None:
        compiled = residuals.compiled
        pairs = [(c, dtype) for c, dtype in zip(cotangents, compiled.floating) if dtype is not None]
        try:
            found = pulled_many(compiled, residuals.tensors, [to_tensor(c, dtype) for c, dtype in pairs])
        except tf.errors.OpError:
            return None
        if found is None:
            return None
        rest, lead = iter(found), (len(cotangents[0]),)
        gradients = {p: self._many_gradient(p, rest, lead) for p in residuals.wrt}
        return [gradients[p] for p in wrt]

    def _row_jacobians(
        self,
        loaded: list[tf.Tensor],
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        rowed: tuple[bool, ...],
    ) -> list[list[Array]] | None:
        leaves = [self.input_tensor(i, leaf) for i, leaf in enumerate(inputs)]
        state = self.state()
        function = row_function(self._program, signature.structure, leaves, wrt, rowed, state)
        if function is None:
            return None
        tensors = [leaf for leaf in leaves if isinstance(leaf, tf.Tensor)]
        try:
            found = function.run(*loaded, *state, *tensors)
        except tf.errors.OpError:
            return None
        count = next(len(leaf) for leaf, yes in zip(inputs, rowed) if yes)
        results = []
        for shape, gradients in zip(function.shapes, found):
            rest, lead = iter(gradients), (count * int(np.prod(shape)),)
            mine = [self._many_gradient(p, rest, lead) for p in wrt]
            results.append([a.reshape(count, *shape, *a.shape[1:]) for a in mine])
        return results

    def _pushed(
        self,
        loaded: list[tf.Tensor],
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: list[Array],
        many: bool,
    ) -> list[Array] | None:
        leaves = [self.input_tensor(i, leaf) for i, leaf in enumerate(inputs)]
        state = self.state()
        push = push_function(self._program, signature.structure, leaves, wrt, state, many)
        if push is None:
            return None
        seeds = [tf.constant(seeds_of(self.noise(signature), self.generators))] if self.generators else []
        tensors = [leaf for leaf in leaves if isinstance(leaf, tf.Tensor)]
        moves: list[tf.Tensor] = []
        for position, tangent in zip(wrt, tangents):
            if position:
                moves.append(to_tensor(tangent, leaves[position - 1].dtype))
            else:
                lead = tangent.shape[:-1]
                moves += [
                    to_tensor(tangent[..., where].reshape((*lead, *shape)), dtype)
                    for where, shape, dtype in zip(self.layout.slices, self.layout.shapes, self._dtypes)
                ]
        try:
            return [to_array(t) for t in push(*loaded, *seeds, *state, *tensors, *moves)]
        except tf.errors.OpError:
            return None

    def noise(self, signature: Signature) -> int:
        """The seed of a call's random numbers."""
        return signature.noise

    def _many_gradient(self, position: int, tensors: Iterator[tf.Tensor], lead: tuple[int, ...]) -> Array:
        """The next gradient of those that were found, with a leading axis."""
        if position:
            return to_array(next(tensors))
        flat = np.empty((*lead, self.layout.size))
        for where in self.layout.slices:
            flat[:, where] = to_array(next(tensors)).reshape(*lead, -1)
        return flat

    def _gradient(self, position: int, tensors: Iterator[tf.Tensor]) -> Array:
        """The next gradient of those that backward found."""
        if position:
            return to_array(next(tensors))
        return joined(self.layout, [next(tensors) for _ in self.layout.slices])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_program", "_moves")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._program = self._new_program()

    def __deepcopy__(self, memo: dict[int, Any]) -> ProgramAdapter:
        # The user's model is read and never written to, so copies may share it.
        twin = copy.copy(self)
        memo[id(self)] = twin
        return twin


class ModelAdapter(ProgramAdapter):
    """A model that says how to compute its outputs from tensors; all else follows."""

    @abstractmethod
    def compute(self, given: Traced) -> Any:
        """Outputs, a pytree of tensors. Called while the program is traced; replaces `given.state`."""

    def _new_program(self) -> Program:
        pieces = tuple(map(tf.TensorSpec, self.layout.shapes, self._dtypes))
        return Program(self.label, pieces, bool(self.generators), self.compute, self._any_rows)


class PullbackAdapter(ProgramAdapter):
    """The VJP of a program adapter: ``(params, *inputs, *cotangents) ↦ gradients``."""

    def __init__(self, parent: ProgramAdapter, signature: Signature, wrt: tuple[int, ...]) -> None:
        self._parent, self._signature, self._wrt = parent, signature, wrt
        self.generators = parent.generators
        self.stochastic = parent.stochastic
        super().__init__(
            f"gradient of {parent.label}",
            parent.layout,
            parent._dtypes,
            parent._dtype,
            parent._device,
            parent._any_rows,
        )

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self._parent.params()

    def model(self, params: Array) -> Any:
        """See `Adapter.model`: the model that this is a derivative of."""
        return self._parent.model(params)

    def state(self) -> list[tf.Tensor]:
        """The parent's, which a derivative reads and never moves."""
        return self._parent.state()

    def forward(
        self, loaded: list[tf.Tensor], inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """See `Adapter.forward`. No state moves."""
        return super().forward(loaded, inputs, signature.replayed(), wrt)

    def noise(self, signature: Signature) -> int:
        """That of the call whose derivative this is."""
        return self._signature.noise

    def input_tensor(self, index: int, leaf: Any) -> Any:
        """Inputs as the parent takes them; cotangents keep their dtype until the outputs are known."""
        if index < self._signature.count:
            return self._parent.input_tensor(index, leaf)
        return to_tensor(leaf, None)

    def _new_program(self) -> Program:
        # Shared by all pullbacks of such calls: a new adapter per call must not be traced anew.
        return self._parent._program.pullback(self._signature.structure, self._wrt)


class _Residuals:
    """What one forward keeps: the tensors that its backward half reads."""

    __slots__ = ("compiled", "tensors", "wrt")

    def __init__(self, compiled: Compiled, tensors: list[tf.Tensor], wrt: tuple[int, ...]) -> None:
        self.compiled, self.tensors, self.wrt = compiled, tensors, wrt
