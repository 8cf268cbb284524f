"""A Ray actor with the model in it."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

import ray

from gradbridge.errors import GradbridgeError
from gradbridge_ray.messages import Failure, Letter, Order, Reply, Tally
from gradbridge_ray.shard import Shard, built

#: Who reads how many threads to take, before the frameworks that do are imported.
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)

_COUNTS = {
    "forward": "forwards",
    "pushforward": "forwards",
    "pushforward_many": "forwards",
    "backward": "backwards",
    "row_jacobians": "backwards",
}


@ray.remote(max_restarts=-1, max_task_retries=3, concurrency_groups={"status": 1})
class Worker:
    """Holds the model.

    Args:
        payload: (what gives the model, options of `gradbridge.bridge`), pickled. It is opened here, after threads are set.
        threads: that frameworks may use.
    """

    def __init__(self, payload: bytes, threads: int) -> None:
        for name in _THREADS:
            os.environ[name] = str(threads)
        if threads == 1:
            os.environ["XLA_FLAGS"] = (
                f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
            )
        self._payload, self._shard, self._is_proven = payload, None, False
        context = ray.get_runtime_context()
        self._tally = Tally(
            int.from_bytes(os.urandom(7), "big"), node=context.get_node_id()[:8], pid=os.getpid()
        )
        self._adopted = False
        self._lock = threading.Lock()

    def start(self) -> Reply:
        """Make the model. Not in the constructor: what is raised there Ray takes for a dead worker."""
        return self._answered(self._model)

    @ray.method(max_task_retries=0)  # what went with a worker is forgotten
    def forget(self, keys: tuple[int, ...]) -> None:
        """Drop evaluations."""
        if self._shard is not None:
            self._shard.drop(keys)

    def do(self, letter: Letter, *arrays: Any) -> Reply:
        """Carry out an order."""
        return self._answered(lambda: self._done(letter, arrays))

    def pull(self, letter: Letter, own: tuple[int, ...], *cotangents: Any) -> tuple[Reply, Any]:
        """A backward, whose gradients of what has rows, the arguments `own`, come apart from the others."""
        reply = self.do(letter, *cotangents)
        if not isinstance(reply.value, dict):
            return reply, None
        owned = {i: g for i, g in reply.value.items() if i in own}
        return reply._replace(value=owned), [g for i, g in reply.value.items() if i not in own]

    def add(self, ours: Any, theirs: Any) -> Any:
        """The sums of two lists of arrays; None where one of them is none."""
        return None if ours is None or theirs is None else [a + b for a, b in zip(ours, theirs)]

    @ray.method(concurrency_group="status")
    def tally(self) -> Tally:
        """What it has done; answers while it computes."""
        shard = self._shard
        return self._tally._replace(kept=0 if shard is None else shard.kept, is_ready=shard is not None)

    # -- private ------------------------------------------------------------------------------

    def _model(self) -> bool:
        """Have the model; whether it follows the dtype of the params."""
        if self._shard is None:
            make, options = ray.cloudpickle.loads(self._payload)
            adapter, self._follows = built(make(), options)
            self._shard = Shard(lambda: adapter)
        return self._follows

    def _done(self, letter: Letter, arrays: Sequence[Any]) -> Any:
        self._model()
        shard, order = self._shard, letter.order
        assert shard is not None
        if not self._adopted:
            self._adopt(letter.before)
        shard.drop(letter.drops)
        shard.mend(letter.mends)
        if letter.proof and not self._is_proven:
            proof = ray.get(letter.proof[0])
            arguments = [_had(x) for x in (proof.params, *proof.inputs)]
            shard.prove(proof._replace(params=arguments[0], inputs=tuple(arguments[1:])))
            self._is_proven = True
        start = time.perf_counter()
        value = shard.do(order, arrays)
        self._count(order, time.perf_counter() - start)
        return value

    def _adopt(self, before: Tally) -> None:
        """Go on from what this worker had done before it was restarted."""
        again = before.boot not in (0, self._tally.boot)
        self._tally = before._replace(
            boot=self._tally.boot,
            node=self._tally.node,
            pid=self._tally.pid,
            restarts=before.restarts + again,
        )
        self._adopted = True

    def _count(self, order: Order, seconds: float) -> None:
        counted = _COUNTS.get(order.what)
        if counted is None:
            return
        more = {counted: getattr(self._tally, counted) + 1}
        if counted == "forwards":
            more["rows"] = self._tally.rows + order.rows
        self._tally = self._tally._replace(seconds=self._tally.seconds + seconds, **more)

    def _answered(self, work: Any) -> Reply:
        try:
            value = work()
        except GradbridgeError as error:
            value = Failure(type(error), str(error), traceback.format_exc())
        except ImportError as error:
            value = Failure(ImportError, f"{type(error).__name__}: {error}", traceback.format_exc())
        return Reply(value, self.tally())


def _had(value: Any) -> Any:
    """What a reference leads to; anything else as it is."""
    return ray.get(value) if isinstance(value, ray.ObjectRef) else value
