"""The engine's base class for TensorFlow, over a bridge: the same name and methods, and gradients that are right."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np

from gradbridge.errors import NotDifferentiableError, UnknownModelError
from gradbridge.protocol import Array
from gradbridge_seldonian.steps.base import SupervisedParametersModel
from gradbridge_seldonian.steps.framework import CREATE, FORWARD, METHODS, StepsFramework, is_inherited


class TensorFlowSteps(StepsFramework):
    """Tensors, variables and tapes around the five methods."""

    @contextmanager
    def surroundings(self, noise: int) -> Iterator[None]:
        """Every run draws what the first one drew: the model's seeds are put back."""
        from gradbridge_tensorflow.runtime import RUNTIME

        RUNTIME.require()
        seeds = [x for x in self._kept() if x[0].path.endswith("seed_generator_state")]
        try:
            yield
        finally:
            self.restore(seeds)

    def check_native(self, native: Any) -> None:
        """Refuse what is not a built model of TensorFlow, unless all methods are the class's own."""
        super().check_native(native)
        inherited = [
            name for name in METHODS[1:] if is_inherited(self.owner, name) and name != "zero_gradients"
        ]
        if not hasattr(native, "trainable_variables"):
            if inherited:
                raise UnknownModelError(
                    f"{CREATE} of {self.label} must return a Keras model or a tf.Module, and returned a "
                    f"{type(native).__name__}; return one, or override {', '.join(inherited)}, too"
                )
            return
        if _is_keras(native):
            import keras

            if keras.backend.backend() != "tensorflow":
                raise UnknownModelError(
                    f"{CREATE} of {self.label} returned a Keras model that runs on {keras.backend.backend()}, and a "
                    f"GradientTape records TensorFlow alone; set KERAS_BACKEND=tensorflow, or use SeldonianModel"
                )
        if not getattr(native, "built", True):
            raise UnknownModelError(
                f"{CREATE} of {self.label} returned a {type(native).__name__} that has no variables yet, it is not built; "
                f"begin it with keras.Input(shape), or call it once on an example input there"
            )
        if "update_model_params" in inherited and not native.trainable_variables:
            raise UnknownModelError(
                f"{CREATE} of {self.label} returned a {type(native).__name__} without trainable variables"
            )

    def begin(self) -> None:
        """Forget the last run's tape: one that forward_pass does not set would be pulled instead of its own."""
        self.owner.tape = None

    def check_predictions(self, predictions: Any) -> None:
        """Refuse what is not a tensor, unless backward_pass is the class's own."""
        import tensorflow as tf

        if not tf.is_tensor(predictions) and is_inherited(self.owner, "backward_pass"):
            self.refuse_predictions(predictions, "a tf.Tensor")
        super().check_predictions(predictions)

    def check_recorded(self, predictions: Any, by_framework: bool) -> None:
        """Refuse a run without a tape."""
        if by_framework and is_inherited(self.owner, "backward_pass") and self.owner.tape is None:
            raise NotDifferentiableError(
                f"{FORWARD} of {self.label} does not set self.tape, which the backward_pass that it inherits reads: compute "
                f"the predictions within 'with tf.GradientTape(persistent=True) as tape:', and end with self.tape = tape"
            )

    def cotangent(self, cotangent: Array, predictions: Any) -> Any:
        """An array, as the engine's class gives it, of the predictions' dtype."""
        return cotangent.astype(_numpy_dtype(predictions))

    def state(self) -> Any:
        """The variables of a Keras model that are not trained, statistics and seeds: tensors, not copied."""
        return self._kept()

    def restore(self, state: Any) -> None:
        """Put back those that have changed."""
        for variable, value in state or ():
            if not np.array_equal(variable.numpy(), value.numpy()):
                variable.assign(value)

    def own_gradient(self, run: Callable[[], Any], cotangent: Array) -> Array | None:
        """By a tape around the run, whatever tapes the methods have."""
        import tensorflow as tf

        with tf.GradientTape() as tape:
            predictions = run()
        variables = self.owner._trainable_parameters()
        if not tf.is_tensor(predictions) or not predictions.dtype.is_floating or not variables:
            return None
        given = tf.convert_to_tensor(self.cotangent(cotangent, predictions))
        gradients = tape.gradient(predictions, variables, output_gradients=given)
        if all(g is None for g in gradients):
            return None
        return _joined(variables, gradients).astype(np.float64)

    def snapshot(self) -> Any:
        """Tensors of all variables, not copied."""
        import tensorflow as tf

        return [tf.convert_to_tensor(v) for v in self._read()]

    def is_as(self, snapshot: Any) -> bool:
        """By the numbers, since variables count no versions."""
        present = self._read()
        return len(present) == len(snapshot) and all(
            np.array_equal(v.numpy(), t.numpy()) for v, t in zip(present, snapshot)
        )

    def _read(self) -> list[Any]:
        return [*self.owner._trainable_parameters(), *(v for v, _ in self._kept())]

    def _kept(self) -> list[tuple[Any, Any]]:
        import tensorflow as tf

        variables = getattr(self.owner.native_model, "non_trainable_variables", ())
        return [(v, tf.convert_to_tensor(v)) for v in variables if hasattr(v, "path")]


