"""JAX's clients and their threads: which a forked child does not have, and which a callback keeps waiting."""

from __future__ import annotations

import sys

from gradbridge.forks import Runtime, has_thread, is_held


class JaxRuntime(Runtime):
    """The clients of XLA. The first array that is made starts them; importing, tracing and bridging do not."""

    name = "JAX"

    reentry_cure = (
        'Set jax.config.update("jax_cpu_enable_async_dispatch", False) before JAX is first used in the process: on the '
        "CPU programs then run in the thread that calls them, and this works. Or call that model as JAX itself, "
        "outside of the function that is called back"
    )

    def is_started(self) -> bool:
        # As `jax._src.xla_bridge.backends_are_initialized`, without its lock; whoever holds that is starting them.
        bridge = sys.modules.get("jax._src.xla_bridge")
        return bool(getattr(bridge, "_backends", None)) or is_held(getattr(bridge, "_backend_lock", None))

    def runs_here(self) -> bool:
        return has_thread("tf_XLAEigen")


RUNTIME = JaxRuntime()
