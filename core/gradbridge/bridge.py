"""The front door for models: `bridge` and the `Bridge` that it returns."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradbridge import borders, trees
from gradbridge.call import Call
from gradbridge.capabilities import Capabilities, Told, capabilities_of
from gradbridge.chunks import ChunkedAdapter
from gradbridge.errors import BackendError, LayoutError, NotDifferentiableError, OptionError
from gradbridge.held import Held
from gradbridge.host import Host
from gradbridge.jacobians import Derivatives
from gradbridge.layout import ParameterLayout
from gradbridge.points import Point
from gradbridge.protocol import Adapter, Array, GuestOptions, Signature
from gradbridge.registry import Registry, default_registry
from gradbridge.reuse import Memory
from gradbridge.saving import load_params, save_params
from gradbridge.transposes import ForwardTrust

MODES = ("eval", "train")
NOISES = ("frozen", "per_params", "per_call")


class Bridge(Derivatives):
    """A guest model as a differentiable function of the host: ``f(params, *inputs)``.

    Args:
        adapter: the guest model.
        host: name of the backend whose host half lifts it.
        mode: ``"eval"`` or ``"train"``, as the adapter was made for.
        seed: where the bridge's own noise starts.
        noise: ``"frozen"``, ``"per_params"`` or ``"per_call"``.
        check_finite: refuse params with NaN or infinity, naming the first.
        reuse: how many evaluations to remember; see `gradbridge.reuse`.
        nondiff: positions and names of inputs that are held constant.
        first_input: the position of the first one; 0 where there are no params before it.
        registry: where host halves come from.
    """

    def __init__(
        self,
        adapter: Adapter,
        host: str = "autograd",
        *,
        mode: str = "eval",
        seed: int = 0,
        noise: str = "frozen",
        check_finite: bool = False,
        reuse: int = 0,
        nondiff: Any = (),
        first_input: int = 1,
        registry: Registry | None = None,
    ) -> None:
        _one_of("mode", mode, MODES)
        _one_of("noise", noise, NOISES)
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
            raise OptionError(f"seed must be an integer, got {seed!r}")
        self._adapter = adapter
        self._host_name = host
        self._registry = registry if registry is not None else default_registry()
        self._host: Host = self._registry.host(host)
        self._mode, self._seed, self._noise_kind = mode, int(seed) % 2**63, noise
        self._check_finite = check_finite
        self._memory = _memory(reuse, adapter, mode)
        self._trust = ForwardTrust()
        self._held: Held | None = None
        if nondiff != ():
            self._held = Held(nondiff, adapter.argument_names, first_input, adapter.label)
        self._calls = itertools.count()
        self._draw = self._noise_source()

    @property
    def adapter(self) -> Adapter:
        """The guest model's adapter, for those who write backends."""
        return self._adapter

    @property
    def layout(self) -> ParameterLayout:
        """Names, shapes and dtypes of the parameters, in the order of the flat vector."""
        return self._adapter.layout

    @property
    def params(self) -> Array:
        """The model's present parameters, (P,) float64, a new array."""
        return self._adapter.params()

    @property
    def memory(self) -> Memory | None:
        """What ``reuse=`` remembers: its `hits` and `misses`, and `forget()`. None without reuse."""
        return self._memory

    def model(self, params: Any) -> Any:
        """A native model of the guest's framework holding these parameters.

        Args:
            params: (P,) real.

        Returns:
            A new model; the one that was bridged is not touched.

        Raises:
            ParamsShapeError, ParamsDtypeError
        """
        vector = borders.as_array(params, f"params of {self._adapter.label}")
        borders.check_params(vector, self.layout, self._adapter.label)
        return self._adapter.model(np.ascontiguousarray(vector, dtype=np.float64))

    @property
    def capabilities(self) -> Capabilities:
        """What works through this bridge, what does not and why, and what it costs; prints as a table."""
        title = f"{self._adapter.label}, differentiated by {self._host_name}"
        told = Told(
            self._mode,
            self._noise_kind,
            self._memory is not None,
            self._latest,
            str(self._held or ""),
            self._trust.is_refused(),
        )
        return capabilities_of(self._adapter, title, told)

    def save(self, path: str | os.PathLike[str], params: Any) -> None:
        """Write parameters to a safetensors file, with their layout.

        Args:
            path: the file.
            params: (P,) real.

        Raises:
            ParamsShapeError: they do not fit the layout.
        """
        save_params(path, params, self.layout)

    def load(self, path: str | os.PathLike[str], *, names: bool = True) -> Array:
        """Read parameters that `save` wrote, for this model.

        Args:
            path: the file.
            names: False compares shapes and order alone, not the parameters' names.

        Returns:
            (P,) float64.

        Raises:
            ParamsFileError: no such file of ours, or of another model; the first difference is named.
        """
        return load_params(path, self.layout, names=names)

    def __call__(self, params: Any, *inputs: Any, **kwargs: Any) -> Any:
        """Evaluate the model, differentiably in the host.

        Args:
            params: (P,) real; float64 for preference. Or the arrays by their names in the layout, or
                in the tree that a function's `params=` was: then a gradient is such a tree, too.
            *inputs: arrays, or pytrees of arrays, as the model takes them. Floating ones can be
                differentiated; integers, booleans and other objects pass through untouched.
            **kwargs: keyword arguments of the model, likewise.

        Returns:
            The model's output, an array or the pytree of arrays that it returns, in the dtype
            of `params`.

        Raises:
            ParamsShapeError, ParamsDtypeError, NonFiniteParamsError, LayoutError, InputError,
            OutputError, GuestError
        """
        if type(params) is not np.ndarray:
            params = self._vector(params)
        dtype = borders.check_params(params, self._adapter.layout, self._adapter.label)
        return self._evaluate(params, inputs, kwargs, dtype)

    def _point(self, params: Any, inputs: Sequence[Any], kwargs: dict[str, Any], first: int = 1) -> Point:
        params = self._vector(params)
        dtype = borders.check_params(params, self._adapter.layout, self._adapter.label)
        call, leaves = self._call(inputs, kwargs, dtype if self._adapter.layout.size else None)
        if any(map(self._host.is_traced, (params, *leaves))):
            raise NotDifferentiableError(
                f"a Jacobian, or a product with it, of {self._adapter.label} was asked for at values that "
                f"{self._host_name} is differentiating; it is computed outside of the host's graph: call the "
                f"bridge itself there, and let {self._host_name} differentiate that"
            )
        held = self._held.leaves(call.signature.structure) if self._held is not None else frozenset()
        return Point(call, params, leaves, self._mode == "eval", held, first=first)

    def _vector(self, params: Any) -> Any:
        """Params as the user gave them, a vector or a tree of arrays → a vector, traced if they are."""
        host = self._host
        params = host.open(params)
        if host.is_traced(params) or isinstance(params, np.ndarray):
            return params
        if not trees.is_container(params) or (type(params) in (list, tuple) and _only_numbers(list(params))):
            return borders.as_array(params, f"params of {self._adapter.label}")
        layout = self._adapter.layout
        pieces = layout.arrays(params)
        if not any(map(host.is_traced, pieces)):
            return layout.ravel(params)
        for name, shape, piece in zip(layout.names, layout.shapes, pieces):
            if np.shape(piece) != shape:
                raise LayoutError(f"expected shape {shape} for parameter {name!r}, got {np.shape(piece)}")
        return host.join(pieces)

    def _evaluate(
        self, params: Any, inputs: Sequence[Any], kwargs: dict[str, Any], dtype: np.dtype[Any] | None
    ) -> Any:
        call, leaves = self._call(inputs, kwargs, dtype)
        return self._host.apply(call, params, leaves)

    def _call(
        self, inputs: Sequence[Any], kwargs: dict[str, Any], dtype: np.dtype[Any] | None
    ) -> tuple[Call, list[Any]]:
        host, label = self._host, self._adapter.label
        if self._held is not None:
            inputs, kwargs = self._held.hold(inputs, kwargs, host)
        if not kwargs and all(type(leaf) is np.ndarray for leaf in inputs):
            leaves, signature = list(inputs), _flat_signature(len(inputs), self._seed)
        else:
            leaves, structure = trees.flatten(host.open((tuple(map(_numbers, inputs)), kwargs)))
            signature = Signature(structure, self._seed)
        for index, leaf in enumerate(leaves):
            if not host.is_traced(leaf):
                leaves[index] = borders.admit(leaf, index + 1, label, self._adapter.takes_complex)
        if dtype is None:
            inexact = (np.dtype(leaf.dtype) for leaf in leaves if borders.is_inexact(leaf))
            dtype = borders.real_dtype(next(inexact, np.dtype(np.float64)))
        call = Call(
            self._adapter,
            signature,
            dtype,
            self._registry,
            self._draw,
            self._check_finite,
            self._memory,
            self._trust,
        )
        return call, leaves

    def _noise_source(self) -> Callable[[Array], int] | None:
        if self._mode == "eval" or self._noise_kind == "frozen":
            return None
        if self._noise_kind == "per_params":
            return self._noise_of_params
        return self._noise_of_call

    def _noise_of_params(self, params: Array) -> int:
        return _hashed(self._seed, params.tobytes())

    def _noise_of_call(self, params: Array) -> int:
        return _hashed(self._seed, next(self._calls).to_bytes(8, "little"))

    def __repr__(self) -> str:
        mode = "" if self._mode == "eval" else f", mode {self._mode}, noise {self._noise_kind}"
        return f"<Bridge over {self._adapter.label}: {self.layout.size} params, host {self._host_name}{mode}>"

    def __getstate__(self) -> dict[str, Any]:
        # The registry and the host half belong to the process; another one has its own.
        return {k: v for k, v in self.__dict__.items() if k not in ("_registry", "_host", "_draw")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._registry = default_registry()
        self._host = self._registry.host(self._host_name)
        self._draw = self._noise_source()


def bridge(
    model: Any,
    *,
    backend: str | None = None,
    host: str = "autograd",
    params: Any = None,
    dtype: Any = None,
    device: Any = None,
    mode: str = "eval",
    seed: int = 0,
    noise: str = "frozen",
    check_finite: bool = False,
    reuse: int = 0,
    rows_per_chunk: int | None = None,
    nondiff: Any = (),
    registry: Registry | None = None,
    **options: Any,
) -> Bridge:
    """Make a model of another framework a differentiable function of the host.

    ::

        f = gradbridge.bridge(torch.nn.Linear(3, 1), dtype="float64")
        autograd.grad(lambda p: f(p, X).sum())(f.params)

    Args:
        model: a native model, or a function of ``(parameter pytree, *inputs)`` with `params`,
            or an `Adapter`. It is not touched, now or later (law 5).
        backend: name of the guest's backend. None finds it from the model's class; for a
            function, from the environment variable ``GRADBRIDGE_BACKEND``.
        host: the autodiff system that will differentiate.
        params: a function's parameters, a pytree of arrays.
        dtype: the dtype to compute in, e.g. ``"float64"``. None keeps the model's own.
        device: the device to compute on. None keeps the model's own.
        mode: ``"eval"``, or ``"train"`` for dropout masks and batch statistics.
        seed: seed of the bridge's own noise; the framework's random state is not used.
        noise: with ``mode="train"``: ``"frozen"`` (the same mask always), ``"per_params"`` (a new
            one whenever the params change) or ``"per_call"``.
        check_finite: refuse params with NaN or infinity, naming the first.
        reuse: how many evaluations to remember, so that the same params and inputs, compared byte
            for byte, cost one forward however often they are asked for. 0 remembers none. For
            models that draw no random numbers. Memory: inputs and residuals of so many calls.
        rows_per_chunk: compute long inputs in chunks of so many rows (their first axis), in bounded
            memory, for one more forward per gradient. For models whose rows are independent of each
            other, in eval mode; the first long call makes sure.
        nondiff: inputs that are held constant, by position (1 is the first after the params) or by
            the model's name for them, e.g. ``(2, "mask")``. What the host differentiates does not
            reach the model through them, so a gradient has exact zeros there.
        registry: the plugins to choose from; by default all that are installed.
        **options: options of the backend.

    Returns:
        The differentiable function ``f(params, *inputs)``.

    Raises:
        UnknownModelError: no backend recognises the model.
        UnknownBackendError: there is no such backend; the nearest name is suggested.
        BackendUnavailableError: its framework is missing or broken; says how to install it.
        OptionError: an unknown option, or a value that it cannot take.
    """
    _one_of("mode", mode, MODES)
    registry = registry if registry is not None else default_registry()
    if isinstance(model, Adapter):
        if options or backend is not None or dtype is not None or device is not None or params is not None:
            raise OptionError("an Adapter is complete: give its dtype, device and options where it is made")
        adapter = model
    else:
        name = find_backend(model, backend, registry)
        guest = GuestOptions(params=params, dtype=dtype, device=device, mode=mode, extra=options)
        adapter = registry.guest(name)(model, guest)
    if rows_per_chunk is not None:
        if mode == "train":
            raise OptionError(
                f"rows_per_chunk={rows_per_chunk} was asked for with mode='train', where rows share masks and batch "
                f"statistics; leave it out or use mode='eval'"
            )
        adapter = ChunkedAdapter(adapter, rows_per_chunk)
    return Bridge(
        adapter,
        host,
        mode=mode,
        seed=seed,
        noise=noise,
        check_finite=check_finite,
        reuse=reuse,
        nondiff=nondiff,
        registry=registry,
    )


def find_backend(model: Any, backend: str | None, registry: Registry) -> str:
    """Which backend a model goes to: the one asked for, its class's, or the environment's.

    Raises:
        UnknownModelError, UnknownBackendError
    """
    if backend is not None:
        registry.backend(backend)
        return backend
    try:
        return registry.match(model)
    except BackendError:
        named = os.environ.get("GRADBRIDGE_BACKEND")
        if not named:
            raise
        registry.backend(named)
        return named


_flat_signature = functools.lru_cache(maxsize=256)(Signature.flat)


def _memory(reuse: Any, adapter: Adapter, mode: str) -> Memory | None:
    if isinstance(reuse, bool) or not isinstance(reuse, (int, np.integer)) or reuse < 0:
        raise OptionError(f"reuse must be a number of evaluations to remember, 0 or more, got {reuse!r}")
    if reuse and (mode == "train" or adapter.stochastic):
        raise OptionError(
            f"reuse={reuse} was asked for, and {adapter.label} in mode {mode!r} may draw random numbers or move "
            f"statistics, so that an evaluation is not just its result; leave reuse out or use mode='eval'"
        )
    return Memory(int(reuse)) if reuse else None


def _one_of(option: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise OptionError(f"{option} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _numbers(value: Any) -> Any:
    """A list of Python numbers, nested or not, is an array, as everywhere in NumPy."""
    return np.asarray(value) if type(value) is list and value and _only_numbers(value) else value


def _only_numbers(value: Any) -> bool:
    if type(value) is list:
        return all(map(_only_numbers, value))
    return isinstance(value, (bool, int, float, complex))


def _hashed(seed: int, content: bytes) -> int:
    digest = hashlib.blake2b(content, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") >> 1
