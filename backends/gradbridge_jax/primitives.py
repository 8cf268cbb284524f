"""Three primitives of JAX that lift every node: apply, pull and push, closed over each other.

::

    apply(*operands, [token of the parent])   -> *outputs, token    the model, or a gradient of it
    pull (*operands, token, *cotangents)      -> cᵀJ                linear in the cotangents; transposed it is a push
    push (*operands, token, *tangents)        -> J t                linear in the tangents; transposed it is a pull

``custom_vjp`` refuses forward mode, so they are primitives, with a rule for each transformation (`rules` has those of
derivatives). Run eagerly they call the guest in the caller's thread, and nobody asks for shapes; lowered each is one
callback (`callbacks`), and vmap lays a batch around it (`runs`). What an apply recorded travels as a token, numbers
that name it; so a gradient costs one forward under jit, too.

Their static parameters:

    node     what is run
    wrt      the operands that it may be pulled back to; of a pull or push, those that it is about
    levels   the batches around it
    outputs  of a pull or push: shape and dtype of each output of the node
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import effects
from jax.extend.core import Primitive
from jax.interpreters import batching

from gradbridge.arrays import aligned_copy
from gradbridge.errors import HostError, OutputError, Unsupported
from gradbridge.layout import Array
from gradbridge.lifting import Node
from gradbridge.protocol import ArraySpec
from gradbridge_jax import runs
from gradbridge_jax.runs import TOKEN, Level, Levels, Specs, bare_shape, inexact, latest, lead_of
from gradbridge_jax.runtime import RUNTIME

apply_p, pull_p, push_p = (Primitive(f"gradbridge_{name}") for name in ("apply", "pull", "push"))

#: What each of them runs.
RUNS = {apply_p: runs.apply, pull_p: runs.pull, push_p: runs.push}


# -- shapes ----------------------------------------------------------------------------------------


def specs_of(node: Node, levels: Levels, avals: Sequence[Any]) -> list[ArraySpec]:
    """Of the outputs of a node without batches; sets `latest`, as a run does.

    Raises:
        HostError: they are not known before it runs.
        GuestError, InputError: such operands do not fit the model.
    """
    operands = [
        ArraySpec(bare_shape(aval.shape, levels, i), np.dtype(aval.dtype))
        for i, aval in enumerate(avals[: node.operands])
    ]
    try:
        specs, latest.structure = node.specs(operands)
    except Unsupported as error:
        raise HostError(
            f"{node.call.root.adapter.label} was called while JAX traces a program (jit, scan, eval_shape …), which is to "
            f"know the shapes of everything before anything runs, and {error}; say them with outputs=(shape, dtype), an "
            f"array as an example, or a function of the inputs, where the model is bridged; or call it outside of jit"
        ) from error
    return specs


def _avals(avals: Sequence[Any], lead: tuple[int, ...], specs: Sequence[Any]) -> list[Any]:
    """Of results: they differ over the devices of a `shard_map` where any operand does."""
    like = max(avals, key=lambda aval: len(varying(aval)), default=None)
    return [
        jax.core.ShapedArray((*lead, *shape), jax.dtypes.canonicalize_dtype(dtype))
        if like is None or not varying(like)
        else like.update(shape=(*lead, *shape), dtype=jax.dtypes.canonicalize_dtype(dtype), weak_type=False)
        for shape, dtype in specs
    ]


def varying(aval: Any) -> frozenset[Any]:
    """The axes of a mesh over which an array differs within `shard_map`."""
    own = getattr(aval, "mat", None)
    return own.varying if own is not None else getattr(aval, "vma", frozenset())  # before jax 0.10


def apply_avals(*avals: Any, node: Node, wrt: tuple[int, ...], levels: Levels) -> list[Any]:
    """Of the results of an apply."""
    specs = [(s.shape, s.dtype) for s in specs_of(node, levels, avals)]
    return _avals(avals, lead_of(levels), [*specs, TOKEN])


def pull_avals(*avals: Any, node: Node, wrt: tuple[int, ...], levels: Levels, outputs: Specs) -> list[Any]:
    """Of the results of a pull."""
    of = [(bare_shape(avals[i].shape, levels, i), avals[i].dtype) for i in wrt]
    return _avals(avals, lead_of(levels), of)


def push_avals(*avals: Any, node: Node, wrt: tuple[int, ...], levels: Levels, outputs: Specs) -> list[Any]:
    """Of the results of a push."""
    return _avals(avals, lead_of(levels), [outputs[i] for i in inexact(outputs)])


AVALS = {apply_p: apply_avals, pull_p: pull_avals, push_p: push_avals}


# -- eagerly ---------------------------------------------------------------------------------------


def run_eagerly(primitive: Primitive, operands: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    """Call the guest, in this thread."""
    RUNTIME.require()
    levels = params["levels"]
    if 0 in lead_of(levels):
        avals = AVALS[primitive](*map(jax.typeof, operands), **params)
        results = [np.zeros(aval.shape, aval.dtype) for aval in avals]
    else:
        with jax.transfer_guard_device_to_host("allow"):  # what crosses here is meant to
            arrays = [np.asarray(operand) for operand in operands]
        node = params["node"]
        results = [own(array, node) for array in RUNS[primitive](operands=arrays, views=True, **params)]
    with jax.transfer_guard_host_to_device("allow"):
        return jax.device_put(results, _device(operands))  # type: ignore[no-any-return]


def own(array: Array, node: Node) -> Array:
    """A copy of a result that JAX can take as it is: one copy, where there would be two of a large one."""
    fit = canonical(array, node)
    return fit if fit is not array else aligned_copy(array, array.dtype)


def canonical(array: Array, node: Node, dtype: np.dtype[Any] | None = None) -> Array:
    """A result in the dtype that JAX has for it: in that of 32 bits while it has no other.

    Args:
        array: the result.
        node: that it is of.
        dtype: that was announced; None for the one that JAX would give it.

    Raises:
        OutputError: an integer does not fit there.
    """
    dtype = jax.dtypes.canonicalize_dtype(array.dtype) if dtype is None else dtype
    if array.dtype == dtype:
        return array
    cast = array.astype(dtype)
    if array.dtype.kind in "iu" and not np.array_equal(cast, array):
        raise OutputError(
            f"{node.call.root.adapter.label} returned an array of {array.dtype} with numbers that do not fit into "
            f"{dtype}, which is what there is while jax_enable_x64 is off; turn it on, or return smaller ones"
        )
    return cast


def _device(operands: Sequence[Any]) -> Any:
    """Where operands were put on purpose; None is where JAX likes."""
    for operand in operands:
        if isinstance(operand, jax.Array) and operand.committed and len(operand.devices()) == 1:
            return next(iter(operand.devices()))
    return None


# -- vmap ------------------------------------------------------------------------------------------


def _batched(
    primitive: Primitive, operands: Sequence[Any], dims: Sequence[Any], params: dict[str, Any]
) -> Any:
    size = next(x.shape[d] for x, d in zip(operands, dims) if d is not None)
    moved = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(operands, dims)]
    level = Level(size, tuple(d is not None for d in dims))
    results = primitive.bind(*moved, **{**params, "levels": (level, *params["levels"])})
    return results, [0] * len(results)


class OncePerCall(effects.Effect):
    """Of a call that draws new numbers or moves a state: it is neither dropped nor merged, hoisted or made again."""

    def __repr__(self) -> str:
        return "a gradbridge call that draws new numbers (noise='per_call') or moves a state of its own"


for _allowed in (
    effects.lowerable_effects,
    effects.control_flow_allowed_effects,
    effects.custom_derivatives_allowed_effects,
):
    _allowed.add_type(OncePerCall)

_ONCE, _PURE = frozenset([OncePerCall()]), frozenset[Any]()


def _effects(primitive: Primitive, node: Node) -> frozenset[Any]:
    call = node.call
    counts = call.adapter.moves or (
        call.settings.noise == "per_call" and call.settings.draw_noise is not None
    )
    return _ONCE if counts and node.parent is None and primitive is apply_p else _PURE


def _register(primitive: Primitive) -> None:
    primitive.multiple_results = True
    primitive.def_effectful_abstract_eval(
        lambda *avals, **params: (AVALS[primitive](*avals, **params), _effects(primitive, params["node"]))
    )
    primitive.def_impl(lambda *operands, **params: run_eagerly(primitive, operands, params))
    batching.primitive_batchers[primitive] = lambda operands, dims, **params: _batched(
        primitive, operands, dims, params
    )


for _primitive in RUNS:
    _register(_primitive)

# JAX remembers the shapes of what it staged by the parameters, thousands of them, and a node has its model with it: what
# it is told of here it refers to weakly.
with suppress(ImportError, AttributeError):
    from jax._src import util as _util

    _util.weakref_cache_key_types.add(Node)
