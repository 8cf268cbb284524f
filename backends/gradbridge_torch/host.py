"""PyTorch as a host: calls of any guest as parts of torch's graph, and a torch guest as torch's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch

from gradbridge import trees
from gradbridge.errors import HostError, NotDifferentiableError, Unsupported
from gradbridge.execution.evaluation import Call
from gradbridge.layout import Array, ParameterLayout
from gradbridge.lifting import LiftingHost, Node, node_of
from gradbridge.protocol import ArraySpec
from gradbridge_torch.compiled import applied, is_traced
from gradbridge_torch.crossing import (
    PLAIN,
    copied,
    crosses,
    lent,
    made_to_cross,
    numpy_dtype,
    taken,
    unreadable,
    widened,
)
from gradbridge_torch.inlining import calls_back, top_hooks
from gradbridge_torch.lifted import Apply
from gradbridge_torch.mapped import called
from gradbridge_torch.records import Record, is_tracked, moving
from gradbridge_torch.runtime import RUNTIME
from gradbridge_torch.shortcuts import is_settled, of_guest, of_part, reader
from gradbridge_torch.surroundings import apart_from_compiler, recording, set_aside
from gradbridge_torch.tensors import FLOATING, in_precision

_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


class TorchHost(LiftingHost):
    """Lifts calls into functions that torch differentiates, to any order and in either mode, and maps."""

    name: ClassVar[str] = "torch"

    def owns(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor)

    def follows(self, value: Any) -> bool:
        return is_tracked(value)

    def spec(self, array: torch.Tensor) -> ArraySpec:
        try:
            shape = tuple(array.shape)
        except RuntimeError as error:
            raise unreadable(array, error) from error
        return ArraySpec(shape, numpy_dtype(array.dtype))

    def constant(self, value: Any) -> Any:
        return value.detach() if isinstance(value, torch.Tensor) else value

    def array(self, array: Array, is_own: bool = True) -> torch.Tensor:
        if is_own and array.flags.c_contiguous and array.dtype.isnative:
            try:
                return taken(array)
            except TypeError:
                pass  # of a dtype that torch has not: said, or cast
        return copied(array)

    def numpy(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if _is_wrapped(value):
            raise NotDifferentiableError(
                "the numbers of a tensor within a transform of torch.func (grad, jvp, vmap) were asked for, by a Jacobian or a "
                "product with one, and it has none of its own there; call the bridge itself, and let torch.func "
                "differentiate that (torch.func.jacrev)"
            )
        return lent([made_to_cross(value.detach())])[0]

    @apart_from_compiler
    def lift(self, node: Node, operands: Sequence[torch.Tensor]) -> Any:
        if recording() is not None:
            raise HostError(
                f"torch.jit.trace was asked to record a call of {node.call.adapter.label}, whose operations are none of "
                f"torch's: the numbers of this call would stay in the recording; use torch.compile. A model of torch's own "
                f"can be recorded once it was called, with gradients asked for"
            )
        if node.call.settings.noise == "per_call":
            _refuse_recomputation(node.call)
        dtype = None
        for x in operands:
            if not crosses(x):
                dtype = _host_dtype(node.call, operands)
                operands = [*map(made_to_cross, operands)]
                break
        wrt = moving(operands)
        if is_traced(operands):
            leaves, structure = applied(node, wrt, operands)
        else:
            record = Record()
            leaves = called(Apply, record, node, wrt, *operands)
            structure = record.any().structure
        if dtype is not None:  # one that NumPy has not: computed in another, and rounded
            leaves = [y.to(dtype) if y.is_floating_point() else y for y in leaves]
        return leaves[0] if structure is None else trees.unflatten(structure, leaves)

    def inlines(self, call: Call, operands: Sequence[torch.Tensor], constants: dict[int, Any]) -> bool:
        settings = call.settings
        if (
            not super().inlines(call, operands, constants)
            or settings.memory is not None
            or settings.observers.observed
            or calls_back.get()
        ):
            return False
        wrt = moving(operands)
        if not settings.audit.awaits_call(call.dtype.name, bool(wrt)):
            return True
        if top_hooks(True) is None or call.adapter.traits.runtime is not RUNTIME:
            return False
        # What is around (a checkpoint) may call again, and expects what was saved here; so it is looked at beside.
        with set_aside():
            arrays = lent([made_to_cross(x.detach()) for x in operands])
            node_of(call, constants).evaluate(arrays, wrt)
        return True

    def cut(self, vector: torch.Tensor, layout: ParameterLayout) -> Sequence[torch.Tensor]:
        # The derivative of slices would fill as many vectors as there are; that of one split is one concatenation.
        return [w.view(s) for w, s in zip(vector.split(layout.sizes), layout.shapes)]

    def inline(self, call: Call, native: Callable[[Sequence[Any]], Any], leaves: Sequence[Any]) -> Any:
        device = leaves[0].device if leaves else torch.device("cpu")
        try:
            return _in_dtype(_host_dtype(call, leaves) or FLOATING[call.dtype.name])(native(leaves), device)
        except Unsupported:
            return NotImplemented

    def shortcut(self, call: Call, params: Any, inputs: tuple[Any, ...]) -> Any:
        tensors = [*trees.flatten(params)[0], *inputs]
        if not PLAIN.issuperset(map(type, tensors)) or not is_settled(call):
            return None
        read = reader(call.adapter.layout, params)
        if read is None:
            return None
        native = call.adapter.inlined(self.name, call.spec, {})
        if native is None:
            return of_guest(call, node_of(call, {}, self.lends), read) if all(map(crosses, tensors)) else None
        is_flat = call.arguments.vectors[:1] == (True,)
        finish = _in_dtype(_host_dtype(call, tensors) or FLOATING[call.dtype.name])
        return of_part(
            call, read, native, partial(self.cut, layout=call.adapter.layout) if is_flat else None, finish
        )


def _in_dtype(dtype: torch.dtype) -> Callable[[Any, torch.device], Any]:
    """(Outputs of a guest of torch, a device) ↦ the outputs there, floating ones in a dtype."""

    def finish(output: Any, device: torch.device) -> Any:
        if type(output) is torch.Tensor and output.dtype is dtype and output.device == device:
            return output

        def own(y: Any) -> Any:
            return y.to(device, in_precision(y.dtype, dtype)) if isinstance(y, torch.Tensor) else y

        return trees.mapped(own, output)

    return finish


def _host_dtype(call: Call, operands: Sequence[torch.Tensor]) -> torch.dtype | None:
    """What outputs are to have: the dtype of the weights, without any of the first inexact operand; None as they come."""
    weights = operands[: call.first_input]
    dtypes = [x.dtype.to_real() for x in weights or operands if x.is_floating_point() or x.is_complex()]
    if not dtypes:
        return None
    dtype = functools.reduce(torch.promote_types, dtypes if weights else dtypes[:1])
    return None if widened(dtype) is dtype else dtype


def _refuse_recomputation(call: Call) -> None:
    """Refuse what torch would compute twice, where each call draws anew: a gradient of other numbers than the value.

    Raises:
        HostError
    """
    hooks = top_hooks(True)
    is_kept = hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"
    if call.settings.draw_noise is not None and (is_kept or torch._C._current_graph_task_id() != -1):
        raise HostError(
            f"{call.adapter.label} draws new numbers at each call (noise='per_call'), and torch.utils.checkpoint makes a call "
            f"twice, once for the value and once for its gradient, which would not belong together; use "
            f"noise='per_params' or 'frozen', or leave this call out of the checkpoint"
        )
