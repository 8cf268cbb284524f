"""A model as a part of a program in torch: computed with the program's own tensors, in the program's own graph.

The program's transforms, modes and gradients are to see it; what else is ambient is not to be trusted (law 9), and
what belongs to the program is not to be written to (law 5).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from gradbridge.errors import GradbridgeError, GuestError, Unsupported
from gradbridge.framework import Computation, Model
from gradbridge.wording import first_line
from gradbridge_torch.crossing import PLAIN
from gradbridge_torch.explain import steers
from gradbridge_torch.surroundings import (
    default_device,
    dispatch_modes,
    function_modes,
    is_compiling,
    transform,
)

#: Whether a guest of torch is not to be a part of a program that is traced, but to be called by it.
calls_back: ContextVar[bool] = ContextVar("calls_back", default=False)

# The hooks that are called when a tensor is saved for a backward, if any are.
top_hooks = torch._C._autograd._top_saved_tensors_default_hooks

_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


#: Hooks that keep what is saved.
KEPT = (_as_it_is, _as_it_is)


class InlinedModel(Model):
    """The half of `TorchModel` that is a part of the program around."""

    #: Whether it is known to write to none of its arguments.
    only_reads = False

    #: Whether it may ask a weight whether it is a parameter, and trainable.
    asks = False

    #: Whether it takes gradients itself, by its weights or inputs, or computes otherwise where none are recorded.
    differentiates = False

    _default_dtype: torch.dtype
    _default_device: torch.device | None
    _is_watched: bool
    _has_written = False

    @abstractmethod
    def _pinned_dtype(self) -> AbstractContextManager[None]:
        """With its own default dtype."""

    def readers(self) -> Sequence[Any]:
        """The user's own functions and objects that compute it, and may read from outside what changes."""
        return ()

    def own_tensors(self) -> Iterable[torch.Tensor]:
        """Those of its constants that nobody else writes to."""
        return ()

    def within(self, compute: Computation, weights: list[Any], others: list[Any]) -> Any:
        if self.is_surrounded():
            with self._pinned_around():
                return self._inlined(compute, weights, others)
        return self._inlined(compute, weights, others)

    def is_surrounded(self) -> bool:
        """Whether something is ambient that it is not to compute with."""
        return (
            torch.get_default_dtype() is not self._default_dtype
            or torch.is_inference_mode_enabled()
            or torch._C._is_any_autocast_enabled()
            or top_hooks(True) is not None
            or (function_modes() != 0 and default_device() != self._default_device)
            or (self._default_device is not None and not function_modes())
            or (dispatch_modes() != 0 and is_compiling())
        )

    def _inlined(self, compute: Computation, weights: list[Any], inputs: list[Any]) -> Any:
        owns = self.asks or self.differentiates
        if self.only_reads and not owns:
            floats, *rest = self._tried(compute, [*weights, *inputs])
            return [apart(y, inputs) for y in floats], *rest
        if self._has_written:
            raise Unsupported(f"{self.label} writes to its parameters")
        records = before = torch.is_grad_enabled()
        is_followed = transform() is not None or forward_ad._current_level >= 0
        if not is_followed:
            records = is_followed = before and any(x.requires_grad for x in (*weights, *inputs))
        # It may make a weight a parameter, or have its gradient recorded: of a tensor of its own.
        leaves = [_alias(w, is_followed) if owns and not _is_trained(w) else w for w in weights]
        leaves += inputs if self.only_reads else [x.clone() for x in inputs]
        versions = None if self.only_reads or transform() is not None else _versions(weights)
        # As in every other call of it: without a record it may take another way.
        torch._C._set_grad_enabled(records or self.differentiates)
        try:
            floats, others, *rest = self._tried(compute, leaves)
        finally:
            torch._C._set_grad_enabled(before)
        if versions is not None and versions != _versions(weights):
            self._has_written = True
            raise GuestError(
                f"{self.label} wrote to its parameters in place, and they are tensors of the program that called it, which "
                f"have changed now; write to a clone() in the model. Later calls of this bridge compute with copies"
            )
        if not is_followed:
            floats = [y.detach() for y in floats]
        # What it did not compute is perhaps its own, or the program's.
        floats = [apart(y, weights) if y.grad_fn is not None else y.clone() for y in floats]
        return floats, [y.clone() for y in others], *rest

    def _tried(self, compute: Computation, leaves: list[Any]) -> Any:
        """The computation.

        Raises:
            Unsupported: it failed, or drew random numbers; in isolation it is explained, or draws its own.
        """
        watches = self._is_watched and not dispatch_modes()
        before = torch.default_generator.get_state() if watches else None
        try:
            result = compute(leaves)
        except Exception as error:
            if before is not None:
                torch.default_generator.set_state(before)
            if isinstance(error, GradbridgeError) or steers(error) or dispatch_modes():
                raise
            raise Unsupported(f"{self.label} cannot be part of a program: {first_line(error)}") from error
        if before is not None and not torch.equal(before, torch.default_generator.get_state()):
            torch.default_generator.set_state(before)
            self.draws = True
            raise Unsupported(f"{self.label} draws random numbers")
        return result

    @contextmanager
    def _pinned_around(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(_without_hooks())
            if (
                torch.is_inference_mode_enabled()
            ):  # what is kept of what is made in it can never be differentiated
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.no_grad())
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            if default_device() != self._default_device:
                stack.enter_context(self._default_device or torch.device("cpu"))
            if torch.get_default_dtype() is not self._default_dtype:
                stack.enter_context(self._pinned_dtype())
            if is_compiling():
                stack.enter_context(_Lifted(self))
            yield


