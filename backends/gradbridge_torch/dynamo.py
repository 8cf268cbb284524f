"""What torch's compiler takes as it stands, in place of reading how a bridge is called; imported where it is at work."""

from __future__ import annotations

from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

import torch
from torch._dynamo import nonstrict_trace, trace_rules

import gradbridge
import gradbridge_torch
from gradbridge.errors import GradbridgeError, HostError
from gradbridge.lifting.compilers import bridges
from gradbridge_torch.surroundings import is_tracing


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
        return {"": bridge._apply(weights, is_flat, inputs, kwargs, host)}
    except GradbridgeError as error:
        if not is_tracing():
            raise
        kind = "" if isinstance(error, HostError) else f"{type(error).__name__}: "
        return {f"{kind}{error}": torch.zeros(())}


#: What the compiler reads of our own code: the lines that lead here, and programs of the conformance kit.
_READ = (
    "gradbridge.errors",
    "gradbridge.execution.calling",
    "gradbridge.lifting.compilers",
    "gradbridge.primitive",
    "gradbridge.trees",
    "gradbridge_torch.compiled",
    "gradbridge_torch.wrapping",
)
_PROGRAMS = ("gradbridge.testing", "gradbridge_torch.conformance", "gradbridge_torch.host_conformance")

if hasattr(trace_rules, "BUILTIN_INLINE_WHEN_CALLED"):  # else it reads more, in vain
    specs = [find_spec(name) for name in _READ]
    trace_rules.BUILTIN_INLINE_WHEN_CALLED.update([str(spec.origin) for spec in specs if spec is not None])
    for package in (gradbridge, gradbridge_torch):
        for module in iter_modules(package.__path__, f"{package.__name__}."):
            if module.name not in _PROGRAMS:
                trace_rules.add(module.name)
