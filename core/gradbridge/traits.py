"""What is known of a guest, and of an array, before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbridge.forks import Runtime


@dataclass(frozen=True)
class Traits:
    """What a guest is like, as far as it is known before anything is computed.

    Attributes:
        takes_complex: whether inputs and outputs may be complex. Law 1 for them: a cotangent c of a
            complex array y pairs with a tangent dy as Re Σ c dy, so that a gradient is
            ∂/∂x - i ∂/∂y (autograd, JAX), not its conjugate (PyTorch, TensorFlow); gradients are
            complex for complex arguments and real for real ones. A guest that says False is
            never handed any.
        conjugates: whether a framework's own gradients are the conjugates of those.
        has_forward_mode: whether it may push tangents.
        has_vmap: whether it may compute for many cotangents, tangents or rows at once.
        has_higher_orders: whether its gradients can be differentiated again: a `vjp` may be taken within
            another. Where it does not say so a derivative of a derivative is refused, since a gradient
            that is a constant to the outer recording would make it silently zero.
        compiles: whether it compiles a program for each structure of a call.
        packs: whether it would rather take small weights as the flat vector of all of them, where
            the host has one (`CallSpec.packed`).
        checks_jvp: whether a bridge compares the first JVP with `backward`, to be sure that one is
            the transpose of the other. Not where users write both.
        is_gradient_cheap: whether a gradient costs about one backward. False where it costs an
            evaluation for each number, so that nobody takes one to look at a model.
        gives_gradients: whether the gradients that it returns are held by nobody else, so that a host may keep them
            as they are. Else they are copied.
        takes_placed: whether inputs may be arrays that live elsewhere (`gradbridge.placed`). A guest that
            says False is handed the arrays that they stand for.
        runtime: what it starts in a process and a forked child does not have; None where it has no threads.
    """

    takes_complex: bool = False
    conjugates: bool = False
    has_forward_mode: bool = False
    has_vmap: bool = False
    has_higher_orders: bool = False
    compiles: bool = False
    packs: bool = False
    checks_jvp: bool = True
    is_gradient_cheap: bool = True
    gives_gradients: bool = False
    takes_placed: bool = False
    runtime: Runtime | None = None


class ArraySpec:
    """Shape and dtype of an array that need not exist. No dataclass: those are trees of arrays here.

    Args:
        shape: of the array.
        dtype: NumPy's, where a user gives or gets one; on its way to `Framework.shapes` the framework's own.
    """

    __slots__ = ("dtype", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype = tuple(shape), dtype

    @classmethod
    def of(cls, array: Any) -> ArraySpec:
        """That of an array of any kind, or of a number; bfloat16 is what it widens to, float32."""
        if not hasattr(array, "shape"):
            array = np.asarray(array)
        name = getattr(array.dtype, "name", None) or str(array.dtype).rsplit(".", 1)[-1]
        return cls(tuple(int(n) for n in array.shape), np.dtype("float32" if name == "bfloat16" else name))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArraySpec) and (self.shape, self.dtype) == (other.shape, other.dtype)

    def __hash__(self) -> int:
        return hash((self.shape, self.dtype))

    def __repr__(self) -> str:
        return f"ArraySpec({self.shape}, {str(self.dtype)!r})"
