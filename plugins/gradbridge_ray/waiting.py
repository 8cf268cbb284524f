"""Waiting for workers, as long as there is hope; what is said where there is none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import ray
from ray import exceptions

from gradbridge.errors import GuestError
from gradbridge_ray import cluster
from gradbridge_ray.errors import ClusterError, ShardTimeoutError
from gradbridge_ray.messages import Order, Tally

#: Seconds that workers wait for CPUs that others hold, or that a lost node had.
GRACE = 60.0
#: Seconds between looks at what is late.
_LOOK = 5.0


class Call(NamedTuple):
    """An order for one worker.

    Attributes:
        worker: its number.
        order: for it.
        arrays: that go along: arrays, references, and constants.
        where: for errors.
    """

    worker: int
    order: Order
    arrays: Sequence[Any]
    where: str


class Options(NamedTuple):
    """What a pool is made of.

    Attributes:
        payload: what workers make the model of, pickled.
        count: of workers.
        cpus, gpus: of each.
        timeout: seconds that a worker may take for one order; None for any.
    """

    payload: bytes
    count: int
    cpus: float
    gpus: float
    timeout: float | None


class Waiting:
    """The half of `Pool` that waits."""

    options: Options
    count: int
    _workers: list[Any]
    _cpus: float

    def _waited(self, refs: list[Any], calls: Sequence[Call], starts: bool = False) -> list[Any]:
        """The values of references, as long as there is hope."""
        begun, lacking = time.monotonic(), None
        timeout = None if starts else self.options.timeout
        try:
            while True:
                left = _LOOK if timeout is None else min(_LOOK, max(0.0, begun + timeout - time.monotonic()))
                try:
                    found: list[Any] = ray.get(refs, timeout=left)
                    return found
                except exceptions.GetTimeoutError:
                    pass
                lacking = self._refuse_hopeless(lacking, starts)
                if timeout is not None and time.monotonic() >= begun + timeout:
                    late = self._late(refs, calls)
                    if all(_tally_of(self._workers[call.worker]).is_ready for call in late):
                        raise ShardTimeoutError(
                            f"{', '.join(call.where for call in late[:3])} did not answer within timeout={timeout:g} s; "
                            f"these workers are started again, and the next call may go on. Give more time, or smaller "
                            f"pieces to more workers"
                        )
                    begun = time.monotonic()  # one was lost and is being made again, which is not a step
        except exceptions.RayError as error:
            raise self._explained(error, refs, calls) from error
        except BaseException:  # the user's, most of them: an interrupt, an alarm, the end of the program
            self._abandon(refs, calls)
            raise

    def _refuse_hopeless(self, lacking: float | None, starts: bool) -> float | None:
        """Since when workers have no place to be; None where all have one.

        One that is at work may hold Python's lock and not answer, so there also have to be too few CPUs for all.
        """
        if not starts and cluster.total_cpus() >= self._cpus * self.count:
            return None
        states = [_tally_of(worker).boot > 0 for worker in self._workers]
        if all(states):
            return None
        now = time.monotonic()
        lacking = now if lacking is None else lacking
        if now - lacking > GRACE:
            need, has = self._cpus * self.count, cluster.total_cpus()
            free = ray.available_resources().get("CPU", 0.0)
            raise ClusterError(
                f"{states.count(False)} of {self.count} workers wait for a place since {GRACE:g} s: they need {need:g} CPUs in "
                f"all, and the cluster has {has:g}, of which {free:g} are free; free some, add a node, or ask for fewer workers"
            )
        return lacking

    def _late(self, refs: list[Any], calls: Sequence[Call]) -> list[Call]:
        """Who did not answer yet."""
        _, late = ray.wait(refs, num_returns=len(refs), timeout=0)
        return [call for ref, call in zip(refs, calls) if ref in late]

    def _abandon(self, refs: list[Any], calls: Sequence[Call]) -> None:
        """Nobody waits for these any more: what has not begun is cancelled, who is at work begins anew."""
        with suppress(exceptions.RayError, ValueError):
            _, late = ray.wait(refs, num_returns=len(refs), timeout=0)
            for ref in late:
                ray.cancel(ref)
            for i in {calls[refs.index(ref)].worker for ref in late}:
                ray.kill(self._workers[i], no_restart=False)

    def _explained(
        self, error: Exception, refs: list[Any], calls: Sequence[Call]
    ) -> ClusterError | GuestError:
        where = ""
        for ref, call in zip(refs, calls):
            try:
                ray.get(ref, timeout=0)
            except exceptions.GetTimeoutError:
                continue
            except exceptions.RayError as own:
                where, error = call.where, own
                break
        if not ray.is_initialized():
            return ClusterError(
                "the Ray cluster went away while the workers were computing; make the bridge again"
            )
        said = " ".join(str(error).split())
        said = said if len(said) <= 400 else f"{said[:400]}…"
        if isinstance(error, exceptions.RayTaskError):
            cause = getattr(error, "cause", error)
            return GuestError(f"{where}: a worker raised {type(cause).__name__}: {cause}")
        if isinstance(
            error, (exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.OutOfMemoryError)
        ):
            if calls[0].order.what == "start":
                return ClusterError(
                    f"{where}: the process ended each time that the model was made ({said}); what makes it may need more "
                    f"memory than there is, or crash"
                )
            return ClusterError(
                f"{where}: the worker died each time that it computed this ({said}); it may need more memory than there is, or "
                f"crash on these rows. The others are usable"
            )
        return ClusterError(f"{where}: Ray reports {type(error).__name__}: {said}")


def _tally_of(worker: Any) -> Tally:
    """What a worker says of itself, whose computing does not keep it from that; an empty one if it says nothing."""
    try:
        tally: Tally = ray.get(worker.tally.remote(), timeout=1.0)
        return tally
    except exceptions.RayError:  # it is being started, or holds Python's lock
        return Tally()
