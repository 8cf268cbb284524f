"""What torch's compiler takes as it stands, in place of reading how a bridge is called; imported where it is at work."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

import torch
from torch._dynamo import nonstrict_trace, trace_rules
from torch._dynamo.source import GlobalStateSource
from torch._guards import Guard, TracingContext

import gradbridge
import gradbridge_torch
from gradbridge.closures import Surroundings, surroundings
from gradbridge.errors import GradbridgeError, HostError
from gradbridge.lifting.compilers import bridges
from gradbridge_torch.inlining import InlinedModel, calls_back
from gradbridge_torch.surroundings import is_compiling, is_tracing

#: For so many states of what a guest reads from outside programs are compiled anew; then they call it. torch compiles
#: a function eight times, and refuses after that.
_STATES = 3

#: {bridge: states that it was compiled in}
_states: weakref.WeakKeyDictionary[Any, set[int]] = weakref.WeakKeyDictionary()

#: {what is being compiled: {bridge: whether its guest may be a part of it}}
_parts: weakref.WeakKeyDictionary[TracingContext, dict[Any, bool]] = weakref.WeakKeyDictionary()


def _is_part(bridge: Any) -> bool:
    """Whether the guest of a bridge may be a part of the program that is being compiled.

    What it reads from outside is in the program then, which is compiled anew where that has changed.
    """
    if not is_compiling():
        return True
    context = TracingContext.get()
    parts = _parts.setdefault(context, {})
    if bridge not in parts:
        parts[bridge] = _is_guarded(bridge, context)
    return parts[bridge]


def _is_guarded(bridge: Any, context: TracingContext) -> bool:
    model = getattr(bridge.adapter, "source", None)
    readers = model.readers() if isinstance(model, InlinedModel) else ()
    found = surroundings(*readers) if readers else None
    if found is None:
        return True
    states = _states.setdefault(bridge, set())
    states.add(hash(found.now.key))
    if len(states) > _STATES:
        return False
    guard = Guard(GlobalStateSource(), _Unchanged(readers, found).add_to)
    context.guards_context.dynamo_guards.add(guard)
    return True


class _Unchanged:
    """Asked before a compiled program runs: whether what functions read from outside is as it was.

    Args:
        readers: the functions.
        found: what they read.
    """

    def __init__(self, readers: Sequence[Callable[..., Any]], found: Surroundings) -> None:
        self._readers, self._look, self._key = readers, found.now, found.now.key

    def __call__(self, variables: Any) -> bool:
        if self._look.holds():
            return True
        look = Surroundings(*self._readers).now  # other objects, but the same numbers perhaps
        if look.key != self._key:
            return False
        self._look = look
        return True

    def add_to(self, builder: Any, guard: Any) -> None:
        """Become a guard of the program that was compiled: as `Guard` calls it."""
        told = ["what a bridged function reads from outside is as it was"]
        add = builder.guard_manager.root.add_lambda_guard
        try:
            add(self, told, guard.user_stack)
        except TypeError:  # of earlier versions of torch
            add(self, told)


@nonstrict_trace
def call(key: str, params: tuple[Any, ...], inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of a bridge, by its key.

    Returns:
        {"": what it returns}, or while the program is traced {why it is refused: a number}. What would be raised here
        the compiler replaces by words of its own; so whoever called raises it.
    """
    try:
        bridge = bridges.get(key)
        if bridge is None:
            raise HostError(
                "a compiled program calls a bridge that no longer exists; keep a reference to the bridge"
            )
        # By what is behind the door at which the compiler was met: it stands there still where it runs a call to read on.
        host = bridge._host_of(params, inputs, kwargs)
        weights, is_flat = bridge._weights(host, params[0]) if params else ((), False)
        before = calls_back.set(not _is_part(bridge))
        try:
            return {"": bridge._apply(weights, is_flat, inputs, kwargs, host)}
        finally:
            calls_back.reset(before)
    except GradbridgeError as error:
        if not is_tracing():
            raise
        kind = "" if isinstance(error, HostError) else f"{type(error).__name__}: "
        return {f"{kind}{error}": torch.zeros(())}


#: What the compiler reads of our own code: the lines that lead here.
_READ = (
    "gradbridge.errors",
    "gradbridge.execution.calling",
    "gradbridge.lifting.compilers",
    "gradbridge.primitive",
    "gradbridge.trees",
    "gradbridge_torch.compiled",
    "gradbridge_torch.wrapping",
)
#: What it reads, too, where nothing of ours called it: programs of the conformance kit, and modules of bridges, which
#: may be all that is compiled.
_PROGRAMS = (
    "gradbridge.testing",
    "gradbridge_torch.conformance",
    "gradbridge_torch.host_conformance",
    "gradbridge_torch.wrapping",
)

if hasattr(trace_rules, "BUILTIN_INLINE_WHEN_CALLED"):  # else it reads more, in vain
    specs = [find_spec(name) for name in _READ]
    trace_rules.BUILTIN_INLINE_WHEN_CALLED.update([str(spec.origin) for spec in specs if spec is not None])
    for package in (gradbridge, gradbridge_torch):
        for module in iter_modules(package.__path__, f"{package.__name__}."):
            if module.name not in _PROGRAMS:
                trace_rules.add(module.name)
