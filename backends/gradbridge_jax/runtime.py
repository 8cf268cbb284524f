"""JAX's clients and their threads, which a forked child does not have."""

from __future__ import annotations

import sys

from gradbridge.forks import Runtime, has_thread, is_held


class JaxRuntime(Runtime):
    """The clients of XLA. The first array that is made starts them; importing, tracing and bridging do not."""

    name = "JAX"

    def is_started(self) -> bool:
        # As `jax._src.xla_bridge.backends_are_initialized`, without its lock; whoever holds that is starting them.
        bridge = sys.modules.get("jax._src.xla_bridge")
        return bool(getattr(bridge, "_backends", None)) or is_held(getattr(bridge, "_backend_lock", None))

    def runs_here(self) -> bool:
        return has_thread("tf_XLAEigen")


RUNTIME = JaxRuntime()
