"""JAX as a host: programs under jit, grad, vmap and all that JAX transforms them by, through any guest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from gradbridge import trees
from gradbridge.arrays import aligned_copy
from gradbridge.borders import host_dtype
from gradbridge.errors import HostError, InputError, NotDifferentiableError
from gradbridge.execution.evaluation import Call
from gradbridge.layout import Array
from gradbridge.lifting import LiftingHost, Node
from gradbridge.lifting.host import Reading
from gradbridge.protocol import ArraySpec
from gradbridge_jax import callbacks as callbacks  # what they register
from gradbridge_jax import rules as rules
from gradbridge_jax.arrays import is_key
from gradbridge_jax.primitives import apply_p, specs_of, varying
from gradbridge_jax.runs import latest
from gradbridge_jax.runtime import RUNTIME

#: JAX has no wider ones.
_WIDEST = {"f": np.dtype(np.float64), "c": np.dtype(np.complex128)}

_UNKNOWN = object()


class JaxHost(LiftingHost):
    """Lifts adapters into functions that JAX differentiates, maps and compiles, to any order."""

    name: ClassVar[str] = "jax"
    lends: ClassVar[bool] = True

    def follows(self, value: Any) -> bool:
        return isinstance(value, jax.core.Tracer)

    def owns(self, value: Any) -> bool:
        return isinstance(value, jax.Array)

    def constant(self, value: Any) -> Any:
        return jax.lax.stop_gradient(value)

    def array(self, array: Array, is_own: bool = True) -> Any:
        if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype.kind != "b":
            raise InputError(f"JAX has no arrays of dtype {array.dtype}; convert it to numbers")
        widest = _WIDEST.get(array.dtype.kind, array.dtype)
        dtype = jax.dtypes.canonicalize_dtype(
            array.dtype if array.dtype.itemsize <= widest.itemsize else widest
        )
        cast = array.astype(dtype, copy=False) if is_own else aligned_copy(array, dtype)
        if array.dtype.kind in "iu" and array.dtype != dtype and not np.array_equal(cast, array):
            raise InputError(
                f"an array of {array.dtype} has numbers that do not fit into {dtype}, which is what JAX has while "
                f"jax_enable_x64 is off; turn it on"
            )
        return jax.device_put(cast)

    def numpy(self, value: Any) -> Any:
        if isinstance(value, jax.core.Tracer):
            raise NotDifferentiableError(
                "the numbers of an array were asked for that JAX traces, and that has none yet; ask outside of "
                "jit, grad and vmap"
            )
        if not isinstance(value, jax.Array) or is_key(value):
            return value
        array = np.asarray(value)
        return array if array.dtype.kind in "fiubc" else array.astype(np.float32)

    def spec(self, array: Any) -> ArraySpec:
        if not all(isinstance(n, int) for n in array.shape):
            raise HostError(
                f"an array of shape {array.shape} was handed to a bridge, with sizes that are not known before the program "
                f"runs (jax.export), and a guest runs at known ones; export a program for each size"
            )
        return ArraySpec(array.shape, array.dtype if is_key(array) else _known_dtype(array.dtype))

    def apply(self, call: Call, arguments: Sequence[Any], reading: Reading) -> Any:
        precisions = call.settings.precisions
        # Params that are all integers say nothing of a precision, and here there may be no float64.
        if call.dtype == np.float64 and not jax.config.jax_enable_x64 and precisions:  # type: ignore[attr-defined]
            single = np.dtype(np.float32)
            call = replace(call.by(precisions.of(single).adapter), dtype=single)
        return super().apply(call, arguments, reading)

    def lift(self, node: Node, operands: Sequence[Any]) -> Any:
        RUNTIME.require()
        label = node.call.root.adapter.label
        for operand in operands:
            if is_key(operand):
                raise InputError(
                    f"{label} was given a typed key of jax.random, which means something to JAX alone; hand it numbers, "
                    f"jax.random.key_data(key)"
                )
        given, operands = operands, _together(list(map(_widened, operands)))
        latest.structure = _UNKNOWN
        *leaves, _ = apply_p.bind(*operands, node=node, wrt=(), levels=())
        if latest.structure is _UNKNOWN:  # JAX has the shapes of an earlier trace
            specs_of(node, (), list(map(jax.typeof, operands)))
        structure, latest.structure = latest.structure, None
        leaves = _narrowed(leaves, given, node.call)
        return leaves[0] if structure is None else trees.unflatten(structure, leaves)

    def inline(self, call: Call, native: Callable[[Sequence[Any]], Any], leaves: Sequence[Any]) -> Any:
        def own(output: Any) -> Any:
            if not isinstance(output, jax.Array):
                return output
            dtype = host_dtype(_known_dtype(output.dtype), call.dtype)
            return _cast(output, jax.dtypes.canonicalize_dtype(dtype))

        outputs = native([x if is_key(x) else _widened(x) for x in leaves])
        flat, structure = trees.flatten(outputs, opens=True)
        narrowed = _narrowed(list(map(own, flat)), leaves, call)
        return narrowed[0] if not trees.is_container(outputs) else trees.unflatten(structure, narrowed)


def _known_dtype(dtype: Any) -> np.dtype[Any]:
    """A dtype, or what NumPy has for it: bfloat16 and smaller ones are computed with as float32."""
    dtype = np.dtype(dtype)
    return dtype if dtype.kind in "fiubc" else np.dtype(np.float32)


def _narrowed(leaves: list[Any], given: Sequence[Any], call: Call) -> list[Any]:
    """Outputs in the host's own dtype, where that is one that NumPy does not have."""
    floating = [x.dtype for x in given if not is_key(x) and jnp.issubdtype(x.dtype, jnp.floating)]
    weights = floating[: call.first_input] if call.first_input else floating[:1]
    if not weights or any(dtype.kind in "f" for dtype in weights):
        return leaves
    dtype = jnp.result_type(*weights)
    return [_cast(y, dtype) if jnp.issubdtype(y.dtype, jnp.floating) else y for y in leaves]


def _widened(array: Any) -> Any:
    return _cast(array, _known_dtype(array.dtype))


def _cast(array: Any, dtype: Any) -> Any:
    return array if array.dtype == dtype else array.astype(dtype)


def _together(operands: list[Any]) -> list[Any]:
    """Operands that differ over the same devices of a `shard_map`, so that gradients are summed over the others."""
    axes = frozenset[Any]().union(*(varying(jax.typeof(x)) for x in operands))
    return [
        _varied(x, tuple(axes - own)) if axes - own else x
        for x, own in ((x, varying(jax.typeof(x))) for x in operands)
    ]


def _varied(array: Any, axes: tuple[Any, ...]) -> Any:
    cast = getattr(jax.lax, "pcast", None)
    return jax.lax.pvary(array, axes) if cast is None else cast(array, axes, to="varying")  # before jax 0.9
