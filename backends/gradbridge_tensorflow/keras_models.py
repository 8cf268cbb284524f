"""Keras 3 models and layers as guests, called without touching their variables."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradbridge import trees
from gradbridge.errors import GuestError, NotDifferentiableError, UnknownModelError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Array, GuestOptions, Signature
from gradbridge.signatures import argument_names
from gradbridge_tensorflow.adapters import ModelAdapter
from gradbridge_tensorflow.autographed import called
from gradbridge_tensorflow.isolation import eagerly
from gradbridge_tensorflow.keras_copies import copied, is_in_dtype, same_outputs
from gradbridge_tensorflow.programs import Traced, seeds_of
from gradbridge_tensorflow.tensors import compute_device, floating_dtype, joined

_settings = threading.RLock()


class KerasAdapter(ModelAdapter):
    """A Keras model: its trainable variables are the params, all else is kept as it was when bridged.

    The model is called within a `keras.StatelessScope`, where its variables stand for tensors:
    the parameters of the call, and copies of the others. In train mode the copies move, and
    they are the adapter's. Random generators are variables too; each gets its seed from the call.
    """

    def __init__(self, model: Any, options: GuestOptions) -> None:
        _refuse_unready(model)
        dtype, device = floating_dtype(options.dtype), compute_device(options.device)
        self._model = model  # the user's own: read, never written to
        self.argument_names = argument_names(model.call)
        self._train = options.mode == "train"
        self._own = list(model.trainable_variables)
        others = [v for v in model.non_trainable_variables if not _is_seed(v)]
        self._as_is = dtype is None or is_in_dtype(model, dtype.name)
        self._running = model if self._as_is else copied(model, dtype.name)
        self._unchecked = not self._as_is
        self._floatx = keras.config.floatx() if self._as_is else dtype.name
        seeds = [v for v in model.non_trainable_variables if _is_seed(v)]
        self.generators = len(seeds)
        self._rest = [_snapshot(v, None if self._as_is else dtype) for v in others]
        self._moving = self._train and bool(others)
        self.stochastic = self._moving or bool(seeds)
        self._moves = threading.Lock()
        names = _unique([v.path for v in self._own])
        layout = ParameterLayout(
            tuple(names),
            tuple(tuple(int(n) for n in v.shape) for v in self._own),
            tuple(keras.backend.standardize_dtype(v.dtype) for v in self._own),
        )
        dtypes = [dtype or tf.as_dtype(v.dtype) for v in self._own]
        own = next((tf.as_dtype(v.dtype) for v in model.variables if _is_float(v)), None)
        super().__init__(model.name, layout, dtypes, dtype or own, device, any_rows=True)

    def params(self) -> Array:
        """See `Adapter.params`: read from the user's model as it is now."""
        return eagerly(None, lambda: joined(self.layout, [tf.convert_to_tensor(v.value) for v in self._own]))

    def model(self, params: Array) -> Any:
        """See `Adapter.model`. In the dtype of the computation, with the bridge's own statistics."""
        return eagerly(None, lambda: self._twin(params))

    def state(self) -> list[tf.Tensor]:
        """The moving variables: none in eval mode, where they are compiled in."""
        return self._rest if self._moving else []

    def move(self, state: list[tf.Tensor]) -> None:
        """Take over the statistics that a forward left behind, all at once."""
        with self._moves:
            self._rest = list(state)

    def forward(
        self, loaded: tf.Tensor, inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """See `Adapter.forward`."""
        if self._unchecked:
            self._check(inputs, signature)
        return super().forward(loaded, inputs, signature, wrt)

    def compute(self, given: Traced) -> Any:
        """Call the model on tensors in place of its variables."""
        args, kwargs = given.bind()
        rest = given.state if self._moving else self._rest
        with _floatx(self._floatx):
            output, after = self._call(self._running, given.pieces, rest, given.seeds, args, kwargs)
        if self._moving:
            given.state[:] = after
        return output

    # -- private ------------------------------------------------------------------------------

    def _twin(self, params: Array) -> Any:
        twin = copied(self._model, None if self._as_is else self._floatx)
        pieces = self.layout.unravel(params)
        for v, name in zip(twin.trainable_variables, self.layout.names):
            v.assign(pieces[name])
        others = [v for v in twin.non_trainable_variables if not _is_seed(v)]
        for v, value in zip(others, self._rest):
            v.assign(value)
        return twin

    def _call(
        self,
        model: Any,
        pieces: Sequence[tf.Tensor],
        rest: Sequence[tf.Tensor],
        seeds: tf.Tensor | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        train: bool | None = None,
    ) -> tuple[Any, list[tf.Tensor]]:
        others = [v for v in model.non_trainable_variables if not _is_seed(v)]
        generators = [v for v in model.non_trainable_variables if _is_seed(v)]
        mapping = [
            *zip(model.trainable_variables, pieces),
            *zip(others, rest),
            *((v, tf.cast(seeds[i], v.dtype)) for i, v in enumerate(generators)),
        ]
        known = {id(v) for v, _ in mapping}
        if len(args) > 1 and isinstance(getattr(model, "_inputs_struct", None), (list, tuple)):
            args = (list(args),)  # f(params, a, b) of a functional model with the inputs [a, b]
        kwargs = {"training": self._train if train is None else train, **kwargs}
        # Losses are collected in the scope, or the layers would keep them.
        scope = keras.StatelessScope(mapping, collect_losses=True, initialize_variables=False)
        with scope:
            output = called(model, args, kwargs)
        if not known.issuperset(scope.state_mapping):
            raise GuestError(
                f"{model.name} draws random numbers from Keras' global generator, or changes a variable that is "
                f"none of its own; give the layer a generator, self.seed_generator = "
                f"keras.random.SeedGenerator(seed), and pass it as seed="
            )
        return output, [scope.get_current_value(v) for v in others]

    def _check(self, inputs: Sequence[Any], signature: Signature) -> None:
        """Compare the copy in another dtype with the user's model, on the first inputs there are.

        Raises:
            UnknownModelError: they are not the same function.
        """
        args, kwargs = signature.bind([tf.constant(x) if type(x) is np.ndarray else x for x in inputs])
        found = []
        seeds = tf.constant(seeds_of(signature.noise, self.generators)) if self.generators else None
        for model in (self._model, self._running):
            cast = [
                tf.cast(x, model.compute_dtype) if isinstance(x, tf.Tensor) and x.dtype.is_floating else x
                for x in trees.flatten((args, kwargs))[0]
            ]
            mine, named = trees.unflatten(signature.structure, cast)
            pieces = [v.value for v in model.trainable_variables]
            rest = [v.value for v in model.non_trainable_variables if not _is_seed(v)]
            try:
                output, _ = self._call(model, pieces, rest, seeds, mine, named, train=False)
            except Exception:
                return  # the forward itself will tell
            found.append([tf.convert_to_tensor(x) for x in trees.flatten(output)[0]])
        if not self.generators and not same_outputs(*found):
            raise UnknownModelError(
                f"{self.label} rebuilt from its config in {self._floatx} does not compute what it computes in its "
                f"own dtype, so get_config() leaves something out; leave dtype= out, or build the model in "
                f"{self._floatx} with keras.config.set_dtype_policy"
            )
        self._unchecked = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._moves = threading.Lock()
        super().__setstate__(state)


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


def _is_seed(variable: Any) -> bool:
    return variable.path.endswith("seed_generator_state") and tuple(variable.shape) == (2,)


def _is_float(variable: Any) -> bool:
    return keras.backend.is_float_dtype(variable.dtype)


def _snapshot(variable: Any, dtype: tf.DType | None) -> tf.Tensor:
    value = tf.identity(variable.value)
    return tf.cast(value, dtype) if dtype is not None and value.dtype.is_floating else value


def _unique(paths: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    names = []
    for path in paths:
        seen[path] = seen.get(path, 0) + 1
        names.append(path if seen[path] == 1 else f"{path}_{seen[path]}")
    return names


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
