"""tf.Modules as guests, computed on private copies whose variables stand for tensors."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gradbridge.call_spec import CallSpec, argument_names
from gradbridge.closures import surroundings
from gradbridge.errors import GuestError, NotDifferentiableError, UnknownModelError
from gradbridge.inspection import Stranger
from gradbridge.layout import Array, ParameterLayout
from gradbridge.options import GuestOptions
from gradbridge.outside import names_in
from gradbridge_tensorflow.functions import TensorFlowModel, called
from gradbridge_tensorflow.isolation import eagerly
from gradbridge_tensorflow.slots import filled, slot
from gradbridge_tensorflow.tensors import compute_device, floating_dtype, to_array


class ModuleModel(TensorFlowModel):
    """A callable ``tf.Module``: its trainable variables are the weights, all else is kept as it was.

    Whether the module has a train mode is seen from its signature: ``training`` or
    ``is_training`` is passed if it is there. In train mode the variables that it assigns move, in
    the bridge; in eval mode they stay.
    """

    def __init__(self, module: tf.Module, options: GuestOptions) -> None:
        _refuse_unready(module)
        self._module = module  # the user's own: read, never written to
        self._own = list(module.trainable_variables)
        names = _names(module)
        self.layout = ParameterLayout(
            tuple(names[id(v)] for v in self._own),
            tuple(tuple(int(n) for n in v.shape) for v in self._own),
            tuple(v.dtype.name for v in self._own),
        )
        self.label, self.device = type(module).__name__, compute_device(options.device)
        self._computes(module, floating_dtype(options.dtype))
        self.argument_names = argument_names(_body(module))
        train = options.mode == "train"
        self._mode = dict.fromkeys(_mode_arguments(module), train)
        self.draws = self.moves = train and bool(self._rest)

    def _computes(self, module: tf.Module, dtype: tf.DType | None) -> None:
        """Compute what a module computes, in a dtype; None keeps its own."""
        self._asked, (self._template, own, others) = dtype, _duplicated(module, dtype)
        floating = next((v.dtype for v in (*own, *others) if v.dtype.is_floating), None)
        self.dtypes, self.dtype = [v.dtype for v in own], dtype or floating
        self._places, self._rest = (own, others), [v.read_value() for v in others]
        # Of the copy: what a user sets on the module later is not the bridge's.
        self.surroundings = surroundings(_body(self._template))

    def in_dtype(self, name: str) -> ModuleModel:
        dtype, (own, others) = floating_dtype(name), self._places
        if all(v.dtype == dtype for v in (*own, *others) if v.dtype.is_floating):
            return self
        twin = copy.copy(self)
        eagerly(None, lambda: twin._computes(self._template, dtype))
        return twin

    def in_eval_mode(self) -> ModuleModel:
        twin = copy.copy(self)
        twin._mode = dict.fromkeys(self._mode, False)
        twin.shares_state, twin.draws, twin.moves = self.moves, False, False
        return twin

    def stranger(self, native: Any) -> Stranger:
        for name, v in zip(self.layout.names, self._own):
            if v is native:
                return Stranger(f"the variable {name!r} of {self.label}, by way of a closure", True)
        return super().stranger(native)

    def weights(self) -> Sequence[Any]:
        # Read from the user's module as it is now.
        return eagerly(None, lambda: [to_array(v.read_value()) for v in self._own])

    def native(self, weights: Sequence[Array]) -> tf.Module:
        # In the dtype of the computation, with the bridge's own moving state.
        return eagerly(None, lambda: self._twin(weights))

    def extras(self, noise: int) -> Sequence[Any]:
        # The variables that are not weights: none in eval mode, where they are compiled in.
        return self._rest if self.moves or self.shares_state else ()

    def call(
        self, weights: Sequence[Any], inputs: list[Any], spec: CallSpec, extras: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        args, kwargs = spec.bind(inputs)
        own, others = self._places
        # A fresh copy, because a tf.function within the module remembers the tensors of the trace before.
        with tf.init_scope():
            slots = [slot(v, v.dtype) for v in (*own, *others)]
            memo = {id(v): s for v, s in zip((*own, *others), slots)}
            twin = copy.deepcopy(self._template, memo)
        values = {id(s): t for s, t in zip(slots, (*weights, *(extras or self._rest)))}
        with filled(values):
            output = called(_body(twin), args, {**self._mode, **kwargs})
            output = tf.nest.map_structure(
                lambda x: tf.convert_to_tensor(x) if isinstance(x, tf.Variable) else x, output
            )
        self._refuse_strays()
        return output, [values[id(s)] for s in slots[len(own) :]] if self.moves else ()

    # -- private ------------------------------------------------------------------------------

    def _twin(self, weights: Sequence[Array]) -> tf.Module:
        twin, own, others = _duplicated(self._module, self._asked)
        for v, value in zip((*own, *others), (*weights, *self._rest)):
            v.assign(tf.cast(value, v.dtype))
        return twin

    def _refuse_strays(self) -> None:
        """Refuse code that reads the user's variables past the module: a closure over them."""
        outside = [outer for outer, _ in tf.compat.v1.get_default_graph().captures]
        for name, v in zip(self.layout.names, self._own):
            if any(outer is v.handle for outer in outside):
                raise GuestError(
                    f"{self.label} reads its variable {name!r} through a closure (a lambda or a tf.function "
                    f"made in its constructor), where a bridge cannot put new parameters; make that a method"
                )


