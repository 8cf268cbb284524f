"""The entry point for functions of arrays: `primitive`, with a gradient derived, written or numeric."""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

from gradbridge import trees
from gradbridge.audit.examination import audited
from gradbridge.audit.report import AuditReport, Finding
from gradbridge.bridge import Bridge
from gradbridge.capabilities import Capabilities
from gradbridge.derivatives import jacobians
from gradbridge.derivatives.jacobians import MAX_CHUNK
from gradbridge.derivatives.points import EvaluationPoint
from gradbridge.errors import OptionError
from gradbridge.lifting.choosing import AUTO
from gradbridge.option_values import check_options
from gradbridge.protocol import GuestOptions
from gradbridge.registry import Registry, default_registry

if TYPE_CHECKING:
    from gradbridge.rule_types import TakesRules
else:
    TakesRules = object  # `__getattr__` hands rules on to the adapter

#: The backend of functions without a framework: plain Python, NumPy, ctypes …
PLAIN = "numpy"


class Primitive(TakesRules):
    """A function of arrays that the host differentiates through; made by `primitive`.

    It works on functions, methods, lambdas, closures and callable objects alike.
    """

    def __init__(self, function: Callable[..., Any], bridge: Bridge) -> None:
        self._bridge = bridge
        self._function = function
        functools.update_wrapper(self, function, updated=())

    @property
    def bridge(self) -> Bridge:
        """The bridge underneath, with a parameter vector of length 0."""
        return self._bridge

    @property
    def capabilities(self) -> Capabilities:
        """What works through this function, what does not and why, and what it costs; prints as a table."""
        return self._bridge.capabilities

    def audit(
        self, *inputs: Any, told: Callable[[Finding], None] | None = None, **kwargs: Any
    ) -> AuditReport:
        """Find out all that can be found out about the function at one point; see `Bridge.audit`."""
        title = f"audit of {self._bridge.adapter.label}"
        return audited(self._point(inputs, kwargs), bytes, title, told)

    def jacobian(
        self, *inputs: Any, wrt: Any = 0, strategy: str = "auto", max_chunk: int = MAX_CHUNK, **kwargs: Any
    ) -> Any:
        """d outputs / d argument at concrete arrays, by the cheapest way that the structure allows.

        Args:
            *inputs, **kwargs: as for a call.
            wrt: which input array, counted from 0 as autograd's `argnum`; or a tuple of such.
            strategy, max_chunk: see `Bridge.jacobian`.

        Returns:
            (*output shape, *argument shape); trees and tuples as for `Bridge.jacobian`.

        Raises:
            NotDifferentiableError, OptionError
        """
        return self._bridge._jacobian(self._point(inputs, kwargs), wrt, strategy, max_chunk)

    def vjp(self, *inputs: Any, cotangent: Any, wrt: Any = 0, **kwargs: Any) -> Any:
        """Vector-Jacobian product vᵀJ at concrete arrays; see `Bridge.vjp`, `wrt` counted from 0."""
        return jacobians.vjp(self._point(inputs, kwargs), cotangent, wrt)

    def jvp(self, *inputs: Any, tangent: Any, wrt: Any = 0, **kwargs: Any) -> Any:
        """Jacobian-vector product Jt at concrete arrays; see `Bridge.jvp`, `wrt` counted from 0."""
        return jacobians.jvp(self._point(inputs, kwargs), tangent, wrt)

    def ggn(self, *inputs: Any, vector: Any, wrt: Any = 0, hessian: Any = None, **kwargs: Any) -> Any:
        """Gauss-Newton product JᵀHJv at concrete arrays; see `Bridge.ggn`, `wrt` counted from 0."""
        return jacobians.ggn(self._point(inputs, kwargs), vector, wrt, hessian)

    def _point(self, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> EvaluationPoint:
        return self._bridge._point(None, inputs, kwargs)

    def as_module(self, **options: Any) -> Any:
        """A ``torch.nn.Module`` that computes the function, without parameters; see `Bridge.as_module`."""
        return self._bridge.as_module(**options)

    def as_layer(self, **options: Any) -> Any:
        """A Keras layer that computes the function, without weights; see `Bridge.as_layer`."""
        return self._bridge.as_layer(**options)

    @property
    def gradient_error(self) -> float | None:
        """Largest estimated error of an entry of its numeric Jacobians so far.

        None before the first gradient, and for functions whose gradient is not numeric.
        ``f.bridge.adapter.numeric`` says more, in a sentence.
        """
        numeric = getattr(self._bridge.adapter, "numeric", None)
        error: float | None = getattr(numeric, "estimated_error", None)
        return error

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        """Evaluate the function, differentiably in the host.

        Args:
            *inputs: arrays or pytrees of arrays; what is not an array passes through untouched.
            **kwargs: likewise.

        Returns:
            What the function returns, arrays in the dtype of the first floating input.
        """
        return self._bridge._of_arrays(inputs, kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        # As the function itself is bound: a static one, a builtin or a callable object is not.
        bind = getattr(type(self._function), "__get__", None)
        method = bind(self._function, instance, owner) if bind is not None else None
        return Method(self, method) if isinstance(method, types.MethodType) else self

    def __getattr__(self, name: str) -> Any:
        # defvjp and the like are the adapter's: only a function without a framework needs them.
        if name.startswith("def"):
            define = getattr(self._bridge.adapter, name, None)
            if define is not None:
                return functools.partial(_defining, self, define)
            raise AttributeError(
                f"{name} writes down the gradient of a function without a framework; "
                f"{self._bridge.adapter.label} has one that derives it"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<Primitive {self._bridge.adapter.label}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        # As a function: by its name, where that leads here. The function itself has it no more.
        module, name = getattr(self, "__module__", None), getattr(self, "__qualname__", "")
        if _by_name(module, name) is self:
            return _by_name, (module, name)
        return super().__reduce_ex__(protocol)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _by_name(module: str | None, name: str) -> Any:
    """What a module has by a qualified name; None where it is not imported, or has nothing of it."""
    found = sys.modules.get(module or "")
    if found is None and module:
        found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


class Method(Primitive):
    """A `Primitive` as the method of an object: inputs, and `wrt`, are counted after that object."""

    def __init__(self, primitive: Primitive, method: types.MethodType) -> None:
        super().__init__(method, primitive._bridge)
        self.__func__, self.__self__ = primitive, method.__self__

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        return self._bridge._of_arrays((self.__self__, *inputs), kwargs)

    def _point(self, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> EvaluationPoint:
        point = super()._point((self.__self__, *inputs), kwargs)
        return replace(point, receiver=len(trees.flatten(self.__self__)[0]))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Method) and other.__func__ is self.__func__ and other.__self__ is self.__self__
        )

    def __hash__(self) -> int:
        return hash((id(self.__func__), id(self.__self__)))


def _defining(primitive: Primitive, define: Callable[..., Any], *rules: Any, **options: Any) -> Any:
    """Write rules down; give a single one back, so that its name is bound to it and takes rules of its own."""
    made = define(*rules, **options)
    return primitive if len(rules) > 1 else made


@overload
def primitive(function: Callable[..., Any], /) -> Primitive: ...
@overload
def primitive(
    function: None = None,
    /,
    *,
    backend: str | None = None,
    host: str = AUTO,
    gradient: str | None = None,
    dtype: Any = None,
    device: Any = None,
    nondiff: Any = (),
    audit: str = "first",
    outputs: Any = None,
    registry: Registry | None = None,
    **options: Any,
) -> Callable[[Callable[..., Any]], Primitive]: ...
def primitive(
    function: Callable[..., Any] | None = None,
    /,
    *,
    backend: str | None = None,
    host: str = AUTO,
    gradient: str | None = None,
    dtype: Any = None,
    device: Any = None,
    nondiff: Any = (),
    audit: str = "first",
    outputs: Any = None,
    registry: Registry | None = None,
    **options: Any,
) -> Primitive | Callable[[Callable[..., Any]], Primitive]:
    """Make a function of arrays one step of the host's program, with its own gradient.

    ::

        @gradbridge.primitive(backend="torch")      # the guest derives the gradient
        def energy(x, y): ...                       # sees tensors; callers see arrays

        @gradbridge.primitive                       # any Python code, ctypes, a subprocess …
        def Q(x): return x ** 2

        @Q.defvjp                                   # its gradient written down
        def Q_vjp(ans, x): return lambda v: 2 * x * v

        @Q_vjp.defvjp                               # for hessian: the gradient's own, by (x, v)
        def Q_vjp_vjp(gradient, x, v): return lambda u: 2 * v * u

        @gradbridge.primitive(gradient="numeric")   # approximate, where nobody can write it down
        def black_box(x): ...

    Args:
        function: the function; left out when used with options.
        backend: the framework that the body is written in; None for plain Python.
        host: the autodiff system that will differentiate; see `bridge`.
        gradient: ``"numeric"`` for finite differences of a plain function. Approximate.
        dtype: the dtype to compute in; None follows the first floating input.
        device: the device to compute on.
        nondiff: arguments that are held constant, by position (0 is the first of the signature, also
            where that is `self`) or by name; see `bridge`.
        audit, outputs: see `bridge`.
        registry: the plugins to choose from; by default all that are installed.
        **options: options of the backend.

    Raises:
        UnknownBackendError, BackendUnavailableError, OptionError
    """
    if function is not None and not callable(function):
        raise OptionError(f"primitive takes a function, got {type(function).__name__}; options go by keyword")
    check_options(backend=backend, host=host, registry=registry)
    if gradient is not None:
        options["gradient"] = gradient

    def decorate(body: Callable[..., Any]) -> Primitive:
        if not callable(body):
            raise OptionError(f"primitive takes a function, got {type(body).__name__}")
        known = registry if registry is not None else default_registry()
        name = backend if backend is not None else PLAIN
        own = None if isinstance(dtype, str) and dtype == "model" else dtype
        adapter = known.guest(name)(body, GuestOptions(dtype=own, device=device, extra=dict(options)))
        bridge = Bridge(
            adapter,
            host,
            nondiff=nondiff,
            first_input=0,
            outputs=outputs,
            audit=audit,
            follows=dtype is None,
            registry=known,
        )
        return Primitive(body, bridge)

    return decorate if function is None else decorate(function)
