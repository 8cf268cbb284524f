"""The lower protocol: what core asks of a framework, and of one kind of its models.

A `Framework` is the autodiff primitives of one system, and a `Model` says how one kind of native
model is called with given weights. `gradbridge.execution.functional` makes an `Adapter` of the two.

Below this line there are only leaves: the weights (one each, or one packed vector), then the input
arrays, then what the model adds, key bits or state. A computation is a pure function of ALL of them::

    fn(leaves) -> (floats, others, form, after)

the floating outputs, the others, how they were together, and the state that is left behind; it
closes over no array. So whoever differentiates, maps or compiles it decides about each leaf alone.

The least that a framework must say is `asarray`, `asnumpy`, `is_array`, `is_inexact` and `vjp`. The
rest has a default that works, or says why it cannot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.admission import as_array
from gradbridge.borders import Border
from gradbridge.constants import constant_key
from gradbridge.errors import GradbridgeError, GuestError, OutputError, Unsupported
from gradbridge.layout import ParameterLayout, dtype_name
from gradbridge.model import Model
from gradbridge.program import (
    ONE_ARRAY,
    Computation,
    Form,
    Function,
    Program,
    RunAgain,
    TapeProgram,
    filled,
)
from gradbridge.traits import ArraySpec, Traits
from gradbridge.wording import in_short

__all__ = [
    "ONE_ARRAY",
    "Computation",
    "Form",
    "Framework",
    "FrameworkBorder",
    "Function",
    "Model",
    "Program",
    "RunAgain",
    "TapeProgram",
    "filled",
]


class Framework(ABC):
    """The autodiff primitives of one system; an object per adapter, which may hold its device."""

    #: What it is like. `packs` is for core to say, from `packs_below`.
    traits: Traits = Traits()

    #: Fewer parameters than this, all of one dtype, cross as one leaf where the host has a flat vector.
    packs_below: int = 0

    #: Whether a model may return what is not an array next to arrays: where its function runs in every call, and no
    #: trace of it answers later calls with the objects of an earlier one.
    passes_others: bool = False

    #: The backend in whose programs its computations can stand as a part: hosts of that name inline its models.
    host: str = ""

    # -- arrays at the border -----------------------------------------------------------------

    @abstractmethod
    def asarray(self, array: Any, dtype: Any) -> Any:
        """An array as what computations take: the only cast on the way in.

        Always the guest's own afterwards: a copy, unless nobody can change `array` in place.

        Args:
            array: NumPy's, or any DLPack producer's.
            dtype: the framework's, what floating numbers are cast to (complex ones: in that precision);
                None keeps theirs.

        Raises:
            InputError: the framework has no such dtype.
        """

    @abstractmethod
    def asnumpy(self, native: Any) -> np.ndarray[Any, Any]:
        """A native array as NumPy's, which may share its memory: `Border` copies where it must.

        What NumPy does not have (bfloat16) widens to float32. Off its graph and device.
        """

    def lend(self, array: Any, dtype: Any) -> Any:
        """`asarray` for the time of one computation that writes to nothing: no copy where none is needed."""
        return self.asarray(array, dtype)

    def take(self, array: Any, dtype: Any) -> Any:
        """`asarray` of an array that stays as it is for as long as what is recorded of it lives: it need not be copied.

        Only for frameworks that never write to what they are given.
        """
        return self.asarray(array, dtype)

    def native(self, array: Any, dtype: Any) -> Any:
        """One of its own arrays, traced or not, in a dtype (as for `asarray`): part of the program that calls."""
        raise NotImplementedError

    def part(self, computation: Computation, program: Callable[[], Program]) -> Computation:
        """What stands in a program of the host in place of a computation; this itself, if it is not better compiled.

        Args:
            computation: leaves ↦ (floats, others, form, after).
            program: gives it as a program that is kept, and not pulled back.
        """
        return computation

    def border(self, layout: ParameterLayout, dtypes: Sequence[Any]) -> FrameworkBorder:
        """How a flat vector becomes weights, and gradients one; for frameworks with a quicker way."""
        return FrameworkBorder(self, layout, dtypes)

    # -- arrays inside a computation ----------------------------------------------------------

    @abstractmethod
    def is_array(self, value: Any) -> bool:
        """Whether a value is a native array, traced or not."""

    @abstractmethod
    def is_inexact(self, native: Any) -> bool:
        """Whether it holds floating or complex numbers: what can have a gradient."""

    def is_leaf(self, value: Any) -> bool:
        """Whether an input that is not a NumPy array is a leaf of the computation rather than a constant of it.

        Arrays of other libraries are, and they have a dtype; asked for nothing else than these on most calls.
        """
        return hasattr(value, "__dlpack__")

    def output(self, value: Any) -> Any:
        """A leaf of what a model returned as a native array, where it is a number or the like.

        Args:
            value: no native array.

        Returns:
            None where it is nothing of that kind.
        """
        return None

    def beside(self, value: Any) -> Any:
        """What is not an array, and was returned next to arrays, as the caller is given it."""
        return value

    def conj(self, native: Any) -> Any:
        """The complex conjugate of what is complex."""
        return native.conj() if self.is_complex(native) else native

    def is_complex(self, native: Any) -> bool:
        """Whether it holds complex numbers."""
        return "complex" in str(native.dtype)

    def dtype_name(self, native: Any) -> str:
        """Its dtype as NumPy calls it, for the layout of parameters."""
        return dtype_name(native)

    def floating_dtype(self, name: str) -> Any:
        """Its dtype of a name such as ``"float64"``.

        Raises:
            OptionError: it has none of that name.
        """
        return np.dtype(name)

    def cast(self, native: Any, like: Any) -> Any:
        """In the dtype of another one."""
        return native.astype(like.dtype)

    def reshape(self, native: Any, shape: tuple[int, ...]) -> Any:
        """In another shape."""
        return native.reshape(shape)

    def row(self, native: Any) -> Any:
        """A batch of one: a new first axis."""
        return native[None]

    def eye(self, size: int, like: Any) -> Any:
        """The identity matrix in the dtype, and on the device, of another array."""
        return self.asarray(np.eye(size), like.dtype)

    def zeros(self, shape: tuple[int, ...], like: Any) -> Any:
        """Zeros in the dtype, and on the device, of another array."""
        return self.asarray(np.zeros(shape), like.dtype)

    def unpacked(self, vector: Any, layout: ParameterLayout) -> list[Any]:
        """The packed weights, cut within a computation."""
        return layout.cut(vector)

    def split(self, output: Any, label: str) -> tuple[list[Any], list[Any], Form]:
        """What a model returned → (floating leaves, other leaves, how they were together).

        Raises:
            OutputError: a leaf is not an array.
        """
        leaves, structure = ([output], None) if self.is_array(output) else trees.flatten(output)
        others_beside: dict[int, Any] = {}
        for index, leaf in enumerate(leaves):
            if self.is_array(leaf):
                continue
            leaves[index] = self.output(leaf)
            if leaves[index] is None:
                if self.passes_others and len(leaves) > 1:
                    others_beside[index] = self.beside(leaf)
                    continue
                raise OutputError(
                    f"output {index} of {label} is a {type(leaf).__name__}; a bridged model returns an array, or "
                    f"a tuple, list, dict or dataclass of arrays: drop the rest or make it an array"
                )
        if others_beside and structure is not None:
            structure = trees.set_beside(structure, others_beside)
            leaves = [leaf for index, leaf in enumerate(leaves) if index not in others_beside]
        if not leaves:
            raise OutputError(
                f"{label} returned no array; a bridged model returns an array or a tree of arrays"
            )
        floating = tuple(bool(self.is_inexact(leaf)) for leaf in leaves)
        floats = [leaf for leaf, yes in zip(leaves, floating) if yes]
        others = [leaf for leaf, yes in zip(leaves, floating) if not yes]
        if structure is not None and structure.num_nodes == 1:
            structure = None  # one number alone
        return floats, others, Form(structure, floating)

    def constant_key(self, value: Any) -> Hashable | None:
        """What tells one constant from another; None where nothing can."""
        return constant_key(value)

    # -- transforms ---------------------------------------------------------------------------

    def trace(self, fn: Computation, places: tuple[int, ...], reusable: bool, rows: Sequence[int]) -> Program:
        """A program of a computation.

        Args:
            fn: the computation.
            places: of the leaves that it is pulled back to; empty where nothing is recorded.
            reusable: whether core keeps the program, so that compiling pays.
            rows: places of the leaves whose first axis may have any length; a compiler may leave it open.
        """
        return TapeProgram(self.vjp, fn, places)

    @abstractmethod
    def vjp(self, fn: Function, primals: list[Any]) -> tuple[list[Any], Callable[[list[Any]], Sequence[Any]]]:
        """Evaluate a function and return its pullback; where higher orders are to be had, differentiable itself.

        Args:
            fn: natives ↦ floating natives.
            primals: natives.

        Returns:
            (outputs, pull): pull takes a cotangent per output and returns a gradient per primal, zeros
            (or None) where there is no influence. By the framework's own convention of complex gradients.
        """

    def jvp(
        self, fn: Function, primals: list[Any], tangents: list[Any], many: bool
    ) -> tuple[list[Any], list[Any]]:
        """Evaluate a function and push tangents through it.

        Args:
            fn: natives ↦ floating natives.
            primals: natives.
            tangents: one per primal; with `many` each with a leading axis, which those of the outputs get.

        Returns:
            (outputs, tangents), a tangent per output, None for zeros.

        Raises:
            Unsupported: it has none for this function.
        """
        raise Unsupported("the framework has no forward mode")

    def vmap(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """A function of rows → a function of arrays of rows.

        Raises:
            Unsupported: it has no such transform.
        """
        raise Unsupported("the framework maps no function over rows")

    def shapes(self, fn: Computation, specs: Sequence[ArraySpec]) -> tuple[list[ArraySpec], Form]:
        """Shapes and dtypes of a computation's outputs, in the model's order, without computing.

        Here by one evaluation at arrays of ones, of which the adapter tells: for frameworks that know them no sooner.

        Raises:
            Unsupported: a size is not known.
        """
        if any(None in spec.shape for spec in specs):
            raise Unsupported(
                "the framework knows shapes only after it has computed, at inputs of known sizes"
            )
        ones = [self.asarray(np.ones(spec.shape, dtype_name(spec)), spec.dtype) for spec in specs]
        floats, others, form, _ = fn(ones)
        return [ArraySpec(tuple(x.shape), x.dtype) for x in form.merge(floats, others)], form


class FrameworkBorder(Border):
    """The border of a framework's arrays.

    Args:
        framework: casts.
        layout: of the weights.
        dtypes: of each weight in the computation, the framework's.

    Attributes:
        label: what errors call the model.
    """

    label = "the model"

    def __init__(self, framework: Framework, layout: ParameterLayout, dtypes: Sequence[Any]) -> None:
        super().__init__(layout)
        self.framework, self.dtypes = framework, tuple(dtypes)

    def cut(self, vector: Any) -> Sequence[Any]:
        """(P,) → one native per weight."""
        return [self.framework.asarray(w, d) for w, d in zip(self.layout.cut(vector), self.dtypes)]

    def view(self, native: Any) -> Any:
        """As NumPy's array, which may share its memory."""
        if type(native) is np.ndarray:
            return native
        if isinstance(native, (np.ndarray, np.generic)):
            return as_array(native, "an array of the model")
        try:
            return self.framework.asnumpy(native)
        except GradbridgeError:
            raise
        except Exception as error:  # the model's: a lazy framework computes only now
            raise GuestError(
                f"{self.label} failed when the numbers of its result were asked for: {in_short(error)}"
            ) from error
