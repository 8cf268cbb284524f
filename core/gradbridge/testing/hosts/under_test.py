"""`HostUnderTest`: what the author of a host hands to the kit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NoReturn

from gradbridge.layout import Array
from gradbridge.registry import Registry, default_registry
from gradbridge.testing.backend import NotOfferedError

#: Arrays of the host ↦ a tuple of them.
Function = Callable[..., tuple[Any, ...]]

#: Arrays of the host ↦ one of them.
ArrayFunction = Callable[..., Any]


class HostUnderTest(ABC):
    """What programs of one autodiff system are made of, as its users write them. Subclass it.

    The kit writes programs around bridges in these words: ``gradient(lambda p: sum(multiply(f(p, x), c)))``.
    Write each operation as the system's own users would, so that it is their way that is checked. Arrays are
    the system's; functions take them one by one, and close over others.

    ==============================  ==================================================================
    operation                       what it is
    ==============================  ==================================================================
    array(array), numpy(value)      NumPy's array → a constant of the system, and back
    sin, sum, add, multiply         of arrays; differentiable, like all that follows
    vjp(function, arrays)           outputs, and what pulls cotangents back, whenever it is called
    gradient(function, argnums)     of a function with one output without axes
    jvp(function, arrays, tangents) forward mode (optional)
    hessian(function)               the system's own way to all second derivatives (optional)
    vmap(function)                  over the first axis of every argument (optional)
    compiled(function)              what its compiler makes of a function (optional)
    changeable(array)               an array that can be changed in place, and what changes it (optional)
    ==============================  ==================================================================

    What is optional and left out is reported as skipped, with the reason from `reasons`; it never counts
    as passed. ``reasons`` may also name a check, or an ability of `gradbridge.testing.hosts.ABILITIES`, for what
    the system can do in parts.
    """

    #: Name of the backend in the registry whose host half is checked.
    host: ClassVar[str] = ""

    #: {operation, check or ability: why the system has it not}, for those that are left out.
    reasons: ClassVar[Mapping[str, str]] = {}

    #: Whether its gradient by a complex number x + iy is ∂/∂x + i ∂/∂y, as in PyTorch and TensorFlow, and a
    #: cotangent likewise; False where it is ∂/∂x - i ∂/∂y, as in autograd and JAX.
    conjugates: ClassVar[bool] = False

    #: What declares the backend (an object with pluggy hookimpls), for a host that is not installed.
    declaration: ClassVar[Any] = None

    def __init__(self, registry: Registry | None = None) -> None:
        self.registry = registry if registry is not None else default_registry()

    # -- arrays -------------------------------------------------------------------------------

    @abstractmethod
    def array(self, array: Array) -> Any:
        """A constant of the same shape and dtype, which shares no memory with the array."""

    @abstractmethod
    def numpy(self, value: Any) -> Array:
        """A concrete array of the system as NumPy's, of the same shape and dtype; one of NumPy's as it is."""

    @abstractmethod
    def sin(self, x: Any) -> Any:
        """Of each element."""

    @abstractmethod
    def sum(self, x: Any) -> Any:
        """Of all elements, an array without axes."""

    def add(self, x: Any, y: Any) -> Any:
        """Of two arrays of one shape and dtype."""
        return x + y

    def multiply(self, x: Any, y: Any) -> Any:
        """Of a floating or complex array x with an array y of its shape, or without axes; y may be of integers."""
        return x * y

    # -- differentiation ----------------------------------------------------------------------

    @abstractmethod
    def vjp(
        self, function: Function, arrays: Sequence[Any]
    ) -> tuple[Sequence[Any], Callable[[Sequence[Any]], Sequence[Any]]]:
        """Evaluate a function, to be pulled back later: the way that a training step has it.

        Args:
            function: arrays ↦ a tuple of floating (or complex) arrays.
            arrays: where, constants or arrays that an outer program differentiates.

        Returns:
            (its outputs, ``pull``). ``pull`` takes a cotangent for each output and gives a gradient for each
            array, zeros where there is no influence. It may be called twice, and within a function that is
            differentiated itself: then what it gives is, too.
        """

    @abstractmethod
    def gradient(self, function: ArrayFunction, argnums: tuple[int, ...] = (0,)) -> Function:
        """The gradient by some arguments of a function whose output has no axes; may be taken again.

        Returns:
            A function of the same arguments that gives a tuple, one gradient for each of `argnums`.
        """

    def jvp(
        self, function: Function, arrays: Sequence[Any], tangents: Sequence[Any]
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """Forward mode: (outputs, their tangents) where arrays move along tangents."""
        self.leave_out("jvp")

    def hessian(self, function: ArrayFunction) -> ArrayFunction:
        """For a function of one vector (n,) whose output has no axes: the function that gives its (n, n) Hessian."""
        self.leave_out("hessian")

    # -- transformations ----------------------------------------------------------------------

    def vmap(self, function: Function) -> Function:
        """The function over the first axis of every argument and output."""
        self.leave_out("vmap")

    def compiled(self, function: Function) -> Function:
        """The compiled function; one that has no gradients in it is differentiated from outside, too."""
        self.leave_out("compiled")

    def changeable(self, array: Array) -> tuple[Any, Callable[[], None]]:
        """An array of this value that programs may differentiate by and change in place, and what overwrites it."""
        self.leave_out("changeable")

    def active(self) -> AbstractContextManager[Any]:
        """Entered around every program, in each thread: settings of the system that programs in float64 need."""
        return nullcontext()

    # -- words --------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.host or type(self).__name__

    def leave_out(self, what: str) -> NoReturn:
        """Skip.

        Raises:
            NotOfferedError: with the reason.
        """
        reason = self.reasons.get(what, f"no operation {what}() was given")
        raise NotOfferedError(f"{self.name}: {reason}")
