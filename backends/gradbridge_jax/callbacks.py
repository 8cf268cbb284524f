"""The host's primitives in compiled programs: one callback each, and who may not be called back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_context
from jax.interpreters import mlir

from gradbridge.errors import OutputError, ReentryError
from gradbridge.layout import Array
from gradbridge.lifting import Node
from gradbridge_jax.primitives import RUNS, canonical, push_p
from gradbridge_jax.runs import inexact, lead_of
from gradbridge_jax.runtime import RUNTIME


def lowered(primitive: Any, ctx: Any, operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """A primitive in a program that is being compiled.

    Raises:
        ReentryError: the guest is JAX's own, and would be called back by a program that waits for it.
        HigherOrderError: it pushes tangents, which the guest can do in no way.
    """
    node: Node = params["node"]
    platforms = tuple(ctx.module_context.platforms)
    blocks = not may_be_called_back(platforms)
    if blocks and node.call.root.adapter.traits.runtime is RUNTIME:
        raise ReentryError(_reentry(node))
    if primitive is push_p:
        require_pushes(node, params["wrt"], params["outputs"])
    callback = called_back(RUNS[primitive], params, ctx.avals_out, blocks)
    # What draws numbers in each call, or moves a state, is called as often as the program says.
    root = node.call.root.adapter
    effects = root.stochastic or root.moves
    context = ctx.module_context.axis_context
    if platforms == ("cpu",) and getattr(context, "num_devices", 0) == 1:
        # As JAX does, but for its own look at the results: 20 µs a callback, and they are looked at here.
        ctx.module_context.add_host_callback(callback)
        index = np.uint64(len(ctx.module_context.host_callbacks) - 1)
        call = jax.ffi.ffi_lowering("xla_ffi_python_cpu_callback", has_side_effect=effects)
        return call(ctx, *operands, index=index)
    results, _, _ = mlir.emit_python_callback(
        ctx,
        callback,
        None,
        list(operands),
        ctx.avals_in,
        ctx.avals_out,
        has_side_effect=effects,
        sharding=_sharding(context, ctx.avals_out),
    )
    return results


def called_back(
    run: Callable[..., list[Array]], params: dict[str, Any], avals: Sequence[Any], blocks: bool
) -> Callable[..., Sequence[Array]]:
    """What a compiled program calls. Its operands are copies already, which nobody else has.

    Args:
        run: one of `RUNS`.
        params: of the primitive.
        avals: of the results, as they were announced.
        blocks: whether JAX cannot be called within.
    """
    node, announced = params["node"], [(aval.shape, np.dtype(aval.dtype)) for aval in avals]
    run = functools.partial(run, **params, views=True)

    def fitted(found: Sequence[Array]) -> tuple[Array, ...]:
        if [(array.shape, array.dtype) for array in found] == announced:
            return tuple(found)
        came = [array.shape for array in found]
        if came != [shape for shape, _ in announced]:
            raise OutputError(
                f"{node.call.root.adapter.label} returned outputs of shapes {came[:-1]} where "
                f"{[shape for shape, _ in announced[:-1]]} were announced, by outputs= or by the model itself"
            )
        return tuple([canonical(array, node, dtype) for array, (_, dtype) in zip(found, announced)])

    if 0 in lead_of(params["levels"]):
        return lambda *operands: tuple([np.zeros(*one) for one in announced])
    if not blocks:
        return lambda *operands: fitted(run(operands))

    def callback(*operands: Array) -> tuple[Array, ...]:
        with RUNTIME.waiting():
            return fitted(run(operands))

    return callback


def require_pushes(node: Node, wrt: tuple[int, ...], outputs: Any) -> None:
    """Make sure that a guest can push tangents, before a program runs that does.

    Raises:
        HigherOrderError
    """
    if node.call.adapter.refusal("pushforward"):
        node.derivative(wrt, tuple(i in set(inexact(outputs)) for i in range(len(outputs))))


def may_be_called_back(platforms: tuple[str, ...]) -> bool:
    """Whether JAX can be called within a callback of its own programs.

    Args:
        platforms: that the program is for.
    """
    return (
        platforms == ("cpu",)
        and not jax.config.read("jax_cpu_enable_async_dispatch")  # type: ignore[no-untyped-call]
        and _runs_in_the_calling_thread()
    )


@functools.cache
def _runs_in_the_calling_thread() -> bool:
    """Whether programs on the CPU are over when their call returns. The flag says so only where it was set in time.

    One that takes some milliseconds is looked at as soon as its call has returned, three times.
    """
    with eval_context(), jax.default_device(jax.devices("cpu")[0]):
        program = jax.jit(lambda x: jax.lax.fori_loop(0, 300, lambda _, y: jnp.tanh(y @ y), x))
        array = jnp.ones((128, 128), jnp.float32)
        program(array).block_until_ready()
        return all(program(array).is_ready() for _ in range(3))


def _reentry(node: Node) -> str:
    adapter, settings = node.call.root.adapter, node.call.settings
    if adapter.stochastic or adapter.moves:
        why = "draws random numbers or moves a state of its own"
    elif settings.checks_finite:
        why = "is to have its params looked at (check_finite=True)"
    elif adapter.shares_state:
        why = (
            "reads statistics that another bridge, in train mode, moves, and in the program they would stay as they are now "
            "(if they may, gradbridge.bridge(f.model(params)) is a model of its own, which can be a part of it)"
        )
    else:
        why = "cannot stand in the program as a part of it (rows_per_chunk=, or a precision that needs jax_enable_x64)"
    return (
        f"{adapter.label} is a JAX model, and was called in a program that JAX compiles (jit, scan, cond …). It {why}, so "
        f"the program would have to call it back, and JAX waits for a callback with the threads that the model needs. "
        f"{RUNTIME.reentry_cure}; or call it outside of jit, where it works"
    )


def _sharding(context: Any, avals: Sequence[Any]) -> Any:
    """In a program for several devices: one call for all of an array (or, within `shard_map`, for each part of it)."""
    try:
        from jax._src.callback import _callback_op_sharding
    except ImportError:
        return None
    each = [
        _callback_op_sharding(context, None, [aval]) for aval in avals
    ]  # of several some versions count one
    if not hasattr(each[0], "shardings"):
        return each[0]
    return type(each[0])(type(each[0].shardings)(part for one in each for part in one.shardings))


def _lowering(primitive: Any) -> Callable[..., Any]:
    return lambda ctx, *operands, **params: lowered(primitive, ctx, operands, params)


for _primitive in RUNS:
    mlir.register_lowering(_primitive, _lowering(_primitive))
