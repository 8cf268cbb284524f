"""HIPS autograd as a guest: functions of ``autograd.numpy``, for other hosts to lift.

Any number of threads may evaluate and pull back at once, see `gradbridge_autograd.traces`. Only a
function that calls ``autograd.grad`` itself opens autograd's own traces, which are numbered for the
whole process: such a function should run in one thread at a time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
import optree
from autograd.builtins import DictBox, SequenceBox
from autograd.tracer import getval, isbox

from gradbridge import trees
from gradbridge.borders import INEXACT, host_dtype
from gradbridge.errors import (
    GradbridgeError,
    GuestError,
    NotDifferentiableError,
    OptionError,
    OutputError,
    UnknownModelError,
)
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter, Array, GuestOptions, Signature, refuse_unknown_options
from gradbridge.signatures import argument_names
from gradbridge_autograd.traces import Recording

_DTYPES = ("float64", "float32", "float16")


def adapt(model: Callable[..., Any], options: GuestOptions) -> FunctionAdapter:
    """Make an adapter of a function of ``autograd.numpy``: the guest half of backend ``autograd``.

    Args:
        model: ``fn(*inputs)``, or ``fn(parameter tree, *inputs)`` if `options.params` is given.
        options: `dtype` is what floating inputs and parameters are cast to. There are none
            beyond the common ones.

    Raises:
        OptionError: an option that it does not have, an unusable dtype, or a device.
        UnknownModelError: the model is not callable.
    """
    refuse_unknown_options("autograd", options.extra, ())
    if not callable(model):
        raise UnknownModelError(f"backend 'autograd' bridges functions, got a {type(model).__name__}")
    if options.device is not None:
        raise OptionError(
            f"backend 'autograd' computes where NumPy does and has no device, got {options.device!r}"
        )
    if options.dtype is not None and options.dtype not in _DTYPES:
        raise OptionError(f"dtype must be one of {', '.join(_DTYPES)}, got {options.dtype!r}")
    return FunctionAdapter(model, options)


class BoxAdapter(Adapter):
    """A function of arrays that autograd may box.

    Args:
        label: what errors call it.
        layout: of the parameters.
        dtypes: of each parameter in the computation.
        dtype: of floating inputs in the computation; None keeps theirs.
    """

    takes_complex = True

    def __init__(
        self, label: str, layout: ParameterLayout, dtypes: Sequence[Any], dtype: np.dtype[Any] | None
    ) -> None:
        self.label = label
        self.layout = layout
        self._dtypes = tuple(dtypes)
        self._dtype = dtype

    @abstractmethod
    def compute(self, pieces: Sequence[Any], inputs: list[Any], structure: optree.PyTreeSpec) -> Any:
        """Outputs, a pytree of arrays or boxes, from one array per parameter and the input leaves."""

    def update(self, params: Array) -> list[Array]:
        """See `Adapter.update`. Copies, because the caller may change its vector in place."""
        return [
            params[where].astype(dtype).reshape(shape)
            for where, dtype, shape in zip(self.layout.slices, self._dtypes, self.layout.shapes)
        ]

    def forward(
        self, loaded: list[Array], inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """See `Adapter.forward`.

        Raises:
            NotDifferentiableError: a primitive on the way has no VJP.
        """
        leaves = [self._own(index, leaf) for index, leaf in enumerate(inputs)]
        form: list[Any] = []

        def function(boxes: list[Any]) -> list[Any]:
            pieces, filled = _substituted(loaded, leaves, wrt, boxes)
            output = self._computed(pieces, filled, signature.structure)
            found, structure = _opened(output, self.label)
            form.append(structure)
            return found

        recording = Recording(function, _values(loaded, leaves, wrt))
        outputs = [np.array(output) for output in recording.outputs]
        for index, output in enumerate(outputs):
            if output.dtype.kind not in "fiubc":
                raise OutputError(
                    f"output {index} of {self.label} has dtype {output.dtype}; return arrays of numbers, made with "
                    f"autograd.numpy rather than numpy"
                )
        structure = form[0]
        tree = outputs[0] if structure is None else trees.unflatten(structure, outputs)
        if not wrt:
            return tree, None
        return tree, _Residuals(recording, [o.dtype for o in outputs], loaded, leaves, wrt)

    def backward(
        self, residuals: _Residuals, cotangents: Sequence[Array], wrt: tuple[int, ...]
    ) -> list[Array]:
        """See `Adapter.backward`. The graph is walked once for all positions; nothing accumulates.

        Raises:
            NotDifferentiableError: no output is floating.
        """
        if all(dtype.kind not in INEXACT for dtype in residuals.dtypes):
            raise NotDifferentiableError(
                f"{self.label} returned no floating array, so it has no derivative; return probabilities "
                f"rather than a class, say"
            )
        # Copies: a rule may hand its cotangent on as it is, and the caller owns what we return.
        pulled = [np.array(c, d) if d.kind in INEXACT else c for c, d in zip(cotangents, residuals.dtypes)]
        try:
            found = residuals.recording.pull(pulled)
        except Exception as error:
            shapes = ", ".join(str(c.shape) for c in pulled)
            raise GuestError(
                f"the derivative of {self.label} failed on cotangents {shapes}: {type(error).__name__}: {error}"
            ) from error
        gradients = dict(zip(residuals.wrt, _by_position(found, residuals.wrt, len(residuals.loaded))))
        return [
            self._flat_gradient(gradients[0])
            if position == 0
            else _dense(gradients[position], residuals.leaves[position - 1])
            for position in wrt
        ]

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> PullbackAdapter:
        """See `Adapter.pullback`."""
        return PullbackAdapter(self, signature.structure, wrt)

    def _own(self, index: int, leaf: Any) -> Any:
        """A copy of an input in the dtype of the computation; what is no array stays."""
        if type(leaf) is not np.ndarray:
            return leaf
        dtype = None if self._dtype is None else host_dtype(leaf.dtype, self._dtype)
        return np.array(leaf, dtype)

    def _computed(self, pieces: Sequence[Any], leaves: list[Any], structure: optree.PyTreeSpec) -> Any:
        try:
            return self.compute(pieces, leaves, structure)
        except GradbridgeError:
            raise
        except NotImplementedError as error:
            if "VJP of" not in str(error):
                raise self._failed(error, leaves) from error
            raise NotDifferentiableError(
                f"{self.label} cannot be differentiated by autograd: {error}; use another function of "
                f"autograd.numpy there, or declare its VJP with autograd.extend.defvjp"
            ) from error
        except Exception as error:
            raise self._failed(error, leaves) from error

    def _failed(self, error: Exception, leaves: list[Any]) -> GuestError:
        given = ", ".join(
            f"input {i} of shape {leaf.shape} {getval(leaf).dtype}"
            for i, leaf in enumerate(leaves)
            if hasattr(leaf, "shape")
        )
        return GuestError(f"{self.label} failed on {given or 'no array'}: {type(error).__name__}: {error}")

    def _flat_gradient(self, gradients: Sequence[Any]) -> Array:
        flat = np.empty(self.layout.size)
        for where, gradient in zip(self.layout.slices, gradients):
            flat[where] = 0.0 if gradient is None else np.reshape(gradient, -1)
        return flat


class FunctionAdapter(BoxAdapter):
    """A function of ``autograd.numpy``, with or without a tree of parameters as its first argument."""

    def __init__(self, function: Callable[..., Any], options: GuestOptions) -> None:
        self._function = function
        self._has_params = options.params is not None
        self.argument_names = argument_names(function, skip=int(self._has_params))
        dtype = np.dtype(options.dtype) if options.dtype is not None else None
        label = getattr(function, "__name__", type(function).__name__)
        layout = ParameterLayout.of_tree(options.params) if self._has_params else ParameterLayout.empty()
        for name, _, kind in layout:
            if np.dtype(kind).kind != "f":
                raise OptionError(
                    f"parameter {name!r} of params= has dtype {kind}; parameters are real floating arrays: keep "
                    f"constants in the function itself"
                )
        dtypes = [dtype or np.dtype(name) for name in layout.dtypes]
        super().__init__(label, layout, dtypes, dtype or (np.result_type(*dtypes) if dtypes else None))
        self._present = layout.ravel(options.params) if self._has_params else np.empty(0)

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self._present.copy()

    def model(self, params: Array) -> Callable[..., Any]:
        """See `Adapter.model`: the function with these parameters filled in."""
        function = self._function
        if not self._has_params:
            return function
        tree = self._tree(self.update(params))
        return lambda *args, **kwargs: function(tree, *args, **kwargs)

    def compute(self, pieces: Sequence[Any], inputs: list[Any], structure: optree.PyTreeSpec) -> Any:
        """Call the function."""
        args, kwargs = optree.tree_unflatten(structure, inputs)
        if self._has_params:
            args = (self._tree(pieces), *args)
        return self._function(*args, **kwargs)

    def _tree(self, pieces: Sequence[Any]) -> Any:
        assert self.layout.structure is not None
        return trees.unflatten(self.layout.structure, pieces)


class PullbackAdapter(BoxAdapter):
    """The VJP of a function: ``(params, *inputs, *cotangents) ↦ gradients``."""

    def __init__(self, parent: BoxAdapter, structure: optree.PyTreeSpec, wrt: tuple[int, ...]) -> None:
        super().__init__(f"gradient of {parent.label}", parent.layout, parent._dtypes, parent._dtype)
        self._parent, self._structure, self._wrt = parent, structure, wrt

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self._parent.params()

    def model(self, params: Array) -> Any:
        """See `Adapter.model`: the function that this is a derivative of."""
        return self._parent.model(params)

    def compute(self, pieces: Sequence[Any], inputs: list[Any], structure: optree.PyTreeSpec) -> Any:
        """The gradients, from a recording inside of whoever records this."""
        count = self._structure.num_leaves
        primals, cotangents = inputs[:count], inputs[count:]

        def function(boxes: list[Any]) -> list[Any]:
            mine, filled = _substituted(pieces, primals, self._wrt, boxes)
            return _opened(self._parent._computed(mine, filled, self._structure), self._parent.label)[0]

        recording = Recording(function, _values(pieces, primals, self._wrt))
        found = _by_position(recording.pull(cotangents), self._wrt, len(pieces))
        return tuple(
            _joined(gradient, pieces) if position == 0 else _or_zeros(gradient, primals[position - 1])
            for position, gradient in zip(self._wrt, found)
        )

    def _own(self, index: int, leaf: Any) -> Any:
        if index < self._structure.num_leaves:
            return self._parent._own(index, leaf)
        return np.array(leaf)


class _Residuals:
    """What one forward keeps: its recording, and the arrays that it was made at."""

    __slots__ = ("dtypes", "leaves", "loaded", "recording", "wrt")

    def __init__(
        self, recording: Recording, dtypes: list[Any], loaded: list[Array], leaves: list[Any], wrt: Any
    ) -> None:
        self.recording, self.dtypes, self.loaded = recording, dtypes, loaded
        self.leaves, self.wrt = leaves, wrt


def _values(pieces: Sequence[Any], leaves: Sequence[Any], wrt: tuple[int, ...]) -> list[Any]:
    """The values at positions `wrt`, those of position 0 one by one."""
    return [value for p in wrt for value in (pieces if p == 0 else [leaves[p - 1]])]


def _substituted(
    pieces: Sequence[Any], leaves: Sequence[Any], wrt: tuple[int, ...], boxes: list[Any]
) -> tuple[Sequence[Any], list[Any]]:
    """(pieces, leaves) with the boxes at positions `wrt`."""
    filled, rest = list(leaves), iter(boxes)
    for position in wrt:
        if position == 0:
            pieces = [next(rest) for _ in pieces]
        else:
            filled[position - 1] = next(rest)
    return pieces, filled


def _by_position(found: Sequence[Any], wrt: tuple[int, ...], count: int) -> list[Any]:
    """The inverse of `_values`: for position 0 a list."""
    rest = iter(found)
    return [[next(rest) for _ in range(count)] if p == 0 else next(rest) for p in wrt]


def _opened(output: Any, label: str) -> tuple[list[Any], optree.PyTreeSpec | None]:
    """Output tree, its containers boxed or not → (leaves, structure; None for one array alone).

    Raises:
        OutputError: a leaf is not an array.
    """
    output = _unboxed_containers(output)
    if type(output) is np.ndarray or isbox(output):
        return [output], None
    leaves, structure = trees.flatten(output)
    for index, leaf in enumerate(leaves):
        if not (isbox(leaf) or isinstance(leaf, (np.ndarray, np.generic, float, int, complex))):
            raise OutputError(
                f"output {index} of {label} is a {type(leaf).__name__}; a bridged function returns an array, or "
                f"a tuple, list, dict or dataclass of arrays: drop the rest or make it an array"
            )
    return leaves, None if len(leaves) == 1 and leaves[0] is output else structure


def _unboxed_containers(tree: Any) -> Any:
    if type(tree) in (tuple, list):
        return type(tree)(map(_unboxed_containers, tree))
    if type(tree) is dict:
        return {key: _unboxed_containers(value) for key, value in tree.items()}
    if type(tree) is SequenceBox:
        items = [_unboxed_containers(tree[i]) for i in range(len(tree))]
        return tuple(items) if isinstance(getval(tree), tuple) else items
    if type(tree) is DictBox:
        return {key: _unboxed_containers(tree[key]) for key in tree}
    return tree


def _joined(gradients: Sequence[Any], pieces: Sequence[Any]) -> Any:
    flat = [anp.reshape(_or_zeros(g, piece), -1) for g, piece in zip(gradients, pieces)]
    return anp.concatenate(flat) if flat else np.zeros(0)


def _or_zeros(gradient: Any, like: Any) -> Any:
    return np.zeros(np.shape(_plain(like)), _plain(like).dtype) if gradient is None else gradient


def _plain(value: Any) -> Any:
    while isbox(value):
        value = value._value
    return value


def _dense(gradient: Any, like: Array) -> Array:
    found = np.zeros(like.shape, like.dtype) if gradient is None else np.array(gradient)
    return found if found.dtype.kind in INEXACT else found.astype(np.float64)
