"""The workers, and what is sent to them and comes back."""

from __future__ import annotations

import itertools
import os
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray import exceptions

from gradbridge.errors import InputError, Unsupported
from gradbridge.protocol import Array
from gradbridge.wording import first_line
from gradbridge_ray import cluster
from gradbridge_ray.errors import ClusterError
from gradbridge_ray.messages import Facts, Failure, Letter, Order, Path, Proof, Pullback, Reply, Tally
from gradbridge_ray.waiting import Call, Options, Waiting
from gradbridge_ray.worker import Worker

#: Bytes from which an array is put into the object store rather than sent along; Ray's own threshold.
INLINE = 100 * 1024


_living: weakref.WeakValueDictionary[str, Pool] = weakref.WeakValueDictionary()


class Pool(Waiting):
    """Workers that hold the same model. They are started when they are first needed.

    Args:
        options: what it is made of.
        name: of its workers in the cluster, before their numbers.
        mends: what was asked of the model's adapters.
    """

    def __init__(self, options: Options, name: str = "", mends: tuple[tuple[str, Path], ...] = ()) -> None:
        self.options, self.count = options, options.count
        self.name = name or uuid.uuid4().hex[:8]
        self.follows = False
        self._mends, self._proof = mends, ()
        self._facts: dict[Path, Facts | None] = {}
        self._keys = itertools.count(1)
        self._dropped: list[deque[int]] = [deque() for _ in range(self.count)]
        self._tallies = [Tally()] * self.count
        self._workers: list[Any] = []
        self._cpus = 0.0  # that each takes of the cluster's
        self._session, self._pid, self._is_closed = "", os.getpid(), False
        self._lock = threading.RLock()
        _living[self.name] = self

    # -- the workers --------------------------------------------------------------------------

    def start(self) -> None:
        """Have the workers, each with the model in it.

        Raises:
            ClusterError: the cluster is gone, or too small.
            GradbridgeError: the model cannot be made.
        """
        if self._workers and self._session == cluster.session() and self._pid == os.getpid():
            return
        with self._lock:
            self._refuse_gone()
            if self._workers:
                return
            options = self.options
            self._cpus = 0.0 if cluster.join(self.count * options.cpus) else options.cpus
            self._session = cluster.session()
            try:
                self._workers = [
                    Worker.options(
                        num_cpus=self._cpus,
                        num_gpus=options.gpus,
                        name=f"{self.name}:{i}",
                        namespace=cluster.NAMESPACE,
                        scheduling_strategy="SPREAD",
                    ).remote(options.payload, max(1, int(options.cpus)))
                    for i in range(self.count)
                ]
                refs = [worker.start.remote() for worker in self._workers]
                calls = [
                    Call(i, Order("start", ()), (), f"worker {i + 1} of {self.count}")
                    for i in range(self.count)
                ]
                self.follows = bool(self._values(self._waited(refs, calls, starts=True), calls)[0])
            except BaseException:
                self._kill()
                cluster.leave()
                raise

    def close(self) -> None:
        """End the workers; and the cluster, if it was started for them and nobody else uses it."""
        with self._lock:
            if self._workers and self._pid == os.getpid():
                if self._session == cluster.session():
                    self._kill()
                    cluster.leave()
                self._workers = []
            self._is_closed = True

    def _kill(self) -> None:
        for worker in self._workers:
            with suppress(exceptions.RayError):
                ray.kill(worker)
        self._workers = []

    def _refuse_gone(self) -> None:
        if self._is_closed:
            raise ClusterError("this bridge over Ray workers was closed; make another one with shard_rows(…)")
        cluster.refuse_forked()
        if self._workers and self._session != cluster.session():
            raise ClusterError(
                "the Ray cluster that the workers were in is gone (ray.shutdown was called, or another one was joined); make "
                "the bridge again with shard_rows(…), and place the rows again"
            )

    # -- asking -------------------------------------------------------------------------------

    def new_key(self) -> int:
        """For an evaluation."""
        return next(self._keys)

    def drop(self, key: int) -> None:
        """Nobody holds this evaluation any more. Called by the garbage collector, so Ray is not touched here."""
        for waiting in self._dropped:
            waiting.append(key)

    def shipped(self, array: Array, keeps: bool) -> Any:
        """An array as it is sent: a reference to a large one; a small one itself, a copy where it will be sent again."""
        self.start()  # else Ray would start a cluster of its own here
        if array.nbytes >= INLINE:
            return ray.put(array)
        return array.copy() if keeps else array

    def worker_of(self, piece: int, pieces: int) -> int:
        """Which worker has a piece: neighbouring pieces are together."""
        return piece if pieces <= self.count else piece * self.count // pieces

    def ask(self, calls: Sequence[Call]) -> list[Any]:
        """Send orders, wait for all, and give what they return.

        Raises:
            GradbridgeError: what the model raised, with the shard.
            ClusterError: a worker is gone for good, too late …
        """
        self.start()
        refs = self._sent(calls)
        return self._values(self._waited(refs, calls), calls)

    def ask_all(self, order: Order) -> list[Any]:
        """The same order to every worker."""
        return self.ask([Call(i, order, (), f"worker {i + 1} of {self.count}") for i in range(self.count)])

    def pull(self, calls: Sequence[Call], own: tuple[int, ...]) -> list[tuple[Any, Any]]:
        """Orders of backwards: for each its gradients of the arguments `own`, and a reference to the list of the others."""
        self.start()
        pairs = self._sent(calls, own)
        values = self._values(self._waited([reply for reply, _ in pairs], calls), calls)
        return [(value, shared) for value, (_, shared) in zip(values, pairs)]

    def added(self, left: Any, right: Any, worker: int) -> Any:
        """A reference to the sum of two lists of arrays, made by a worker."""
        return self._workers[worker].add.remote(left, right)

    def got(self, refs: Sequence[Any], where: str) -> list[Any]:
        """What references lead to."""
        return self._waited(list(refs), [Call(0, Order("add", ()), (), where)] * len(refs))

    def facts(self, path: Path) -> Facts | None:
        """What there is to know of an adapter; None where there is none at this path."""
        plain = tuple(step._replace(key=0) if isinstance(step, Pullback) else step for step in path)
        if plain not in self._facts:
            if len(self._facts) > 256:
                self._facts = {}
            self._facts[plain] = self.ask([Call(0, Order("facts", plain), (), "worker 1")])[0]
        return self._facts[plain]

    def mend(self, method: str, path: Path) -> bool:
        """Ask something of the adapter in each worker, and of those that will be restarted."""
        changed = self.ask_all(Order("asked", path, more=method))
        with self._lock:
            self._mends = (*self._mends, (method, path))
        return any(changed)

    def prove(self, proof: Proof) -> None:
        """From now on workers show once that they have the same model.

        Raises:
            AuditError: one of them has another.
        """
        self._proof = (ray.put(proof),)
        self.ask_all(Order("facts", proof.path))

    def tallies(self) -> list[Tally]:
        """What the workers have done; the last that is known of one that does not answer."""
        self._refuse_gone()
        if not self._workers:
            return list(self._tallies)
        for worker, waiting in zip(self._workers, self._dropped):
            worker.forget.remote(_all_of(waiting))
        refs = [worker.tally.remote() for worker in self._workers]
        ray.wait(refs, num_returns=len(refs), timeout=2.0)
        for i, ref in enumerate(refs):
            with suppress(exceptions.RayError):
                tally = ray.get(ref, timeout=0.1)
                self._note(i, tally)
        return list(self._tallies)

    # -- private ------------------------------------------------------------------------------

    def _sent(self, calls: Sequence[Call], own: tuple[int, ...] | None = None) -> list[Any]:
        refs = []
        for call in calls:
            worker, before = self._workers[call.worker], self._tallies[call.worker]
            drops = _all_of(self._dropped[call.worker])
            letter = Letter(call.order, drops, self._mends, self._proof, before)
            try:
                if own is None:
                    refs.append(worker.do.remote(letter, *call.arrays))
                else:
                    refs.append(worker.pull.options(num_returns=2).remote(letter, own, *call.arrays))
            except (TypeError, ValueError) as error:
                raise InputError(f"an input cannot be sent to the workers: {first_line(error)}") from error
        return refs

    def _values(self, replies: Sequence[Reply], calls: Sequence[Call]) -> list[Any]:
        for call, reply in zip(calls, replies):
            self._note(call.worker, reply.tally)
        for call, reply in zip(calls, replies):
            if isinstance(reply.value, Failure):
                raise _raised(reply.value, call.where)
        return [reply.value for reply in replies]

    def _note(self, worker: int, tally: Tally) -> None:
        known = self._tallies[worker]
        # Of a restarted one that has not gone on from what was before, only the boot is new.
        if (
            tally.rows >= known.rows
            and tally.forwards >= known.forwards
            and tally.backwards >= known.backwards
        ):
            self._tallies[worker] = tally

    def __copy__(self) -> Pool:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Pool:
        return self

    def __reduce__(self) -> Any:
        return _revived, (self.options, self.name, self._mends)


def _revived(options: Options, name: str, mends: tuple[tuple[str, Path], ...]) -> Pool:
    """The same pool where its process is this one; else another, with workers of its own."""
    pool = _living.get(name)
    if pool is not None and pool._pid == os.getpid() and not pool._is_closed:
        return pool
    return Pool(options, "", mends)


def _raised(failure: Failure, where: str) -> Exception:
    if failure.kind is ImportError:
        return ClusterError(
            f"{where}: what makes the model cannot be imported in a worker ({failure.text}); install it on every node, or "
            f"define it in the program itself"
        )
    if issubclass(failure.kind, Unsupported):
        return failure.kind(failure.text)
    error = failure.kind(f"{where}: {failure.text}")
    error.add_note(f"In the worker:\n{failure.trace}")
    return error


def _all_of(waiting: deque[int]) -> tuple[int, ...]:
    keys = []
    with suppress(IndexError):
        while True:
            keys.append(waiting.popleft())
    return tuple(keys)
