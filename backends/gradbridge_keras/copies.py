"""Copies of Keras models in which everything that hangs on them follows, in their own dtype or another.

Keras copies a model by its config: what was adapted, set later, or written as a lambda is lost on the
way, and one that computes in another dtype must be made anew. So a copy is made here of the objects
themselves: of layers, variables, the graph of a functional model, of plain attributes, and of functions
that refer to any of these. With another dtype, every dtype policy and every floating constant among
them is replaced. What cannot be copied, or belongs to the framework, is shared.
"""

from __future__ import annotations

import builtins
import copy
import copyreg
import functools
import inspect
import re
import types
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from gradbridge.errors import UnknownModelError
from gradbridge.outside import names_in

FLOATS = ("float16", "bfloat16", "float32", "float64", "mixed_float16", "mixed_bfloat16")

# Immutable, or known by their identity.
_SHARED = (
    type(None), bool, int, float, complex, str, bytes, range, type(Ellipsis), type, types.ModuleType,
    types.BuiltinFunctionType, types.CodeType, property, weakref.ProxyType, inspect.Signature, np.dtype,
)  # fmt: skip
_ATOMS = frozenset((type(None), bool, int, float, complex, str, bytes))
_FRAMEWORKS = ("tensorflow", "jax", "jaxlib", "torch", "numpy")
# What `id` gave: numbers above, and digits that a name begins with, as the names of a graph's nodes do.
_ADDRESSES, _ADDRESS = 1 << 20, re.compile(r"\A\d{7,}")
# How a model is trained, and what is compiled for that, stays with the original.
_TRAINING = dict.fromkeys(
    ("train_function", "test_function", "predict_function", "optimizer", "loss", "_compile_loss",
     "_compile_metrics", "_compile_config", "_compiled_trainable_state", "_loss_tracker", "_jax_state")
) | {"compiled": False}  # fmt: skip


def is_in_dtype(model: Any, dtype: str) -> bool:
    """Whether every layer of a model keeps its variables and computes in a dtype."""
    return all(
        layer.compute_dtype == layer.variable_dtype == dtype
        or not keras.backend.is_float_dtype(layer.compute_dtype)
        for layer in _layers(model)
    )


def refuse_quantized(model: Any) -> None:
    """Refuse a model that has one precision alone.

    Raises:
        UnknownModelError: it is quantized, and so has no other dtype.
    """
    for layer in _layers(model):
        if layer.quantization_mode is not None:
            raise UnknownModelError(
                f"layer {layer.name!r} is quantized ({layer.dtype_policy.name}), so it has no other precision; "
                f"bridge the model as it was before, or with dtype='model'"
            )


def compute_dtypes(model: Any) -> set[str]:
    """What the layers of a model compute in."""
    return {layer.compute_dtype for layer in _layers(model)}


def copied(
    model: Any, dtype: str | None = None, *, values: dict[int, Any] | None = None, detached: bool = False
) -> Any:
    """A new model of the same class, attributes and values. It is not compiled for training.

    Args:
        model: the user's, which is only read.
        dtype: of the copy; None keeps the model's own.
        values: {id of a variable: its value in the copy}; all variables get values of their own then.
            Without, the copy is for calls in which tensors stand for its variables, and shares the rest.
        detached: whether variables that are none of ``model.variables`` get values of their own.
    """
    return _Copier(model, dtype, values, detached).copy()


def copied_with(model: Any, holder: Any, memo: dict[int, Any]) -> Any:
    """A copy of something that refers to a model or its parts, and in the copy to those of a copy; `copy.deepcopy`'s memo."""
    copier = _Copier(model, None, {}, True)
    copier._memo = memo
    return copier.copy(holder)


def value_of(variable: Any) -> np.ndarray[Any, Any]:
    """The value that a variable has by itself, whatever stands for it at present: a new array."""
    value = variable._value
    value = value.read_value() if hasattr(value, "read_value") else value  # a tf.Variable warns of NumPy's 2
    return np.array(keras.ops.convert_to_numpy(value))


