"""How a bridge is called: its arguments bound to a `Call`, which is evaluated and lifted into the host."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradbridge import borders, trees
from gradbridge.call_spec import CallSpec
from gradbridge.derivatives.jacobians import Derivatives
from gradbridge.derivatives.points import EvaluationPoint
from gradbridge.errors import GuestError, InputError, NotDifferentiableError, OutputError
from gradbridge.execution.arguments import Arguments
from gradbridge.execution.constant_arguments import ConstantArguments
from gradbridge.execution.evaluation import Call
from gradbridge.execution.precision import Precisions
from gradbridge.execution.settings import BridgeSettings
from gradbridge.host import Host, Hosts, Reading
from gradbridge.lifting.choosing import AUTO, AUTOGRAD, host_of_arrays
from gradbridge.lifting.compilers import compilers, key_for
from gradbridge.lifting.host import LiftingHost
from gradbridge.lifting.wrapping import Wrappable
from gradbridge.protocol import Adapter, ArraySpec

#: What of a bridge belongs to the process, and goes into no copy and no pickle.
OF_PROCESS = ("_hosts", "_host", "_settings", "_is_special", "_key", "_shortcuts", "_looks", "_evaluated")


class Calling(Derivatives, Wrappable):
    """The half of `Bridge` that is called."""

    _precisions: Precisions
    _host: Host
    _host_name: str
    _mode: str
    _seed: int
    _constants: ConstantArguments | None
    _settings: BridgeSettings
    _hosts: Hosts

    def _serve(self, hosts: Hosts, host: Host, settings: BridgeSettings) -> None:
        """From now on calls come from this host, or with ``host="auto"`` from that of their arrays, and this if none."""
        self._hosts, self._host, self._settings = hosts, host, settings
        self._key = key_for(self)
        hosts.load_compiling_hosts()
        self._size = (self._adapter.layout.size,)
        #: {class of the params: a quicker way for calls like the latest one with these}.
        self._shortcuts: dict[type, Callable[[Any, tuple[Any, ...]], Any]] = {}
        #: {class of the params: (the pause after the next look for one, how many calls of the present pause are left)}.
        self._looks: dict[type, tuple[int, int]] = {}
        self._evaluated = None
        #: {class: whether its objects are trees of others, or some other host's arrays}, of those that were met.
        self._is_special: dict[type, Any] = {} if isinstance(host, LiftingHost) else {np.ndarray: False}

    @property
    def _adapter(self) -> Adapter:
        """What serves hosts of float64."""
        return self._precisions.double.adapter

    def __call__(self, params: Any, *inputs: Any, **kwargs: Any) -> Any:
        """Evaluate the model, differentiably in the host.

        Args:
            params: (P,) real; float64 for preference. Or the arrays by their names in the layout, or
                in the tree that a function's `params=` was: then a gradient is such a tree, too.
            *inputs: arrays, or pytrees of arrays, as the model takes them. Floating ones can be
                differentiated; integers, booleans and other objects pass through untouched.
            **kwargs: keyword arguments of the model, likewise.

        Returns:
            The model's output, an array or the pytree of arrays that it returns, arrays of the host in
            the dtype of `params`.

        Raises:
            ParamsShapeError, ParamsDtypeError, NonFiniteParamsError, LayoutError, InputError,
            OutputError, GuestError, HostError
        """
        for compiler in compilers:
            if compiler.is_reading():
                return compiler.call(self._key, (params,), inputs, kwargs)
        if self._is_special.get(type(params), True):
            shortcut = self._shortcuts.get(type(params))
            if shortcut is None or kwargs:
                return self._called(params, inputs, kwargs)
            try:
                made = shortcut(params, inputs)
            except (GuestError, InputError, OutputError) as error:
                if error.__cause__ is None:
                    raise  # our own word
                made = NotImplemented  # the whole way may know another
            return self._called(params, inputs, kwargs) if made is NotImplemented else made
        return self._apply((params,), True, inputs, kwargs)

    def _called(self, params: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call with params that are a tree, or some other host's array."""
        host = self._host_of(params, inputs, kwargs)
        call, arguments, reading, host = self._bind(*self._weights(host, params), inputs, kwargs, host)
        made = host.apply(call, arguments, reading)
        is_current = self._precisions.of(call.dtype).adapter is call.adapter
        if isinstance(host, LiftingHost) and self._constants is None and not kwargs and is_current:
            # Looking takes longer than it saves where none serves (within transforms, say): each time half as often.
            pause, left = self._looks.get(type(params), (0, 0))
            self._looks[type(params)] = (pause, left - 1) if left else (min(2 * pause + 1, _PAUSE), pause)
            shortcut = None if left else host.shortcut(call, params, inputs)
            if shortcut is not None:
                self._shortcuts[type(params)] = shortcut
        return made

    def _of_arrays(self, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a function without params."""
        for compiler in compilers:
            if compiler.is_reading():
                return compiler.call(self._key, (), inputs, kwargs)
        return self._apply((), False, inputs, kwargs)

    def _apply(
        self,
        weights: Sequence[Any],
        is_flat: bool,
        inputs: Sequence[Any],
        kwargs: dict[str, Any],
        host: Host | None = None,
    ) -> Any:
        """Evaluate, and lift into the host what it differentiates.

        Args:
            weights: the flat vector alone, or one array per entry of the layout; traced or not.
            is_flat: whether it is the vector.
            inputs, kwargs: the model's.
            host: who calls; None where the weights do not tell.
        """
        call, arguments, reading, host = self._bind(weights, is_flat, inputs, kwargs, host)
        return host.apply(call, arguments, reading)

    def _point(self, params: Any, inputs: Sequence[Any], kwargs: dict[str, Any]) -> EvaluationPoint:
        host = self._host_of(params, inputs, kwargs)
        if isinstance(host, LiftingHost):
            if any(map(host.follows, trees.flatten((params, inputs, kwargs))[0])):
                raise self._in_a_graph(host)
            params, inputs, kwargs = trees.mapped(host.numpy, (params, tuple(inputs), kwargs))
        weights: Sequence[Any]
        weights, is_flat = self._weights(self._concrete, params) if params is not None else ((), False)
        call, _, reading, _ = self._bind(weights, is_flat, inputs, kwargs, self._concrete)
        if reading.wrt:
            raise self._in_a_graph(host)
        if weights and call.arguments.vectors[:1] != (True,):
            vector = self._adapter.layout.join(reading.values[: len(weights)])
            return replace(self._point(vector, inputs, kwargs), host=host)
        constants: frozenset[int] = frozenset()
        if self._constants is not None:
            first = call.first_input
            constants = frozenset(first + i for i in self._constants.indices(call.spec.structure))
        return EvaluationPoint(call, reading.values, self._mode == "eval", constants, host=host)

    def _in_a_graph(self, host: Host) -> NotDifferentiableError:
        return NotDifferentiableError(
            f"a Jacobian, or a product with it, of {self._adapter.label} was asked for at values that "
            f"{host.name} is differentiating; it is computed outside of the host's graph: call the "
            f"bridge itself there, and let {host.name} differentiate that"
        )

    def _numbers(self, params: Any) -> Any:
        """Params of any host as arrays of NumPy, off its graph."""
        host = self._host_of(params, (), {})
        return trees.mapped(host.numpy, params) if isinstance(host, LiftingHost) else params

    def _bind(
        self,
        weights: Sequence[Any],
        is_flat: bool,
        inputs: Sequence[Any],
        kwargs: dict[str, Any],
        host: Host | None,
    ) -> tuple[Call, Sequence[Any], Reading, Host]:
        """The arguments of one call.

        Args:
            weights: the flat vector alone, or one array per entry of the layout; traced or not.
            is_flat: whether it is the vector.
            inputs, kwargs: the model's.
            host: who calls; None where the weights do not tell.

        Returns:
            (what is to be evaluated, its arguments as the host has them, what the host knows of them, the host).

        Raises:
            ParamsShapeError, ParamsDtypeError, LayoutError, InputError, HostError
        """
        adapter, packs, width = precision = self._precisions.double
        packed, first = is_flat and packs, len(weights)
        if kwargs or not _NOTHING_SPECIAL.issuperset(map(self._is_special.get, map(type, inputs))):
            host = host or self._host_of(weights, inputs, kwargs)
            leaves, spec = self._leaves(host, inputs, kwargs, packed)
        else:
            leaves, spec = inputs, _spec_of_arrays(len(inputs), self._seed, packed)
            host = host or self._host
        arguments = [*weights, *leaves]
        reading = host.read(arguments)
        if self._constants is not None and reading.wrt:
            constants = {first + i for i in self._constants.indices(spec.structure)}
            if constants.intersection(reading.wrt):
                arguments = [
                    host.constant(x) if i in constants and i in reading.wrt else x
                    for i, x in enumerate(arguments)
                ]
                reading = host.read(arguments)
        if is_flat and not self._size[0] and reading.wrt[:1] == (0,):
            # By the params of a model without any nothing moves: they are a constant.
            arguments = [host.constant(arguments[0]), *arguments[1:]]
            reading = host.read(arguments)
        values = reading.values
        for index, value in enumerate(values):
            if type(value) is not np.ndarray or value.dtype.kind not in "fiub":
                values[index] = self._admitted(value, index, first, index in reading.wrt)
        vector = values[0] if is_flat else None
        if vector is None:
            dtype = self._check_weights(values, first)
        elif vector.dtype is _FLOAT64 and vector.shape == self._size:
            dtype = _FLOAT64
        else:
            if adapter.layout.is_tree(vector):  # one array that is not a vector: params= was a matrix, say
                return self._bind(weights, False, inputs, kwargs, host)
            dtype = borders.check_params(vector, adapter.layout, adapter.label)
        if dtype is not _FLOAT64 and dtype != _FLOAT64:
            other = self._precisions.of(dtype)
            if other is not precision:
                adapter, packs, width = other
                spec = replace(spec, packed=is_flat and packs)
        of = _arguments(len(values), is_flat, width)
        return Call(adapter, spec, of, dtype, self._settings), arguments, reading, host

    def _host_of(self, params: Any, inputs: Sequence[Any], kwargs: dict[str, Any]) -> Host:
        """Who calls: the host that the bridge was made for; else that of the arrays of the call.

        Raises:
            HostError: two of them differentiate, or another one than it was made for.
        """
        is_fixed = self._host_name != AUTO
        return host_of_arrays(
            self._hosts, self._host, params, (inputs, kwargs), self._adapter.label, is_fixed
        )

    @property
    def _concrete(self) -> Host:
        """The host of arrays of NumPy."""
        return self._host if not isinstance(self._host, LiftingHost) else self._hosts.host(AUTOGRAD)

    def _admitted(self, value: Any, index: int, first: int, is_traced: bool) -> Any:
        """One of the arguments, in the form that guests take."""
        adapter = self._adapter
        if isinstance(value, ArraySpec):
            if index >= first and not adapter.traits.takes_complex:
                borders.refuse_complex(value.dtype, index - first, adapter.label)
            return value
        if index < first:
            return borders.as_array(value, f"params of {adapter.label}")
        if is_traced:
            return value  # looked at when it is known that it is differentiated
        traits = adapter.traits
        return borders.admit(value, index - first, adapter.label, traits.takes_complex, traits.takes_placed)

    def _check_weights(self, values: Sequence[Any], count: int) -> np.dtype[Any]:
        """Refuse weights that do not fit the layout. Returns the host's dtype."""
        self._adapter.layout.check(values[:count], f" of {self._adapter.label}")
        of = values[:count] if count else values
        inexact = [borders.real_dtype(v.dtype) for v in of if borders.is_inexact(v)]
        if count:
            return np.result_type(*inexact) if inexact else np.dtype(np.float64)
        return inexact[0] if inexact else np.dtype(np.float64)

    def _leaves(
        self, host: Host, inputs: Sequence[Any], kwargs: dict[str, Any], packed: bool
    ) -> tuple[Sequence[Any], CallSpec]:
        """The inputs as leaves, and how they fit together."""
        if not kwargs and not any(self._is_container(host, x) for x in inputs):
            return inputs, _spec_of_arrays(len(inputs), self._seed, packed)
        leaves, structure = trees.flatten(host.open((tuple(map(numbers, inputs)), kwargs)))
        return leaves, CallSpec(structure, self._seed, packed=packed)

    def _is_container(self, host: Host, value: Any) -> bool:
        kind = type(value)
        if kind not in self._is_special:
            usual = self._host
            theirs = self._hosts.host_of(kind) not in (None, usual.name) or isinstance(usual, LiftingHost)
            is_container = host.is_container(value) or trees.is_container(value)
            self._is_special[kind] = is_container or (_OTHERS if theirs else False)
        return self._is_special[kind] is True

    def _weights(self, host: Host, params: Any) -> tuple[Sequence[Any], bool]:
        """Params as the user gave them → (the vector alone, True), or (an array per layout entry, False)."""
        if not self._is_container(host, params):
            return (params,), True
        params = host.open(params)
        if self._adapter.layout.is_tree(params):
            return tuple(self._adapter.layout.arrays(params)), False
        return (borders.as_array(params, f"params of {self._adapter.label}"),), True


_FLOAT64 = np.dtype(np.float64)

#: After so many calls at most that no shortcut served, one is looked for again.
_PAUSE = 63

#: What is known of classes whose objects are leaves, and nobody's arrays but the usual host's.
_NOTHING_SPECIAL = frozenset([False])

#: What is known of classes of arrays of other hosts.
_OTHERS = "another host's arrays"


@functools.lru_cache(maxsize=256)
def _spec_of_arrays(count: int, seed: int, packed: bool) -> CallSpec:
    return CallSpec(CallSpec.of_arrays(count).structure, seed, packed=packed)


@functools.lru_cache(maxsize=512)
def _arguments(count: int, is_flat: bool, width: int) -> Arguments:
    return Arguments.of((is_flat, *(False,) * (count - 1)) if count else (), width)


def numbers(value: Any) -> Any:
    """A list of Python numbers, nested or not, is an array, as everywhere in NumPy."""
    if type(value) is list and value and _only_numbers(value):
        return borders.as_array(value, "an input that is a list of numbers")
    return value


def _only_numbers(value: Any) -> bool:
    if type(value) is list:
        return all(map(_only_numbers, value))
    return isinstance(value, (bool, int, float, complex))
