"""JAX's autodiff primitives, as core asks for them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradbridge.arrays import ALIGNED_FROM
from gradbridge.constants import constant_key
from gradbridge.errors import InputError, OutputError
from gradbridge.framework import Computation, Form, Framework, FrameworkBorder, Function, Program
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Array, ArraySpec, Traits
from gradbridge_jax.arrays import OnDevice, floating_dtype, is_key, native_dtype, to_native
from gradbridge_jax.programs import Compiling, JaxProgram
from gradbridge_jax.runtime import RUNTIME


class JaxFramework(OnDevice, Framework):
    """JAX, for one adapter.

    Args:
        label: of its model, for errors.
        jit: True, False, or ``"auto"``: compiled, unless the model cannot be traced.
        device: where it computes; None is where JAX likes.
        owns: whether an array is a parameter of the user's own model.
    """

    traits = Traits(
        takes_complex=True,
        has_forward_mode=True,
        has_vmap=True,
        has_higher_orders=True,
        compiles=True,
        gives_gradients=True,
        runtime=RUNTIME,
    )

    # Below this many parameters one flat argument, cut inside the program, is quicker than many (35 µs
    # against 69 µs for 57 of them in 4 arrays); above it the cuts cost copies (9.5 ms against 7.1 ms for 670k).
    packs_below = 16384

    host = "jax"

    def __init__(
        self,
        label: str,
        jit: bool | str,
        device: jax.Device | None,
        owns: Callable[[Any], bool] = lambda native: False,
    ) -> None:
        self.label, self.compiling, self.device, self._owns = label, Compiling(jit), device, owns

    # -- arrays at the border -----------------------------------------------------------------

    def asarray(self, array: Any, dtype: Any, place: str = "an array") -> Any:
        is_small = type(array) is np.ndarray and array.dtype.kind == "f" and array.nbytes < ALIGNED_FROM
        if is_small and dtype is not None and self.device is None:
            return np.array(array, dtype, order="C")  # by far the most arrays of a small model
        x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]
        native = to_native(array, dtype, x64, place)
        return native if self.device is None else jax.device_put(native, self.device)

    def take(self, array: Any, dtype: Any) -> Any:
        if type(array) is np.ndarray and self.device is None and array.flags.c_contiguous:
            x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]
            if native_dtype(array, dtype, x64, "an array") == array.dtype:
                return array  # a program reads it where it is
        return self.asarray(array, dtype)

    lend = asarray  # JAX may still read what it was lent after the computation, and hand it on as a result

    def asnumpy(self, native: Any) -> Array:
        array: Array = np.asarray(native)
        return array if array.dtype.kind in "fiubc" else array.astype(np.float32)

    def native(self, array: Any, dtype: Any) -> Any:
        x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]
        to = (
            native_dtype(array, dtype, x64, "an array")
            if jnp.issubdtype(array.dtype, jnp.inexact)
            else array.dtype
        )
        return array if array.dtype == to else array.astype(to)

    def border(self, layout: ParameterLayout, dtypes: Sequence[Any]) -> JaxBorder:
        return JaxBorder(self, layout, dtypes)

    # -- arrays inside a computation ----------------------------------------------------------

    def is_array(self, value: Any) -> bool:
        return isinstance(value, jax.Array)

    def is_inexact(self, native: Any) -> bool:
        return bool(jnp.issubdtype(native.dtype, jnp.inexact))

    def is_leaf(self, value: Any) -> bool:
        # A Python integer is one, too: a program serves for all of its values, where it can.
        return type(value) is int or hasattr(value, "__dlpack__") or is_key(value)

    def floating_dtype(self, name: str) -> Any:
        return floating_dtype(name)

    def output(self, value: Any) -> Any:
        is_number = isinstance(value, (np.ndarray, np.generic, int, float, complex))
        return jnp.asarray(value) if is_number else None

    def split(self, output: Any, label: str) -> tuple[list[Any], list[Any], Form]:
        floats, others, form = super().split(output, label)
        for array in others:
            if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == jnp.bool_):
                index = [i for i, yes in enumerate(form.floating) if not yes][others.index(array)]
                numbers = "the numbers of a key, jax.random.key_data(key)" if is_key(array) else "numbers"
                raise OutputError(f"output {index} of {label} has dtype {array.dtype}; return {numbers}")
        return floats, others, form

    def eye(self, size: int, like: Any) -> Any:
        return jnp.eye(size, dtype=like.dtype)

    def zeros(self, shape: tuple[int, ...], like: Any) -> Any:
        return jnp.zeros(shape, like.dtype)

    def constant_key(self, value: Any) -> Hashable | None:
        key = constant_key(value)
        if key is None and self.compiling.jit is True:
            raise InputError(
                f"{self.label} was given {type(value).__name__}, which may change between calls, so it cannot be "
                f"compiled in; leave jit= out, or pass arrays, numbers and strings"
            )
        return key

    # -- transforms ---------------------------------------------------------------------------

    def trace(self, fn: Computation, places: tuple[int, ...], reusable: bool, rows: Sequence[int]) -> Program:
        return JaxProgram(self.compiling, fn, places, reusable, self._owns)

    def vjp(self, fn: Function, primals: list[Any]) -> tuple[list[Any], Callable[[list[Any]], list[Any]]]:
        outputs, pull = jax.vjp(fn, list(primals))
        return outputs, lambda cotangents: pull(list(cotangents))[0]

    def jvp(
        self, fn: Function, primals: list[Any], tangents: list[Any], many: bool
    ) -> tuple[list[Any], list[Any]]:
        if not many:
            return jax.jvp(fn, (list(primals),), (list(tangents),))
        outputs, push = jax.linearize(fn, list(primals))
        return outputs, jax.vmap(push)(list(tangents))

    def vmap(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(fn)

    def shapes(self, fn: Computation, specs: Sequence[ArraySpec]) -> tuple[list[ArraySpec], Form]:
        forms: list[Form] = []

        def outputs(leaves: list[Any]) -> list[Any]:
            floats, others, form, _ = fn(leaves)
            forms.append(form)
            return form.merge(floats, others)

        given = [jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in specs]
        arrays = jax.eval_shape(outputs, given)
        return [ArraySpec(tuple(a.shape), _numpy_dtype(a.dtype)) for a in arrays], forms[-1]


class JaxBorder(FrameworkBorder):
    """The border of JAX's arrays, which NumPy reads where they are."""

    def __init__(self, framework: JaxFramework, layout: ParameterLayout, dtypes: Sequence[Any]) -> None:
        super().__init__(framework, layout, dtypes)
        self.view = framework.asnumpy  # type: ignore[method-assign]  # as it is: one call of ours less


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    return np.dtype(dtype) if np.dtype(dtype).kind in "fiubc" else np.dtype(np.float32)
