"""TensorFlow's context and its threads, which a forked child does not have."""

from __future__ import annotations

import sys

from gradbridge.forks import Runtime, has_thread, is_held


class TensorFlowRuntime(Runtime):
    """The eager context. The first tensor starts it, and so does building a Keras model; importing does not."""

    name = "TensorFlow"
    reentry_cure = (
        "Call it outside of tf.function (a Keras model: compile(run_eagerly=True)), or bridge it in eval mode, without "
        "rows_per_chunk= and check_finite=, so that it can be a part of the graph"
    )

    def is_started(self) -> bool:
        context = getattr(sys.modules.get("tensorflow.python.eager.context"), "_context", None)
        # Whoever holds the lock is starting it.
        return bool(getattr(context, "_initialized", False)) or is_held(
            getattr(context, "_initialize_lock", None)
        )

    def runs_here(self) -> bool:
        return has_thread("tf_Compute")


RUNTIME = TensorFlowRuntime()