class SupervisedTensorFlowBaseModel(SupervisedParametersModel):
    """The five methods over a Keras model or a `tf.Module`, `self.tensorflow_model`.

    ``__init__(**kwargs)``; the keyword arguments are `create_model`'s. All but `create_model` have defaults,
    which take theta in the order of ``model.trainable_weights``. A `forward_pass` of your own records its
    computation and sets `self.tape`, unless `backward_pass` is your own, too. That is handed the cotangent as a
    NumPy array of the predictions' dtype, as ``backward_pass(v)`` or ``backward_pass(predictions, external_grad)``.

    It computes in the model's own dtype, float32 unless its layers are made with another, and in inference mode
    unless `forward_pass` says ``training=True``; then every evaluation draws the same masks, and statistics move
    once per evaluation.

    Attributes:
        tensorflow_model: the model.
        tape: of the run that `backward_pass` is called for.
        weights_updated: unused; every evaluation loads its theta.
    """

    weights_updated = False
    tape: Any = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if hasattr(self.native_model, "trainable_variables"):
            self.param_sizes = self.get_param_sizes()

    @property
    def tensorflow_model(self) -> Any:
        """The Keras model, or module."""
        return self.native_model

    @tensorflow_model.setter
    def tensorflow_model(self, model: Any) -> None:
        self.native_model = model

    def _steps_framework(self) -> StepsFramework:
        return TensorFlowSteps(self)

    def _trainable_parameters(self) -> list[Any]:
        """The trainable variables."""
        return list(getattr(self.native_model, "trainable_variables", ()))

    def _read_parameter(self, parameter: Any) -> Array:
        """See the base class."""
        return np.array(parameter.numpy())

    def _write_parameter(self, parameter: Any, value: Array) -> None:
        """See the base class."""
        parameter.assign(value.astype(_numpy_dtype(parameter)))

    def zero_gradients(self) -> None:
        """Nothing to do: a tape returns gradients, and gathers none."""

    def forward_pass(self, X: Array, **kwargs: Any) -> Any:
        """Run the model on X, floating ones in the dtype of its variables, and record it."""
        import tensorflow as tf

        with tf.GradientTape(persistent=True) as tape:
            features = tf.convert_to_tensor(X)
            if features.dtype.is_floating and self._trainable_parameters():
                features = tf.cast(features, self._trainable_parameters()[0].dtype)
            predictions = self.native_model(features)
        self.tape = tape
        return predictions

    def backward_pass(self, v: Any, external_grad: Any = None) -> Any:
        """Join the gradients of all variables, in their order, (P,).

        Args:
            v: cotangent of the predictions; or the predictions, where `external_grad` is given.
            external_grad: cotangent of the predictions.

        Raises:
            NotDifferentiableError: none of the variables takes part in the predictions.
        """
        predictions, cotangent = (self.predictions, v) if external_grad is None else (v, external_grad)
        variables = self._trainable_parameters()
        gradients = self.tape.gradient(predictions, variables, output_gradients=cotangent)
        if all(g is None for g in gradients):
            raise NotDifferentiableError(
                f"{FORWARD} of {type(self).__name__} returned predictions that its tape has not recorded from the variables "
                f"that theta is loaded into; compute all of them within the tape, with self.tensorflow_model, and without "
                f".numpy() or tf.stop_gradient on the way"
            )
        return _joined(variables, gradients)

    # Keras copies and pickles models by their configs, apart from what else refers to their layers.

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = memo[id(self)] = type(self).__new__(type(self))
        state = super().__getstate__()
        if _is_keras(self.native_model):
            from gradbridge_keras.copies import copied_with

            twin.__dict__.update(copied_with(self.native_model, state, memo))
        else:
            twin.__dict__.update(copy.deepcopy(state, memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if not _is_keras(self.native_model):
            return state
        places = {id(x): _Place(kind, i) for kind, i, x in _parts(self.native_model)}
        rest = {k: v for k, v in state.items() if k != "native_model"}
        return {"native_model": self.native_model, **_swapped(rest, lambda x: places.get(id(x), x))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if _is_keras(state["native_model"]):
            parts = {(kind, i): x for kind, i, x in _parts(state["native_model"])}
            state = _swapped(state, lambda x: parts[x] if isinstance(x, _Place) else x)
        self.__dict__.update(state)


def _joined(variables: list[Any], gradients: list[Any]) -> Array:
    """Gradients of variables in one array; zeros for those that have none."""
    import tensorflow as tf

    return np.concatenate(
        [
            np.zeros(math.prod(v.shape)) if g is None else tf.convert_to_tensor(g).numpy().ravel()
            for v, g in zip(variables, gradients)
        ]
    )


class _Place(NamedTuple):
    """Which part of the Keras model an attribute refers to."""

    kind: str
    index: int


def _parts(model: Any) -> Iterator[tuple[str, int, Any]]:
    for kind, parts in (("layer", model._flatten_layers()), ("variable", model.variables)):
        for index, part in enumerate(parts):
            yield kind, index, part


def _swapped(value: Any, swap: Any) -> Any:
    """The same containers, with other things in them."""
    other = swap(value)
    if other is not value:
        return other
    if type(value) is dict:
        return {key: _swapped(item, swap) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_swapped(item, swap) for item in value)
    return value


def _is_keras(model: Any) -> bool:
    return hasattr(model, "_flatten_layers") and hasattr(model, "variables")


def _numpy_dtype(value: Any) -> Any:
    """The dtype of a tensor, variable or array as NumPy takes it."""
    dtype = value.dtype
    return getattr(dtype, "as_numpy_dtype", dtype)
