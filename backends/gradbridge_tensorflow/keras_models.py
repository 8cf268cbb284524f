"""Keras 3 models and layers as guests, called without touching their variables."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from gradbridge.call_spec import CallSpec, argument_names
from gradbridge.closures import surroundings
from gradbridge.inspection import Stranger
from gradbridge.layout import Array, ParameterLayout
from gradbridge.options import GuestOptions
from gradbridge_keras.snapshots import Snapshot
from gradbridge_keras.variables import readers, unique
from gradbridge_tensorflow import functions
from gradbridge_tensorflow.isolation import eagerly
from gradbridge_tensorflow.tensors import compute_device, floating_dtype, to_array, to_tensor


class KerasModel(functions.TensorFlowModel):
    """A Keras model: its trainable variables are the weights, all else is kept as it was when bridged.

    Each trace is of a fresh copy, in a `keras.StatelessScope`, where the variables stand for tensors:
    the weights of the call, and copies of the others. In train mode the copies move, and they are
    the bridge's. Random generators are variables too; each gets its seed from the call.

    Args:
        model: of Keras, or a snapshot of one.
        options: of the bridge.
    """

    any_rows = True

    def __init__(self, model: Any, options: GuestOptions) -> None:
        snapshot = model if isinstance(model, Snapshot) else Snapshot(model)
        asked, self.device = floating_dtype(options.dtype), compute_device(options.device)
        self._snapshot = snapshot = snapshot.in_dtype(None if asked is None else asked.name)
        self._options, self._seeds = options, snapshot.roles.seeds
        self._own = snapshot.variables[: snapshot.roles.trained]
        self.layout = ParameterLayout(
            unique([v.path for v in self._own]),
            tuple(tuple(int(n) for n in v.shape) for v in self._own),
            tuple(keras.backend.standardize_dtype(v.dtype) for v in self._own),
        )
        dtypes = [tf.as_dtype(v.dtype) for v in snapshot.variables]
        self.label = snapshot.name
        self.dtype = asked or next((d for d in dtypes if d.is_floating), None)
        self.dtypes = [asked or d for d in dtypes[: len(self._own)]]
        self.argument_names = argument_names(snapshot.as_it_was.call)
        self.surroundings = surroundings(*readers(snapshot.as_it_was))
        self._train = options.mode == "train"
        self._is_checked = snapshot.dtype is None
        self._latest: CallSpec | None = None
        state = snapshot.roles.of(snapshot.twin())[len(self._own) : len(dtypes) - self._seeds]
        self._rest = [tf.cast(value, v.dtype) for v, value in zip(state, snapshot.fixed)]
        self.moves = self._train and bool(self._rest)
        # In eval mode the first trace tells: most layers with a generator leave it alone there.
        self.draws = self._train and len(dtypes) > len(self._own)

    def weights(self) -> Sequence[Any]:
        # Read from the user's model as it is now.
        return eagerly(None, lambda: [to_array(tf.convert_to_tensor(v.value)) for v in self._own])

    def native(self, weights: Sequence[Array]) -> Any:
        # In the dtype of the computation, with the bridge's own statistics.
        seeds = self._snapshot.fixed[len(self._rest) :]
        return eagerly(None, lambda: self._snapshot.native([*weights, *self._rest, *seeds]))

    def in_dtype(self, name: str) -> Self:
        snapshot = self._snapshot.in_dtype(name)
        if snapshot is self._snapshot:
            return self
        twin = type(self)(snapshot, dataclasses.replace(self._options, dtype=name))
        twin.shares_state = self.shares_state
        return twin

    def in_eval_mode(self) -> Self:
        twin = copy.copy(self)
        twin._options, twin._train = dataclasses.replace(self._options, mode="eval"), False
        twin.shares_state, twin.draws, twin.moves = self.moves, False, False
        return twin

    def strangers(self, residuals: Any) -> Sequence[Stranger]:
        return self._snapshot.strangers()

    def extras(self, noise: int) -> Sequence[Any]:
        # The moving variables: none in eval mode, where they are compiled in.
        seeds = [tf.constant(_seeds(noise, self._seeds))] if self._seeds else []
        return [*seeds, *self._rest] if self.moves or self.shares_state else seeds

    def isolated(
        self, thunk: Callable[[], Any], inputs: Sequence[Any], noise: int | None, record: bool
    ) -> Any:
        if self._is_checked or noise is None:
            return eagerly(self.device, thunk)

        def checked() -> Any:
            result, spec = thunk(), self._latest
            if spec is not None and spec.count == len(inputs):  # else another thread's call came between
                self._snapshot.compare(spec, inputs, _tensor, call=functions.called)
                self._is_checked = True
            return result

        return eagerly(self.device, checked)

    def call(
        self, weights: Sequence[Any], inputs: list[Any], spec: CallSpec, extras: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        self._latest = spec
        args, kwargs = spec.bind(inputs)
        seeds = tf.unstack(extras[0]) if self._seeds else []
        rest = extras[bool(seeds) :] if self.moves or self.shares_state else self._rest
        output, after = self._snapshot.call(
            self._snapshot.twin(), (*weights, *rest, *seeds), args, kwargs, self._train, call=functions.called
        )
        first = len(weights) + len(rest)
        self.draws = self.draws or any(new is not old for new, old in zip(after[first:], seeds))
        return output, after[len(weights) : first] if self.moves else ()


def _seeds(noise: int, count: int) -> np.ndarray[Any, Any]:
    """(count, 2) int64: a seed for each generator, from the noise of one call alone."""
    return np.random.SeedSequence(noise).generate_state(2 * count).astype(np.int64).reshape(count, 2)


def _tensor(array: Any, dtype: str) -> tf.Tensor:
    return to_tensor(array, tf.as_dtype(dtype))
