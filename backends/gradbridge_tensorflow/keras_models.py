"""Keras 3 models and layers as guests, called without touching their variables."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradbridge import trees
from gradbridge.call_spec import CallSpec, argument_names
from gradbridge.errors import GuestError, NotDifferentiableError, UnknownModelError
from gradbridge.layout import Array, ParameterLayout
from gradbridge.options import GuestOptions
from gradbridge_keras.copies import copied, is_in_dtype
from gradbridge_keras.variables import Roles, called, unique
from gradbridge_tensorflow import functions
from gradbridge_tensorflow.isolation import eagerly
from gradbridge_tensorflow.keras_copies import same_outputs
from gradbridge_tensorflow.tensors import compute_device, floating_dtype, to_array, to_tensor

_settings = threading.RLock()


class KerasModel(functions.TensorFlowModel):
    """A Keras model: its trainable variables are the weights, all else is kept as it was when bridged.

    The model is called within a `keras.StatelessScope`, where its variables stand for tensors:
    the weights of the call, and copies of the others. In train mode the copies move, and they are
    the bridge's. Random generators are variables too; each gets its seed from the call.
    """

    any_rows = True

    def __init__(self, model: Any, options: GuestOptions) -> None:
        _refuse_unready(model)
        self._model = model  # the user's own: read, never written to
        self._roles = Roles(model)
        own = self._roles.of(model)[: self._roles.trained]
        self.layout = ParameterLayout(
            unique([v.path for v in own]),
            tuple(tuple(int(n) for n in v.shape) for v in own),
            tuple(keras.backend.standardize_dtype(v.dtype) for v in own),
        )
        floating = next((tf.as_dtype(v.dtype) for v in model.variables if _is_float(v)), None)
        asked, self.device = floating_dtype(options.dtype), compute_device(options.device)
        self.label, self.dtype = model.name, asked or floating
        self.dtypes = [asked or tf.as_dtype(v.dtype) for v in own]
        self.argument_names = argument_names(model.call)
        self._train = options.mode == "train"
        self._copied_in = None if asked is None or is_in_dtype(model, asked.name) else asked.name
        self._floatx = self._copied_in or keras.config.floatx()
        self._running = copied(model, self._copied_in) if self._copied_in else model
        self._is_checked = self._copied_in is None
        self._latest: CallSpec | None = None
        self._rest = [tf.identity(v.value) for v in self._state_of(self._running)]
        self._moves = self._train and bool(self._rest)
        self.draws = self._moves or bool(self._roles.seeds)

    def weights(self) -> Sequence[Any]:
        # Read from the user's model as it is now.
        own = self._roles.of(self._model)[: self._roles.trained]
        return eagerly(None, lambda: [to_array(tf.convert_to_tensor(v.value)) for v in own])

    def native(self, weights: Sequence[Array]) -> Any:
        # In the dtype of the computation, with the bridge's own statistics.
        return eagerly(None, lambda: self._twin(weights))

    def extras(self, noise: int) -> Sequence[Any]:
        # The moving variables: none in eval mode, where they are compiled in.
        seeds = [tf.constant(_seeds(noise, self._roles.seeds))] if self._roles.seeds else []
        return [*seeds, *self._rest] if self._moves else seeds

    def move(self, after: Sequence[Any]) -> None:
        self._rest = list(after)  # all at once

    def isolated(
        self, thunk: Callable[[], Any], inputs: Sequence[Any], noise: int | None, record: bool
    ) -> Any:
        if self._is_checked or noise is None:
            return eagerly(self.device, thunk)

        def checked() -> Any:
            result = thunk()
            self._check(inputs, noise)
            return result

        return eagerly(self.device, checked)

    def call(
        self, weights: Sequence[Any], inputs: list[Any], spec: CallSpec, extras: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        self._latest = spec
        args, kwargs = spec.bind(inputs)
        seeds = tf.unstack(extras[0]) if self._roles.seeds else []
        rest = extras[bool(seeds) :] if self._moves else self._rest
        with _floatx(self._floatx):
            output, after = self._called(self._running, (*weights, *rest, *seeds), args, kwargs, self._train)
        return output, after if self._moves else ()

    # -- private ------------------------------------------------------------------------------

    def _twin(self, weights: Sequence[Array]) -> Any:
        twin = copied(self._model, self._copied_in)
        for v, value in zip(self._roles.of(twin), (*weights, *self._rest)):  # its seeds stay
            v.assign(value)
        return twin

    def _state_of(self, model: Any) -> list[Any]:
        variables = self._roles.of(model)
        return variables[self._roles.trained : len(variables) - self._roles.seeds]

    def _called(
        self,
        model: Any,
        values: Sequence[tf.Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        train: bool,
    ) -> tuple[Any, list[tf.Tensor]]:
        mapping = list(zip(self._roles.of(model), values, strict=True))
        known = {id(v) for v, _ in mapping}
        output, scope = called(model, mapping, args, kwargs, train, functions.called)
        if not known.issuperset(scope.state_mapping):
            raise GuestError(
                f"{model.name} draws random numbers from Keras' global generator, or changes a variable that is "
                f"none of its own; give the layer a generator, self.seed_generator = "
                f"keras.random.SeedGenerator(seed), and pass it as seed="
            )
        return output, [scope.get_current_value(v) for v in self._state_of(model)]

    def _check(self, inputs: Sequence[Any], noise: int) -> None:
        """Compare the copy in another dtype with the user's model, on the first inputs there are.

        Raises:
            UnknownModelError: they are not the same function.
        """
        spec = self._latest
        if spec is None or spec.count != len(inputs):
            return  # another thread's call came between
        if self._roles.seeds:
            self._is_checked = True
            return
        results = []
        for model in (self._model, self._running):
            dtype = tf.as_dtype(model.compute_dtype)
            leaves = [to_tensor(x, dtype) if hasattr(x, "__dlpack__") else x for x in inputs]
            args, kwargs = spec.bind(leaves)
            values = [v.value for v in self._roles.of(model)]
            try:
                output, _ = self._called(model, values, args, kwargs, False)
            except (ValueError, TypeError, RuntimeError, AttributeError, tf.errors.OpError):
                break  # it computes in graphs alone, or not at all in its own dtype: there is nothing to compare
            results.append([tf.convert_to_tensor(x) for x in trees.flatten(output)[0]])
        if len(results) == 2 and not same_outputs(*results):
            raise UnknownModelError(
                f"{self.label} rebuilt from its config in {self._copied_in} does not compute what it computes in "
                f"its own dtype, so get_config() leaves something out; leave dtype= out, or build the model in "
                f"{self._copied_in} with keras.config.set_dtype_policy"
            )
        self._is_checked = True


def _refuse_unready(model: Any) -> None:
    if not model.built:
        raise UnknownModelError(
            f"{model.name} ({type(model).__name__}) has no variables yet, it is not built; call it once on an "
            f"example input, or model.build(input_shape), before bridging it"
        )
    for v in model.trainable_variables:
        if not _is_float(v):
            raise NotDifferentiableError(
                f"variable {v.path!r} of {model.name} is trainable and has dtype {v.dtype}; parameters are "
                f"real floating arrays: make it trainable=False, or keep its parts as real variables"
            )


def _seeds(noise: int, count: int) -> np.ndarray[Any, Any]:
    """(count, 2) int64: a seed for each generator, from the noise of one call alone."""
    return np.random.SeedSequence(noise).generate_state(2 * count).astype(np.int64).reshape(count, 2)


def _is_float(variable: Any) -> bool:
    return keras.backend.is_float_dtype(variable.dtype)


@contextmanager
def _floatx(name: str) -> Iterator[None]:
    """Keras' default float as it was when the model was bridged; global, so under a lock and put back."""
    with _settings:
        before = keras.config.floatx()
        if before != name:
            keras.config.set_floatx(name)
        try:
            yield
        finally:
            if before != name:
                keras.config.set_floatx(before)