def _duplicated(
    module: tf.Module, dtype: tf.DType | None
) -> tuple[tf.Module, list[tf.Variable], list[tf.Variable]]:
    """A copy of a module in a dtype, its trainable variables, and the others.

    Raises:
        GuestError: it cannot be copied.
    """

    def placed(v: tf.Variable) -> tf.Variable:
        value = v.read_value()
        if dtype is not None and v.dtype.is_floating:
            value = tf.cast(value, dtype)
        return tf.Variable(value, trainable=v.trainable, name=v.name.split(":")[0], shape=v.shape)

    own = {id(v): placed(v) for v in module.trainable_variables}
    others = {id(v): placed(v) for v in module.variables if id(v) not in own}
    memo: dict[int, Any] = {**own, **others}
    if dtype is not None:
        constants = module._flatten(predicate=lambda x: isinstance(x, tf.Tensor) and x.dtype.is_floating)
        memo |= {id(t): tf.cast(t, dtype) for t in constants}
        arrays = module._flatten(predicate=lambda x: isinstance(x, np.ndarray) and x.dtype.kind == "f")
        memo |= {id(a): a.astype(dtype.as_numpy_dtype) for a in arrays}
    try:
        twin = copy.deepcopy(module, memo)
    except Exception as error:
        raise GuestError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}), and a bridge works on "
            f"its own copy so that yours stays as it is; keep what cannot be copied (locks, files, loaders) "
            f"outside the module"
        ) from error
    return twin, list(own.values()), list(others.values())


def _body(module: tf.Module) -> Any:
    """The module's code itself, when its `__call__` is a tf.function."""
    inner = getattr(type(module).__call__, "python_function", None)
    return module if inner is None else inner.__get__(module)


def _names(module: tf.Module) -> dict[int, str]:
    """{id of variable: path of attributes}, the shortest to each."""
    paths = module._flatten(predicate=lambda x: isinstance(x, tf.Variable), with_path=True)
    return {id(v): "/".join(map(str, path)) for path, v in reversed(list(paths))}


def _mode_arguments(module: tf.Module) -> list[str]:
    try:
        parameters = inspect.signature(_body(module)).parameters
    except (TypeError, ValueError):
        return []
    return [name for name in ("training", "is_training") if name in parameters]


def _makes_variables(module: tf.Module) -> bool:
    """Whether the code that a call runs through names `tf.Variable`, as far as methods of the module go."""
    methods = {
        name: inspect.unwrap(method)
        for cls in type(module).__mro__
        if cls not in tf.Module.__mro__
        for name, method in vars(cls).items()
        if callable(method)
    }
    todo, reached = ["__call__"], {"__init__"}
    while todo:
        name = todo.pop()
        code = getattr(methods.get(name), "__code__", None)
        if name in reached or code is None:
            continue
        reached.add(name)
        names = names_in(code)
        if "Variable" in names:
            return True
        todo += names
    return False


def _refuse_unready(module: tf.Module) -> None:
    name = type(module).__name__
    if not callable(module):
        raise UnknownModelError(
            f"{name} is a tf.Module without __call__; give it one, or bridge the function that you mean with params=…"
        )
    keras = sys.modules.get("keras")
    if keras is not None:
        layers = list(module._flatten(predicate=lambda x: isinstance(x, keras.layers.Layer)))
        if layers:
            raise UnknownModelError(
                f"{name} is a tf.Module that holds the Keras layer {layers[0].name!r}, and a tf.Module does not "
                f"find the variables of Keras 3; make it a keras.Model"
            )
    for part in (module, *module.submodules):
        if not part.variables and _makes_variables(part):
            raise UnknownModelError(
                f"{type(part).__name__} makes its variables when it is called, and has none yet; call it once on "
                f"example inputs before you bridge it, so that the bridge knows its parameters"
            )
    for v in module.trainable_variables:
        if not v.dtype.is_floating:
            raise NotDifferentiableError(
                f"variable {v.name!r} of {name} is trainable and has dtype {v.dtype.name}; parameters are real "
                f"floating arrays: make it trainable=False, or keep its parts as real variables"
            )
