"""Running a model so that torch's global state is neither changed nor trusted (law 9).

Grad mode, inference mode and autocast are per thread and cheap to pin. The default dtype and the
random state are global to the process, so they are touched only when they must be, under a lock,
and put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from gradbridge import forks
from gradbridge.forks import fork_safe_lock
from gradbridge_torch.explain import explain_backward, explain_forward, steers
from gradbridge_torch.inlining import KEPT, InlinedModel, top_hooks
from gradbridge_torch.replicas import EmptiedError
from gradbridge_torch.runtime import RUNTIME
from gradbridge_torch.surroundings import (
    below_autograd,
    compiler,
    default_device,
    dispatch_modes,
    function_modes,
    recording,
    set_aside,
    transform,
)

# One lock for the process: the state behind it is the process's.
_globals = fork_safe_lock()


@contextmanager
def seeded(noise: int, device: torch.device | None) -> Iterator[None]:
    """Random numbers from a seed alone, on the CPU and a device; torch's random state is put back afterwards.

    The state is the process's, so everybody who seeds it takes turns here.

    Args:
        noise: the seed.
        device: where else numbers are drawn.
    """
    if forks.parent is not None:
        RUNTIME.require()  # those who call it on their own compute with torch here, too
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        index = device.index if device.index is not None else torch.cuda.current_device()
        generators.append(torch.cuda.default_generators[index])
    with _globals:
        states = [generator.get_state() for generator in generators]
        try:
            for generator in generators:
                generator.manual_seed(noise)
            yield
        finally:
            for generator, state in zip(generators, states):
                generator.set_state(state)


class TorchModel(InlinedModel):
    """A model of tensors, run in isolation.

    Args:
        device: where it computes.
        draws: whether it is known to draw random numbers.
        watched: whether it might; then the first draw is noticed. Watching costs 5 µs a call.
    """

    def __init__(self, device: torch.device | None, draws: bool, watched: bool) -> None:
        self.device, self.draws = device, draws
        self._default_dtype = torch.get_default_dtype()
        self._default_device = default_device()
        self._own_modes = int(self._default_device is not None)
        self._is_watched, self._is_probed = watched, False
        #: Another default dtype, to be tried where dtypes do not fit: what a forward makes is to follow its weights.
        self.other_default: torch.dtype | None = None

    def isolated(
        self, thunk: Callable[[], Any], inputs: Sequence[Any], noise: int | None, record: bool
    ) -> Any:
        if (
            torch.get_default_dtype() is not self._default_dtype
            or torch.is_inference_mode_enabled()
            or torch.is_autocast_enabled("cpu")
            or torch.is_autocast_enabled("cuda")
            or top_hooks(True) not in (None, KEPT)
            or transform() is not None
            or dispatch_modes()
            or recording() is not None
            or compiler() is not None
            or below_autograd()
            or function_modes() != self._own_modes
            or (self._own_modes and default_device() != self._default_device)
        ):
            with self._pinned():
                return self.isolated(thunk, inputs, noise, record)
        before, default = torch.is_grad_enabled(), self._default_dtype
        # What torch.set_grad_enabled does, in a tenth of the time.
        torch._C._set_grad_enabled(record or self.differentiates)
        try:
            if noise is not None and (self.draws or self._is_watched):
                return self._watched(thunk, noise)
            return thunk()
        except RuntimeError as error:
            if noise is None or not self._learns(error, record):
                raise
        finally:
            torch._C._set_grad_enabled(before)
        try:
            return self.isolated(thunk, inputs, noise, record)
        except RuntimeError:
            self._default_dtype = default  # was not it
            raise

    def explain(self, error: Exception, inputs: Sequence[Any], doing: str = "") -> Exception:
        if steers(error):
            return error
        if doing.startswith("the derivative"):
            return explain_backward(error, self.label, "gradient" in doing)
        return explain_forward(error, self.label, inputs)

    def tracked(self, weights: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The weights, which are ours, as a model needs them that takes gradients itself, or asks who is trainable."""
        for weight in weights:
            if not weight.requires_grad and not weight.is_inference():
                weight.requires_grad_()
        return weights

    def _learns(self, error: RuntimeError, record: bool) -> bool:
        """Whether a forward that failed will not if it is tried again, now that it is known what it does."""
        if isinstance(error, EmptiedError):
            return self.keep_for_rerun()
        if self.other_default not in (None, self._default_dtype) and (
            "dtype" in str(error) or "scalar type" in str(error)
        ):
            self._default_dtype = self.other_default
            return True
        if record or self.differentiates or "does not require grad" not in str(error):
            return False
        self.differentiates = True
        return True

    # -- random numbers -----------------------------------------------------------------------

    def _watched(self, thunk: Callable[[], Any], noise: int) -> Any:
        if self.draws:
            return self._seeded(thunk, noise)
        if self._is_probed:
            return self._probed(thunk, noise)
        # Alone the first time: another thread that puts the state back would hide a draw.
        with _globals:
            result = self._seeded(thunk, noise) if self.draws else self._probed(thunk, noise)
            self._is_probed = True
            return result

    def _probed(self, thunk: Callable[[], Any], noise: int) -> Any:
        generator = torch.default_generator
        with _globals:  # not in the middle of somebody's seeded run
            before = generator.get_state()
        try:
            result = thunk()
        except BaseException:
            with _globals:
                generator.set_state(before)
            raise
        with _globals:
            if torch.equal(before, generator.get_state()):
                return result
            # It drew numbers after all: put them back, and from now on give it its own.
            generator.set_state(before)
        self.draws = True
        return self._seeded(thunk, noise)

    def _seeded(self, thunk: Callable[[], Any], noise: int) -> Any:
        with seeded(noise, self.device):
            return thunk()

    # -- modes --------------------------------------------------------------------------------

    @contextmanager
    def _pinned(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(set_aside(self._default_device))
            # Hooks on saved tensors (a lossy memory, a checkpoint around us): only the innermost ones are called.
            if top_hooks(True) not in (None, KEPT):
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(*KEPT))
            # What is made in inference mode can never be differentiated.
            stack.enter_context(torch.inference_mode(False))
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            if torch.get_default_dtype() is not self._default_dtype:
                stack.enter_context(self._pinned_dtype())
            yield

    @contextmanager
    def _pinned_dtype(self) -> Iterator[None]:
        with _globals:
            changed = torch.get_default_dtype()
            torch.set_default_dtype(self._default_dtype)
            try:
                yield
            finally:
                torch.set_default_dtype(changed)
