"""PyTorch's autodiff primitives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch._C._nn import flatten_dense_tensors, unflatten_dense_tensors

from gradbridge.framework import (
    ONE_ARRAY,
    Computation,
    Form,
    FrameworkBorder,
    Function,
    Program,
    RunAgain,
)
from gradbridge.layout import Array, ParameterLayout
from gradbridge.notices import notice
from gradbridge.protocol import ArraySpec, Traits
from gradbridge_torch.beside import without_graph
from gradbridge_torch.crossing import taken
from gradbridge_torch.elementary import has_sparse_gradients
from gradbridge_torch.foreign import foreign_leaves
from gradbridge_torch.forward_mode import pushed
from gradbridge_torch.graphs import Gradients, Graph, differentiated, refuse_cut_graph, run_backward
from gradbridge_torch.inlining import are_as_they_were, as_they_are
from gradbridge_torch.replicas import EmptiedError
from gradbridge_torch.runtime import RUNTIME
from gradbridge_torch.shapes import shapes_of
from gradbridge_torch.surroundings import dispatch_modes, function_modes, recording, set_aside, transform
from gradbridge_torch.tensors import NUMPY_DTYPES, floating_dtype, in_precision, to_tensor, view_of
from gradbridge_torch.views import numbers
from gradbridge_torch.vjps import RecordedVJPs, nesting


class TorchFramework(RecordedVJPs):
    """torch, for one model.

    Args:
        label: of the model, for errors.
        device: where it computes; None is where its arrays are.
        only_reads: whether it is known to write to none of its arguments.
    """

    traits = Traits(
        takes_complex=True,
        conjugates=True,
        has_forward_mode=True,
        has_vmap=True,
        has_higher_orders=True,
        runtime=RUNTIME,
    )

    def __init__(self, label: str, device: torch.device | None, only_reads: bool) -> None:
        super().__init__(label)
        self.device, self.only_reads = device, only_reads
        self.on_cpu = device is None or device.type == "cpu"
        self.notices: set[str] = set()
        #: Whether the model takes gradients by its inputs itself, and expects them to be tracked.
        self.tracks_inputs = False
        #: Whether a program of torch may have the model for a part: not if it writes to what it is given, or moves
        #: state, or has sparse gradients, where those of other calls are dense. None where that is not known before
        #: it has run.
        self.inlines: bool | None = True if only_reads else None
        #: Whether it has run, recorded.
        self.ran = False

    @property
    def host(self) -> str:  # type: ignore[override]
        """Whose programs may have the model for a part."""
        return "torch" if self.inlines and not self.tracks_inputs else ""

    # -- arrays -------------------------------------------------------------------------------

    def asarray(self, array: Any, dtype: torch.dtype | None) -> torch.Tensor:
        through = NUMPY_DTYPES.get(dtype)
        if type(array) is np.ndarray and through is not None and array.dtype.kind == "f" and self.on_cpu:
            return torch.from_numpy(np.array(array, through, order="C"))
        return to_tensor(array, dtype, self.device, self.only_reads)

    def take(self, array: Any, dtype: torch.dtype | None) -> torch.Tensor:
        if (
            self.only_reads
            and self.on_cpu
            and type(array) is np.ndarray
            and array.dtype is NUMPY_DTYPES.get(dtype)
            and array.flags.c_contiguous
            and array.flags.aligned
        ):
            return taken(array)
        return self.asarray(array, dtype)

    lend = take  # a model that only reads does so for good

    def native(self, array: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
        wanted = in_precision(array.dtype, dtype)
        if array.dtype is wanted and (self.device is None or array.device == self.device):
            return array
        return array.to(device=self.device, dtype=wanted)

    def asnumpy(self, native: torch.Tensor) -> Array:
        return view_of(native)

    #: torch's own, without a call of ours.
    is_complex = staticmethod(torch.is_complex)
    floating_dtype = staticmethod(floating_dtype)

    def border(self, layout: ParameterLayout, dtypes: Sequence[Any]) -> TorchBorder:
        with set_aside():
            return TorchBorder(self, layout, dtypes)

    def is_array(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor)

    def is_inexact(self, native: torch.Tensor) -> bool:
        return native.is_floating_point() or native.is_complex()

    def cast(self, native: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return native.to(like.dtype)

    def eye(self, size: int, like: torch.Tensor) -> torch.Tensor:
        return torch.eye(size, dtype=like.dtype, device=like.device)

    def zeros(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def split(self, output: Any, label: str) -> tuple[list[Any], list[Any], Form]:
        if type(output) is torch.Tensor and output.is_floating_point():
            return [output], [], ONE_ARRAY
        return super().split(output, label)

    passes_others = True

    def beside(self, value: Any) -> Any:
        is_number = isinstance(value, (float, complex)) or getattr(value, "dtype", np.dtype(int)).kind in "fc"
        if is_number and torch.is_grad_enabled() and "number" not in self.notices:
            self.notices.add("number")
            notice(
                f"{self.label} returned a {type(value).__name__} next to its tensors, which is a constant for every "
                f"derivative; return the tensor itself, without .item(), float() or .numpy(), if it depends on "
                f"what is differentiated",
            )
        return without_graph(value)

    # -- transforms ---------------------------------------------------------------------------

    def trace(
        self, fn: Computation, places: tuple[int, ...], reusable: bool, rows: Sequence[int]
    ) -> TorchProgram:
        return TorchProgram(self, fn, places)

    def jvp(
        self, fn: Function, primals: list[Any], tangents: list[Any], many: bool
    ) -> tuple[list[Any], list[Any]]:
        # Leaves that require gradients, as a forward has them.
        return pushed(fn, [p.detach().requires_grad_() for p in primals], tangents, many)

    def vmap(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return torch.func.vmap(fn)  # type: ignore[no-any-return]

    def shapes(self, fn: Computation, specs: Sequence[ArraySpec]) -> tuple[list[ArraySpec], Form]:
        return shapes_of(fn, specs, self.device, self.label)


class TorchProgram(Program):
    """A computation as torch runs it: recorded where it is pulled back.

    Args:
        framework: of the model.
        fn: the computation.
        places: of the leaves that it is pulled back to.
    """

    records = True
    merges_from = 16384  # with fewer weights a host's node more costs more than the second walk

    def __init__(self, framework: TorchFramework, fn: Computation, places: tuple[int, ...]) -> None:
        self.framework, self.fn, self.places = framework, fn, places

    def run(self, leaves: list[Any]) -> tuple[list[Any], list[Any], Form, Sequence[Any], Graph | None]:
        if self.framework.tracks_inputs:
            leaves = [x.detach().requires_grad_() if self.framework.is_inexact(x) else x for x in leaves]
        try:
            if not self.places:
                floats, others, form, after = self.fn(leaves)
                return [y.detach() for y in floats], others, form, after, None
            leaves, tracked = list(leaves), []
            for place in self.places:
                leaves[place] = leaf = leaves[place].detach().requires_grad_()
                tracked.append(leaf)
            nesting.differentiated = False
            before = as_they_are(leaves) if self.framework.inlines is None else None
            floats, others, form, after = self.fn(leaves)
            if before is not None:
                self.framework.inlines = are_as_they_were(leaves, before)
        except RuntimeError as error:
            if self.framework.tracks_inputs or "does not require grad" not in str(error):
                raise
            if not torch.is_grad_enabled():
                raise  # it is tried with gradients recorded first
            self.framework.tracks_inputs = True
            raise RunAgain from error
        graph = Graph(
            floats, tracked, nesting.differentiated, threading.RLock(), [], self.framework.checked, leaves
        )
        if not self.framework.ran:
            self.framework.ran = True
            if has_sparse_gradients(graph.nodes()):
                self.framework.inlines = False
        outputs = [floats[0].detach()] if len(floats) == 1 else [y.detach() for y in floats]
        return outputs, others, form, after, graph

    def pull(
        self, kept: Graph, cotangents: Sequence[Any], wanted: Sequence[int], many: bool = False
    ) -> Gradients:
        outputs, leaves = kept.outputs, kept.leaves
        if wanted != range(len(leaves)):
            leaves = [leaves[i] for i in wanted]
        is_plain = not many
        for output in outputs:
            if output is None or not output.requires_grad:
                pairs = kept.connected(cotangents)
                outputs, cotangents = [y for y, _ in pairs], [c for _, c in pairs]
                is_plain = False
                break
            is_plain = is_plain and type(output) is torch.Tensor
        gradients: Gradients = [None] * len(leaves)
        if outputs and leaves:
            try:
                with kept.lock:
                    if (
                        is_plain and run_backward is not None
                    ):  # as `differentiated`; in place, since it is half of every gradient
                        own = tuple(leaves)
                        gradients = run_backward(
                            tuple(outputs), tuple(cotangents), True, False, own, True, accumulate_grad=False
                        )
                    else:
                        gradients = differentiated(outputs, leaves, cotangents, False, many)
            except EmptiedError as error:
                raise _run_again(kept) from error
        for gradient in gradients:
            if gradient is None:
                self._doubt_unused(kept)
                break
        return gradients

    def unreached(self, kept: Graph) -> Sequence[int]:
        return kept.unreached()

    def operations(self, kept: Graph) -> frozenset[str]:
        return kept.kinds()

    def strangers(self, kept: Graph) -> Sequence[torch.Tensor]:
        return foreign_leaves(kept.outputs, kept.given)

    def pull_recorded(
        self, kept: Graph, cotangents: Sequence[Any], wanted: Sequence[int]
    ) -> tuple[Gradients, Graph]:
        try:
            return kept.recorded(cotangents, wanted, self.framework.label)
        except EmptiedError as error:
            raise _run_again(kept) from error

    def pull_to_boundary(
        self, kept: Graph, recorded: Graph, cotangents: Sequence[Any]
    ) -> tuple[Gradients, Any]:
        gradients, left = recorded.to_boundary(kept, cotangents)
        if any(g is None for g in gradients):
            self._doubt_unused(recorded)
        return gradients, left

    def pull_merged(
        self, kept: Graph, cotangents: Sequence[Any], wanted: Sequence[int], left: Sequence[Any]
    ) -> Gradients:
        return kept.merged(cotangents, wanted, left)

    def _doubt_unused(self, kept: Graph) -> None:
        """Refuse what only looks unused; say once that nothing depends on what is differentiated."""
        if kept.is_gradient:
            refuse_cut_graph(kept.nodes(), self.framework.label)
        elif "unused" not in self.framework.notices and not kept.connected(kept.outputs):
            self.framework.notices.add("unused")
            notice(
                f"no output of {self.framework.label} depends on what is differentiated, as torch sees it, so its gradient "
                f"is zero; if it should depend, look for .detach(), .item(), .numpy() or no_grad in the model",
            )


class TorchBorder(FrameworkBorder):
    """One conversion of the whole vector, and one native call that cuts or joins it.

    For 160 small tensors a cut takes two thirds, and a join a third, of the time of one conversion each.
    Many numbers are written into the float64 vector directly: that saves a pass over memory.
    """

    #: More numbers than these are joined tensor by tensor.
    _FLATTENED = 65_536

    def __init__(self, framework: TorchFramework, layout: ParameterLayout, dtypes: Sequence[Any]) -> None:
        super().__init__(framework, layout, dtypes)
        self._dtype = self.dtypes[0] if len(set(self.dtypes)) == 1 else None
        # What NumPy can cast to for torch on the CPU.
        self._through = NUMPY_DTYPES.get(self._dtype) if framework.on_cpu else None
        # What torch cuts by: shapes without memory.
        self._like = [
            torch.empty(shape if 0 in shape else (1,) * len(shape), dtype=self._dtype).expand(shape)
            for shape in layout.shapes
        ]

    def cut(self, vector: Any) -> Sequence[torch.Tensor]:
        if self._dtype is None:
            return super().cut(vector)
        if type(vector) is np.ndarray and self._through is not None:
            tensor = torch.from_numpy(np.array(vector, self._through))
        else:
            tensor = self.framework.asarray(vector, self._dtype)
        return unflatten_dense_tensors(tensor, self._like)  # type: ignore[no-any-return]

    def view(self, native: Any) -> Array:
        if type(native) is not torch.Tensor:
            return super().view(native)
        if not function_modes() and not dispatch_modes():
            try:
                return numbers(native)
            except (RuntimeError, TypeError):
                pass  # of a dtype or layout that NumPy has not
        return view_of(native)

    def join(self, gradients: Sequence[Any], lead: tuple[int, ...] = ()) -> Array:
        if self._dtype is None or lead or self.layout.size > self._FLATTENED:
            return super().join(gradients, lead)
        if transform() is not None or dispatch_modes() or function_modes() or recording() is not None:
            with set_aside():
                return self.join(gradients, lead)
        for gradient in gradients:
            if type(gradient) is not torch.Tensor or gradient.layout is not torch.strided:
                return super().join(gradients, lead)
        return np.array(self.view(flatten_dense_tensors(list(gradients))), np.float64)


def _run_again(kept: Graph) -> RunAgain:
    reason = "computes parts of its forward again in its backward (activation checkpointing)"
    return RunAgain([y for y in kept.outputs if y is not None], reason)
