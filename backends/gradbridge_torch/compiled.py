"""A node within a program that torch compiles: two operations that it takes as they stand, with shapes known before.

They carry nothing but tensors: what a node recorded waits in a store, and its number is one of the results. Each has a
fixed number of tensors, since torch's old map takes no lists. Reverse mode alone: forward mode and maps of such an
operation are refused, where torch would make tangents zero without a word.
"""

from __future__ import annotations

import itertools
import threading
import uuid
import weakref
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch._C._functorch import TransformType
from torch._functorch.utils import enable_single_level_autograd_function
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import _SingleLevelFunction

from gradbridge.errors import HostError, OutputError
from gradbridge.layout import Array
from gradbridge.lifting import Node, Run, Store
from gradbridge.lifting.compilers import Compiler, compilers
from gradbridge.protocol import ArraySpec
from gradbridge_torch.crossing import CROSSING, PLAIN, lent, numpy_dtype
from gradbridge_torch.lifted import Like, conjugated, elsewhere, incoming, of_first, placed, spread
from gradbridge_torch.records import has_tangent
from gradbridge_torch.surroundings import is_tracing, set_aside

_library = torch.library.Library("gradbridge", "DEF")

#: A part of each key: what another process compiled is not to find a node of this one.
_PROCESS = uuid.uuid4().hex

_nodes: weakref.WeakValueDictionary[str, Node] = weakref.WeakValueDictionary()
_keys: weakref.WeakKeyDictionary[Node, str] = weakref.WeakKeyDictionary()
_numbers = itertools.count()
_lock = threading.RLock()
_store = Store()


TORCH_DTYPES = {np.dtype(str(d).removeprefix("torch.")): d for d in CROSSING}


def applied(
    node: Node, wrt: tuple[int, ...], operands: Sequence[torch.Tensor]
) -> tuple[Sequence[torch.Tensor], Any]:
    """A node at tensors that have no numbers yet.

    Args:
        node: that will run.
        wrt: operands that it may be pulled back to.
        operands: of a program that is being compiled.

    Returns:
        (outputs, their structure; None for one alone).

    Raises:
        HostError: forward mode or a map is around, or the model draws anew at each call.
        Unsupported: shapes of its outputs are not known before it runs.
    """
    call = node.call
    if call.settings.draw_noise is not None and call.settings.noise == "per_call":
        raise HostError(
            f"{call.adapter.label} draws new numbers at each call (noise='per_call'), and a program that torch compiles "
            f"may make a call again for its gradient; use noise='per_params' or 'frozen'"
        )
    for interpreter in torch._C._functorch.get_interpreter_stack() or ():
        if interpreter.key() in (TransformType.Vmap, TransformType.Jvp):
            what = "a map (vmap)" if interpreter.key() == TransformType.Vmap else "forward mode (jvp)"
            raise HostError(_refusal(call.adapter.label, what))
    key = _key_of(node)
    specs, structure = _specs(key, tuple(map(_shape_and_dtype, operands)))
    *outputs, _ = _operation("apply", len(operands), len(specs) + 1)(key, list(wrt), *operands)
    return outputs, structure


