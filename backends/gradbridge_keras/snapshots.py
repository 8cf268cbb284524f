"""A Keras model as it was when it was bridged, called in its own dtype or another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import dtypes

from gradbridge import trees
from gradbridge.call_spec import CallSpec
from gradbridge.errors import GuestError, NotDifferentiableError, UnknownModelError
from gradbridge.forks import fork_safe_lock
from gradbridge.inspection import Stranger
from gradbridge.options import floating_name
from gradbridge_keras.copies import compute_dtypes, copied, is_in_dtype, refuse_quantized, value_of
from gradbridge_keras.variables import Roles, Scope, called

_lock = fork_safe_lock()
_NARROWED: dict[str, str] = getattr(dtypes, "BIT64_TO_BIT32_DTYPE", {})


class Snapshot:
    """A copy of a user's model, of which each call gets a copy in turn: nothing stays of a call.

    Args:
        model: the user's own. It is read, never called or written to.

    Attributes:
        name: of the model.
        roles: of its variables.
        variables: the user's, by their roles.
        as_it_was: the copy; its variables have no values of their own.
        fixed: values of those that are not trained, state first, then seeds.
        dtype: what calls compute in; None for the model's own.
        foreign: {path: trainable variable} that calls read, and that are none of the model's.

    Raises:
        UnknownModelError: the model is not built.
        NotDifferentiableError: a variable that would be trained is not real.
    """

    def __init__(self, model: Any) -> None:
        _refuse_unready(model)
        self._model, self.name, self.roles = model, model.name, Roles(model)
        self.as_it_was = copied(model, detached=True)
        self._own_floatx = keras.config.floatx()
        self.variables = self.roles.of(model)
        self.fixed = [value_of(v) for v in self.variables[self.roles.trained :]]
        self.dtype: str | None = None
        self.foreign: dict[str, Any] = {}

    def in_dtype(self, name: str | None) -> Snapshot:
        """This model, computing in another floating dtype.

        Raises:
            UnknownModelError: it has none.
        """
        name = floating_name(name)
        if name is not None and is_in_dtype(self.as_it_was, name):
            name = None
        if name == self.dtype:
            return self
        twin = copy.copy(self)
        twin.dtype, twin.foreign = name, {}
        if name is not None:
            refuse_quantized(self.as_it_was)
        return twin

    def twin(self) -> Any:
        """A copy that was never called since, in the dtype of the computation; its variables have no values."""
        return copied(self.as_it_was, self.dtype)

    def native(self, values: Sequence[Any]) -> Any:
        """A model for the user that holds these values; its seeds are the model's own.

        Args:
            values: of the trained variables, then state, then seeds.
        """
        own = self.roles.of(self.as_it_was)
        given = {id(v): value for v, value in zip(own, values, strict=True)}
        return copied(self.as_it_was, self.dtype, values=given)

    def call(
        self,
        model: Any,
        values: Sequence[Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        training: bool = False,
        **how: Callable[..., Any],
    ) -> tuple[Any, list[Any]]:
        """Call a twin with tensors for its variables.

        Args:
            model: a twin.
            values: of its variables, by their roles.
            args, kwargs: inputs.
            training: whether in train mode.
            **how: `call` of `variables.called`.

        Returns:
            (outputs, values of all its variables after the call).
        """
        variables = self.roles.of(model)
        # What leads to the user's own variables by a global name gets the tensors of the call, too.
        aliases = {id(v): value for v, value in zip(self.variables, values)}
        with _settings(self.dtype or self._own_floatx):
            scope = Scope(zip(variables, values, strict=True), aliases)
            output = called(model, scope, args, kwargs, training, **how)
        self.foreign.update((v.path, v) for v in scope.foreign.values() if v.trainable)
        return output, [scope.get_current_value(v) for v in variables]

    def compare(
        self, spec: CallSpec, inputs: Sequence[Any], tensor: Callable[[Any, str], Any], **how: Any
    ) -> None:
        """Compare calls in the dtype of the computation and in the model's own.

        Args:
            spec: of a call.
            inputs: its leaves.
            tensor: (array, name of a floating dtype) ↦ native.
            **how: `call` of `variables.called`.

        Raises:
            GuestError: they are not the same function.
        """
        own = copy.copy(self)
        own.dtype = None
        values = [v._value for v in self.variables[: self.roles.trained]]
        values += list(map(keras.ops.convert_to_tensor, self.fixed))
        results = []
        for snapshot in (own, own, self):
            dtype = snapshot.dtype or _floating(self.variables) or self._own_floatx
            leaves = [tensor(x, dtype) if hasattr(x, "__dlpack__") else x for x in inputs]
            if len(results) == 1 and self.roles.seeds:  # other noise, if there is any in eval mode
                values = [*values[: -self.roles.seeds], *(v + 1 for v in values[-self.roles.seeds :])]
            twin, arguments = snapshot.twin(), spec.bind(leaves)
            try:
                output, _ = snapshot.call(twin, values, *arguments, **how)
            except Exception:
                if snapshot is self:
                    raise
                return  # it computes in graphs alone, or not at all in its own dtype: there is nothing to compare
            results.append([np.asarray(keras.ops.convert_to_numpy(x)) for x in trees.flatten(output)[0]])
        narrow = bool(compute_dtypes(self.as_it_was) & {"float16", "bfloat16"})
        tolerance = 0.1 if narrow or self.dtype in ("float16", "bfloat16") else 1e-3
        if _agree(*results[:2], tolerance) and not _agree(*results[1:], tolerance):
            raise GuestError(
                f"{self.name} in {self.dtype} does not compute what it computes in its own dtype, so something in it "
                f"depends on the dtype; leave dtype= out, or build the model in {self.dtype} with "
                f"keras.config.set_dtype_policy"
            )

    def strangers(self) -> list[Stranger]:
        """The trainable variables that calls have read, and that Keras does not know of the model."""
        return [
            Stranger(f"the variable {path!r} of a layer or list that {self.name} does not track", False)
            for path in self.foreign
        ]

    def __copy__(self) -> Snapshot:
        # Not by way of a pickle: it shares the model.
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    # Pickled as Keras saves models; plain attributes, which a config may leave out, go along.

    def __getstate__(self) -> dict[str, Any]:
        values = [*map(value_of, self.variables[: self.roles.trained]), *self.fixed]
        own = {id(v): value for v, value in zip(self.roles.of(self.as_it_was), values, strict=True)}
        model = copied(self.as_it_was, values=own)
        state = {"model": model, "attributes": [_plain(layer) for layer in model._flatten_layers()]}
        return {**state, "fixed": self.fixed, "dtype": self.dtype, "floatx": self._own_floatx}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for layer, attributes in zip(state["model"]._flatten_layers(), state["attributes"], strict=True):
            for name, value in attributes.items():
                if getattr(layer, name, None) != value:
                    setattr(layer, name, value)
        self.__init__(state["model"])  # type: ignore[misc]
        self.fixed, self.dtype, self._own_floatx = state["fixed"], state["dtype"], state["floatx"]


def _plain(layer: Any) -> dict[str, Any]:
    """The numbers, texts and flags that a layer has as attributes of its own."""
    kinds = (bool, int, float, complex, str, bytes)
    return {k: v for k, v in vars(layer).items() if type(v) in kinds and not k.startswith("_")}


def _refuse_unready(model: Any) -> None:
    if not model.built:
        raise UnknownModelError(
            f"{model.name} ({type(model).__name__}) has no variables yet, it is not built; call it once on an "
            f"example input, or model.build(input_shape), before bridging it"
        )
    for v in model.trainable_variables:
        if not keras.backend.is_float_dtype(v.dtype):
            raise NotDifferentiableError(
                f"variable {v.path!r} of {model.name} is trainable and has dtype {v.dtype}; parameters are "
                f"real floating arrays: make it trainable=False, or keep its parts as real variables"
            )


def _floating(variables: Sequence[Any]) -> str | None:
    return next((v.dtype for v in variables if keras.backend.is_float_dtype(v.dtype)), None)


def _agree(ours: Sequence[Any], theirs: Sequence[Any], tolerance: float) -> bool:
    """Whether two models computed the same, to the rounding of the coarser one."""
    if len(ours) != len(theirs):
        return False
    for a, b in zip(ours, theirs):
        if a.shape != b.shape:
            return False
        if not keras.backend.is_float_dtype(a.dtype):
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(a) & np.isfinite(b)
        scale = np.max(np.abs(a[finite]), initial=0.0)
        if np.any(np.abs(a - b)[finite] > tolerance * (1.0 + scale)):
            return False
    return True


@contextmanager
def _settings(floatx: str) -> Iterator[None]:
    """Keras' settings for a call; but for the last they are the process's, so under a lock, and all are put back.

    The default float is what it was when the model was bridged, or that of the copy. Float64 remains
    float64: on JAX and torch, Keras' own promotion brings it down to float32. And errors come as they
    were raised: Keras makes others of them, which frameworks do not know as theirs any more.
    """
    filters = keras.config.is_traceback_filtering_enabled()
    with _lock:
        before, narrowed = keras.config.floatx(), dict(_NARROWED)
        if before != floatx:
            keras.config.set_floatx(floatx)
        if floatx == "float64":
            _NARROWED.update({wide: wide for wide in ("float64", "complex128")})
        if filters:
            keras.config.disable_traceback_filtering()
        try:
            yield
        finally:
            if filters:
                keras.config.enable_traceback_filtering()
            _NARROWED.update(narrowed)
            if before != floatx:
                keras.config.set_floatx(before)
