"""What a program around a bridge may have switched on in torch, and what must neither see our tensors nor change them.

Transforms (`torch.func`) wrap every tensor that is made within them, and modes (fake tensors, tracers, loggers,
a default device) get every operation. All of them are lists of the thread, so they can be set aside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import ParamSpec, TypeVar

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._guards import TracingContext
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

P = ParamSpec("P")
T = TypeVar("T")

#: The innermost transform, or None; how many modes there are of either kind. All without a call of Python's,
#: since they are asked in every step.
transform = torch._C._functorch.peek_interpreter_stack
dispatch_modes = torch._C._len_torch_dispatch_stack
function_modes = torch._C._len_torch_function_stack
#: What compiles each frame of Python's, or None.
compiler = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", type(None))
#: The recording of `torch.jit.trace`, or None.
recording = torch._C._get_tracing_state

_AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.AutogradOther
#: Whether operations are not recorded whatever grad mode says, as within those of `torch.library`.
below_autograd = partial(torch._C._dispatch_tls_is_dispatch_key_excluded, _AUTOGRAD[0])

# Before torch 2.7 nobody knows.
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", bool)

_MODES = torch._C._TorchDispatchModeKey
_TRACING = _MODES.FAKE, _MODES.PROXY, _MODES.FUNCTIONAL


def is_tracing() -> bool:
    """Whether a mode is on that traces a program, rather than one that looks at what is computed."""
    return bool(dispatch_modes()) and any(torch._C._get_dispatch_mode(mode) is not None for mode in _TRACING)


def is_compiling() -> bool:
    """Whether `torch.compile` traces a program. What is exported keeps what was read, as torch's own models do there."""
    return is_tracing() and TracingContext.try_get() is not None and not _is_exporting()


def default_device() -> torch.device | None:
    """Where tensors are made by default; None where nobody said."""
    for mode in reversed(_get_current_function_mode_stack()):
        if isinstance(mode, DeviceContext):
            return mode.device  # type: ignore[no-any-return]
    return None


@contextmanager
def set_aside(device: torch.device | None = None) -> Iterator[None]:
    """Without transforms and modes.

    Args:
        device: where tensors are made by default meanwhile; None is the CPU.
    """
    with ExitStack() as stack:
        callback = compiler()
        if callback is not None:
            stack.callback(torch._C._dynamo.eval_frame.set_eval_frame, callback)
            torch._C._dynamo.eval_frame.set_eval_frame(None)
        state = recording()
        if state is not None:
            stack.callback(torch._C._set_tracing_state, state)
            torch._C._set_tracing_state(None)
        if below_autograd():
            stack.enter_context(_recorded())
        if transform() is not None:
            stack.enter_context(temporarily_clear_interpreter_stack())
        if dispatch_modes():
            stack.enter_context(_disable_current_modes())
        if function_modes():
            stack.enter_context(_without_function_modes())
        if device is not None:
            stack.enter_context(device)
        yield


def apart_from_compiler(function: Callable[P, T]) -> Callable[P, T]:
    """A function whose calls are made without what compiles each frame: it would read the guest's own code."""

    @wraps(function)
    def apart(*args: P.args, **kwargs: P.kwargs) -> T:
        callback = compiler()
        if callback is None:
            return function(*args, **kwargs)
        set_compiler = torch._C._dynamo.eval_frame.set_eval_frame
        set_compiler(None)
        try:
            return function(*args, **kwargs)
        finally:
            set_compiler(callback)

    return apart


@contextmanager
def _recorded() -> Iterator[None]:
    exclude = torch._C._dispatch_tls_set_dispatch_key_excluded
    excluded = [key for key in _AUTOGRAD if torch._C._dispatch_tls_is_dispatch_key_excluded(key)]
    for key in excluded:
        exclude(key, False)
    try:
        yield
    finally:
        for key in excluded:
            exclude(key, True)


@contextmanager
def _without_function_modes() -> Iterator[None]:
    modes = [torch._C._pop_torch_function_stack() for _ in range(function_modes())]
    try:
        yield
    finally:
        for mode in reversed(modes):
            torch._C._push_on_torch_function_stack(mode)