def is_traced(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a program is being traced: its tensors have no numbers, or what is computed with these goes unseen."""
    return is_tracing() or any(type(x) not in PLAIN and isinstance(x, FakeTensor) for x in tensors)


def _refusal(label: str, what: str) -> str:
    return (
        f"{what} of {label} was asked for within a program that torch traces (torch.compile, torch.export, make_fx, "
        f"torch.func.linearize), where it is an operation with reverse mode alone: torch would silently make the "
        f"derivative zero. Take {what} outside of what is compiled, where all transforms work (torch.func.jvp for "
        f"linearize), or keep the part that takes it out of the compiler (torch.compiler.disable)"
    )


def _key_of(node: Node) -> str:
    with _lock:
        key = _keys.get(node)
        if key is None:
            key = _keys[node] = f"{_PROCESS} {next(_numbers)}"
            _nodes[key] = node
            node.call.settings.compiled.append(node)  # for as long as the bridge lives
        return key


def _node_of(key: str) -> Node:
    node = _nodes.get(key)
    if node is None:
        raise HostError(
            "a compiled program calls a bridge that no longer exists, or that belonged to another process; keep a reference to the "
            "bridge, and compile in the process that runs"
        )
    return node


def _shape_and_dtype(tensor: torch.Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple([int(n) for n in tensor.shape]), tensor.dtype


@lru_cache(maxsize=1024)
def _specs(key: str, operands: tuple[tuple[tuple[int, ...], torch.dtype], ...]) -> Any:
    """What `Node.specs` tells: ([(shape, dtype)], structure)."""
    with set_aside():
        specs, structure = _node_of(key).specs([ArraySpec(s, numpy_dtype(d)) for s, d in operands])
    return [(spec.shape, TORCH_DTYPES[spec.dtype]) for spec in specs], structure


def _call(key: str, params: tuple[Any, ...], inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Read by the compiler, for which alone its part is imported: that takes a second."""
    from gradbridge_torch.dynamo import call

    results = call(key, params, inputs, kwargs)
    for refusal in results:
        if refusal:
            raise HostError(refusal)
    return results[""]


compilers.append(Compiler(torch.compiler.is_dynamo_compiling, _call))


# -- what they compute ------------------------------------------------------------------------


def _apply(key: str, wrt: list[int], *operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
    node = _node_of(key)
    run = node.evaluate(lent(operands), tuple(wrt))
    told = [shape for shape, _ in _specs(key, tuple(map(_shape_and_dtype, operands)))[0]]
    came = [y.shape for y in run.outputs]
    if told != came:
        raise OutputError(
            f"{node.call.adapter.label} returned arrays of shapes {came}, where the program was compiled for {told}; a model "
            f"whose shapes depend on numbers cannot be compiled in, and outputs= must give the shapes that it returns"
        )
    number = torch.tensor([_store.put(run) if wrt else 0, run.noise])
    return *_as_told(placed(run.outputs, of_first(operands, came))), number


def _apply_shapes(key: str, wrt: list[int], *operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
    specs, _ = _specs(key, tuple(map(_shape_and_dtype, operands)))
    device = operands[0].device if operands else None
    outputs = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in specs]
    return *outputs, torch.empty(2, dtype=torch.int64)


def _pull(key: str, wrt: list[int], number: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    node, arrays = _node_of(key), lent(tensors)
    run = _recorded(node, *number.tolist(), arrays[: node.operands], tuple(wrt))
    return _as_told(
        placed(run.pull(arrays[node.operands :], tuple(wrt)), elsewhere([tensors[i] for i in wrt]))
    )


def _as_told(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Compiled code reads memory by the strides that the shapes' rules tell, and a guest's array may have any."""
    return tuple([tensor.contiguous() for tensor in tensors])


def _pull_shapes(key: str, wrt: list[int], number: torch.Tensor, *tensors: torch.Tensor) -> Any:
    return tuple([torch.empty_like(tensors[i], memory_format=torch.contiguous_format) for i in wrt])


def _recorded(node: Node, number: int, noise: int, arrays: Sequence[Array], wrt: tuple[int, ...]) -> Run:
    """What a node recorded, by the number of it or of what it is a gradient of; what was forgotten runs again."""
    run = _store.get(number, lambda: None)
    if run is not None and run.node is node and run.covers(wrt):
        return run
    origin = None
    if node.parent is not None:
        origin = _recorded(node.parent, number, noise, arrays[: node.parent.operands], node.recorded(wrt))
    return node.evaluate(arrays, wrt, origin, noise=noise)


# -- their rules ------------------------------------------------------------------------------


class _ApplyRule(_SingleLevelFunction):
    @staticmethod
    def forward(ctx: Any, below: Callable[..., Any], key: str, wrt: list[int], *operands: Any) -> Any:
        outputs = below(key, wrt, *operands)
        ctx.key = key
        ctx.save_for_backward(*operands, outputs[-1])
        ctx.like = [Like.of(y) if y.is_floating_point() or y.is_complex() else None for y in outputs]
        ctx.mark_non_differentiable(*[y for y, like in zip(outputs, ctx.like) if like is None])
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *arrived: Any) -> Any:
        *operands, number = ctx.saved_tensors
        wrt = [i for i, yes in enumerate(ctx.needs_input_grad[3:]) if yes]
        cotangents = incoming(arrived, ctx.like)
        pull = _operation("pull", len(operands) + len(cotangents), len(wrt))
        gradients = several(pull(ctx.key, wrt, number, *operands, *cotangents))
        return None, None, None, *spread(conjugated(gradients), wrt, len(operands))


class _PullRule(_SingleLevelFunction):
    @staticmethod
    def forward(ctx: Any, below: Any, key: str, wrt: list[int], number: Any, *tensors: Any) -> Any:
        gradients = several(below(key, wrt, number, *tensors))
        ctx.key, ctx.wrt = key, wrt
        ctx.save_for_backward(number, *tensors)
        ctx.like = [Like.of(g) for g in gradients]
        ctx.set_materialize_grads(False)
        return gradients if len(gradients) > 1 else gradients[0]

    @staticmethod
    def backward(ctx: Any, *arrived: Any) -> Any:
        number, *tensors = ctx.saved_tensors
        node, cotangents = _node_of(ctx.key), incoming(arrived, ctx.like)
        wrt = [i for i, yes in enumerate(ctx.needs_input_grad[4:]) if yes]
        derivative = node.derivative(tuple(ctx.wrt), _inexact(ctx.key, tensors))
        pull = _operation("pull", len(tensors) + len(cotangents), len(wrt))
        gradients = several(pull(_key_of(derivative), wrt, number, *tensors, *cotangents))
        return None, None, None, None, *spread(conjugated(gradients), wrt, len(tensors))


def _inexact(key: str, tensors: Sequence[torch.Tensor]) -> tuple[bool, ...]:
    """For each output of a node, whether it is floating."""
    node = _node_of(key)
    specs, _ = _specs(key, tuple(map(_shape_and_dtype, tensors[: node.operands])))
    return tuple([dtype.is_floating_point or dtype.is_complex for _, dtype in specs])


def several(result: Any) -> tuple[torch.Tensor, ...]:
    """What an operation returned; one tensor comes alone."""
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


@cache
def _operation(name: str, takes: int, gives: int) -> Any:
    """An operation of so many tensors in and out."""
    full, number = f"{name}_{takes}_{gives}", "Tensor number, " if name == "pull" else ""
    tensors = ", ".join(f"Tensor x{i}" for i in range(takes))
    returned = ", ".join(["Tensor"] * gives)
    compute, shapes, rule = {
        "apply": (_apply, _apply_shapes, _ApplyRule),
        "pull": (_pull, _pull_shapes, _PullRule),
    }[name]
    _library.define(f"{full}(str key, int[] wrt, {number}{tensors}) -> ({returned})")
    overload = getattr(torch.ops.gradbridge, full).default

    def alone(function: Any) -> Any:
        return lambda *arguments: function(*arguments)[0] if gives == 1 else function(*arguments)

    def recorded(keyset: Any, key: str, wrt: list[int], *given: torch.Tensor) -> Any:
        if forward_ad._current_level >= 0 and any(map(has_tangent, given)):
            raise HostError(_refusal(_node_of(key).call.adapter.label, "forward mode (jvp)"))

        def below(*arguments: Any) -> Any:
            # A rule turns gradients off, which are those of its own level alone.
            with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad(), _set_fwd_grad_enabled(True):
                return overload.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

        if torch.is_grad_enabled() and any(x.requires_grad for x in given):
            if name == "apply":  # a program may have been traced with other tensors
                wrt = sorted({*wrt, *(i for i, x in enumerate(given) if x.requires_grad)})
            with enable_single_level_autograd_function():  # within a transform each level comes by here
                return rule.apply(below, key, wrt, *given)
        return below(key, wrt, *given)

    def mapped(key: str, wrt: list[int], *given: torch.Tensor) -> Any:
        raise HostError(_refusal(_node_of(key).call.adapter.label, "a map (vmap)"))

    _library.impl(full, alone(compute), "CompositeExplicitAutograd")
    torch.library.register_fake(f"gradbridge::{full}", alone(shapes), lib=_library)
    _library.impl(full, recorded, "Autograd", with_keyset=True)
    _library.impl(full, mapped, "FuncTorchBatched")
    return overload