class _Lifted(TorchFunctionMode):
    """While a program is compiled: tensors of the model's own become constants of it; the compiler takes no others.

    Args:
        model: that is a part of it.

    Raises:
        Unsupported: the model reads a tensor of somebody else's, who may write to it.
    """

    def __init__(self, model: InlinedModel) -> None:
        super().__init__()
        self._model = model
        self._lifted: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map_only(torch.Tensor, self._constant, (args, kwargs or {}))
        return function(*args, **kwargs)

    def _constant(self, tensor: torch.Tensor) -> torch.Tensor:
        if type(tensor) not in PLAIN or _is_wrapped(tensor):
            return tensor
        if id(tensor) not in self._lifted:
            if not any(own is tensor for own in self._model.own_tensors()):
                raise Unsupported(f"{self._model.label} reads a tensor from outside")
            self._lifted[id(tensor)] = tensor, torch.ops.aten.lift_fresh_copy(tensor.detach())
        return self._lifted[id(tensor)][1]


@contextmanager
def _without_hooks() -> Iterator[None]:
    """Without hooks on saved tensors, the identity among them: where there are any, torch watches no versions."""
    hooks = []
    while (top := top_hooks(True)) is not None:
        hooks.append(top)
        torch._C._autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(hooks):
            torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)


def _is_trained(weight: torch.Tensor) -> bool:
    return type(weight) is nn.Parameter and weight.requires_grad


def _alias(weight: torch.Tensor, is_followed: bool) -> torch.Tensor:
    """The same tensor as an object of ours."""
    return weight.view_as(weight) if is_followed else weight.detach()


def apart(output: torch.Tensor, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
    """An output that is a tensor of the program, or a view of one, gets memory of its own."""
    for leaf in leaves:
        if leaf is output:
            return output.clone()
    if output._is_view() and transform() is None:
        memory = output.untyped_storage()._cdata
        if any(leaf.untyped_storage()._cdata == memory for leaf in leaves):
            return output.clone()
    return output


def _versions(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [0 if t.is_inference() else t._version for t in tensors]


def as_they_are(tensors: Sequence[torch.Tensor]) -> list[tuple[int, torch.Tensor]]:
    """Tensors as `are_as_they_were` compares them."""
    return [(x._version, x.detach().clone()) for x in tensors]


def are_as_they_were(tensors: Sequence[torch.Tensor], before: Sequence[tuple[int, torch.Tensor]]) -> bool:
    """Whether nothing was written to tensors, by their content, too: what goes by ``.data`` is not counted."""
    return all(
        x._version == version and bool(((x == own) | (x != x)).all())
        for x, (version, own) in zip(tensors, before)
    )