class _Copier:
    """One copy in the making. Objects are made at once and filled later, so depth does not matter."""

    def __init__(self, model: Any, dtype: str | None, values: dict[int, Any] | None, detached: bool) -> None:
        self._model, self._dtype, self._values, self._detached = model, dtype, values, detached
        self._ours = {id(x) for x in (*_layers(model), *model.variables)}
        self._operations = {id(x) for layer in _layers(model) for x in getattr(layer, "_operations", [layer])}
        self._operations |= self._ours
        #: {id of an original: its copy}, as `copy.deepcopy` keeps it.
        self._memo: dict[int, Any] = {}
        self._fillings: list[Callable[[], None]] = []
        self._hashed: list[Callable[[], None]] = []  # after what is hashed has its attributes
        self._by_id: list[Any] = []  # sets and dicts of what `id` gave

    def copy(self, holder: Any = None) -> Any:
        # Variables first: what else holds their values gets the new ones.
        for variable in self._model.variables:
            self._of(variable)
        twin = self._of(self._model if holder is None else holder)
        while self._fillings or self._hashed:
            (self._fillings or self._hashed).pop()()
        for container in self._by_id:
            self._rekey(container)
        return twin

    def _now(self, key: Any) -> Any:
        """What `id` gives of the copy, where a key is, or begins with, what it gave of an original."""
        if type(key) is str:
            return _ADDRESS.sub(lambda digits: str(self._now(int(digits[0]))), key)
        return id(self._memo[key]) if type(key) is int and key in self._memo else key

    def _rekey(self, container: Any) -> None:
        if isinstance(container, set):
            items = set(map(self._now, container))
            set.clear(container)
            set.update(container, items)
        else:
            pairs = [(self._now(key), value) for key, value in container.items()]
            kind = OrderedDict if isinstance(container, OrderedDict) else dict
            kind.clear(container)
            for key, value in pairs:
                kind.__setitem__(container, key, value)

    def _of(self, x: Any) -> Any:
        """The copy of anything."""
        cls = type(x)
        if cls in _ATOMS:
            return x
        known = self._memo.get(id(x), self._memo)
        if known is not self._memo:
            return known
        if isinstance(x, _SHARED):
            return x
        twin = self._new(x, cls)
        if twin is not x:
            self._memo[id(x)] = twin
        return twin

    def _new(self, x: Any, cls: type) -> Any:
        if isinstance(x, keras.Variable):
            return self._variable(x, cls)
        if isinstance(x, keras.DTypePolicy) and not hasattr(x, "default_policy"):
            return self._policy(x)
        if keras.backend.is_keras_tensor(x):
            return self._instance(x, cls)
        if isinstance(x, np.ndarray | np.generic) or keras.ops.is_tensor(x):
            return self._array(x)
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, types.MethodType):
            return types.MethodType(x.__func__, self._of(x.__self__))
        if isinstance(x, functools.partial):
            return cls(
                self._of(x.func), *map(self._of, x.args), **{k: self._of(v) for k, v in x.keywords.items()}
            )
        if isinstance(x, weakref.ReferenceType):
            return x if x() is None else weakref.ref(self._of(x()))
        if hasattr(x, "python_function") and hasattr(x, "_clone"):
            # A tf.function: what it has traced belongs to the original.
            return x._clone(self._of(x.python_function))
        if _root(cls) == "tensorflow" and isinstance(x, list | dict | tuple):
            # What TensorFlow tracks as attributes of its own; the plain one does for Keras.
            return self._of(x.__wrapped__) if hasattr(x, "__wrapped__") else self._container(x, list)
        if isinstance(x, tuple):
            items = [self._of(item) for item in x]
            same = all(a is b for a, b in zip(items, x))
            return x if same else tuple.__new__(cls, items)  # type: ignore[arg-type]
        if isinstance(x, list | dict | set):
            return self._container(x, cls)
        if hasattr(cls, "__del__") or (_root(cls) in ("tensorflow", "jax", "jaxlib")):
            return x  # it owns something that a copy would free once more, or is the framework's
        if _is_plain(cls):
            return self._instance(x, cls)
        count = len(self._memo)
        try:
            return copy.deepcopy(x, self._memo)
        except Exception:  # the class's own code: locks, files, handles cannot be copied, and are shared
            for key in list(self._memo)[count:]:
                del self._memo[key]  # parts of it, which may be half filled
            return x

    # -- each kind ----------------------------------------------------------------------------

    def _variable(self, x: Any, cls: type) -> Any:
        twin = object.__new__(cls)
        self._memo[id(x)] = twin
        self._fill(twin, x, ("_value",))
        if x._value is None or (self._values is None and not (self._detached and id(x) not in self._ours)):
            twin._value = x._value
            return twin
        value = (self._values or {}).get(id(x))
        twin._initialize(keras.ops.convert_to_tensor(value_of(x) if value is None else value, twin._dtype))
        self._memo[id(x._value)] = twin._value  # for what else holds it, as a torch.nn.Module does
        return twin

    def _policy(self, policy: Any) -> Any:
        floating = keras.backend.is_float_dtype(policy.compute_dtype)
        return keras.DTypePolicy(self._dtype) if self._dtype is not None and floating else policy

    def _array(self, x: Any) -> Any:
        name = keras.backend.standardize_dtype(x.dtype) if _has_dtype(x) else ""
        if self._dtype is not None and name in FLOATS and name != self._dtype:
            if not isinstance(x, np.ndarray | np.generic):
                return keras.ops.cast(x, self._dtype)
            return x.astype(self._dtype) if self._dtype != "bfloat16" else x
        return x.copy() if isinstance(x, np.ndarray) else x

    def _function(self, x: types.FunctionType) -> Any:
        """A function whose closure, defaults and globals lead to the copies."""
        if _root(x) in _FRAMEWORKS:
            return x
        named = {
            name: self._of(x.__globals__[name])
            for name in names_in(x.__code__)
            if id(x.__globals__.get(name)) in self._ours
        }
        if not (x.__closure__ or x.__defaults__ or x.__kwdefaults__ or named):
            return x
        cells = tuple(types.CellType() for _ in x.__closure__ or ())
        globals_ = {"__builtins__": builtins, **x.__globals__, **named} if named else x.__globals__
        twin = types.FunctionType(x.__code__, globals_, x.__name__, None, cells)
        self._memo[id(x)] = twin

        def fill() -> None:
            for cell, old in zip(cells, x.__closure__ or ()):
                if not _is_empty(old):
                    cell.cell_contents = self._of(old.cell_contents)
            twin.__defaults__ = self._of(x.__defaults__)
            twin.__kwdefaults__ = x.__kwdefaults__ and {k: self._of(v) for k, v in x.__kwdefaults__.items()}
            twin.__dict__.update({k: self._of(v) for k, v in vars(x).items()})
            twin.__qualname__, twin.__module__, twin.__doc__ = x.__qualname__, x.__module__, x.__doc__
            twin.__annotations__ = x.__annotations__

        self._fillings.append(fill)
        return twin

    def _container(self, x: Any, cls: type) -> Any:
        twin: Any = cls.__new__(cls)
        self._memo[id(x)] = twin
        if issubclass(cls, list):
            self._fillings.append(lambda: list.extend(twin, x if _all_atoms(x) else map(self._of, x)))
        elif issubclass(cls, set):
            self._hashed.append(lambda: set.update(twin, x if _all_atoms(x) else map(self._of, x)))
        else:
            put: Any = OrderedDict.__setitem__ if issubclass(cls, OrderedDict) else dict.__setitem__

            def fill() -> None:
                for key, value in x.items():
                    put(twin, self._of(key), self._value(key, value))

            self._hashed.append(fill)
            if issubclass(cls, defaultdict):
                twin.default_factory = self._of(x.default_factory)
        if not issubclass(cls, list) and any(map(_is_by_id, x)):
            self._by_id.append(twin)
        if hasattr(twin, "__dict__"):
            self._fillings.append(lambda: self._fill(twin, x))
        return twin

    def _instance(self, x: Any, cls: type) -> Any:
        twin = object.__new__(cls)
        self._memo[id(x)] = twin
        self._fillings.append(lambda: self._fill(twin, x))
        return twin

    def _fill(self, twin: Any, x: Any, without: tuple[str, ...] = ()) -> None:
        """Copy the attributes of an object, past any `__setattr__`."""
        for name in copyreg._slotnames(type(x)):  # type: ignore[attr-defined]
            if name not in without and hasattr(x, name):
                object.__setattr__(twin, name, self._value(name, getattr(x, name)))
        for name, value in vars(x).items() if hasattr(x, "__dict__") else ():
            if name in without:
                continue
            if name == "_outbound_nodes":
                # Not those that lead out of this model: a layer may be a part of others.
                value = [node for node in value if id(node.operation) in self._operations]
            elif name in _TRAINING and isinstance(x, keras.Model):
                value = _TRAINING[name]
            twin.__dict__[name] = self._value(name, value)

    def _value(self, name: Any, value: Any) -> Any:
        if type(value) is str and self._dtype is not None and value in FLOATS:
            return self._dtype if isinstance(name, str) and name.endswith("dtype") else value
        return self._of(value)


def _layers(model: Any) -> list[Any]:
    """The model and all layers within it, parents first."""
    return list(model._flatten_layers(include_self=True, recursive=True))


def _root(x: Any) -> str:
    return str(getattr(x, "__module__", "")).partition(".")[0]


def _is_plain(cls: type) -> bool:
    """Whether an object is what its attributes are: Keras' own saving aside, no pickling is its own."""
    theirs = (object.__reduce__, keras.Layer.__reduce__)
    try:
        object.__new__(cls)
    except TypeError:  # written in C, with more to it: a lock
        return False
    return (
        cls.__reduce_ex__ is object.__reduce_ex__
        and cls.__reduce__ in theirs
        and not hasattr(cls, "__deepcopy__")
    )


def _is_empty(cell: types.CellType) -> bool:
    return cell == types.CellType()


def _is_by_id(key: Any) -> bool:
    return _ADDRESS.match(key) is not None if type(key) is str else type(key) is int and key > _ADDRESSES


def _has_dtype(x: Any) -> bool:
    return not isinstance(x, np.ndarray | np.generic) or x.dtype.kind in "fV"


def _all_atoms(items: Any) -> bool:
    return _ATOMS.issuperset(map(type, items))
