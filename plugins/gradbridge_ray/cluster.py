"""The Ray cluster that workers are in: the one that this process has joined, else one of our own on this machine.

Nobody's cluster is shut down. Ours ends with the last of those who use it, and with the process.
"""

from __future__ import annotations

import os

import ray

from gradbridge.forks import fork_safe_lock
from gradbridge.notices import notice
from gradbridge_ray.errors import ClusterError

#: Of the workers' names in a cluster.
NAMESPACE = "gradbridge"

# The variable by which Ray's processes are told whether to report how they are used.
_REPORTS = "RAY_USAGE_STATS_ENABLED"

_lock = fork_safe_lock()
_lost = False  # whether this process came from one that had joined a cluster
_users = 0
_ours = ""  # the job that started it


def join(cpus: float) -> bool:
    """Have a cluster, and use it until `leave`.

    Args:
        cpus: that will be taken.

    Returns:
        Whether it is ours: then nobody else is in it, and its CPUs need not be counted.

    Raises:
        ClusterError: it has not so many.
    """
    global _users, _ours
    refuse_forked()
    with _lock:
        if not ray.is_initialized():
            _users = 0
            if os.environ.get("RAY_ADDRESS"):
                ray.init()
            else:
                _start()
                _ours = session()
        is_ours, has = _ours == session(), total_cpus()
        if is_ours and has < cpus:
            notice(
                f"workers with {cpus:g} CPUs in all were asked for, and this machine has {has:g}: they wait for each other"
            )
        elif has < cpus:
            raise ClusterError(
                f"workers with {cpus:g} CPUs in all were asked for, and the Ray cluster has {has:g}; ask for fewer workers, "
                f"give cpus_per_worker=0.5, say, or add nodes before"
            )
        _users += 1
        return is_ours


def refuse_forked() -> None:
    """Refuse to go on in a process that was forked from one that had joined a cluster: Ray would wait for ever.

    Raises:
        ClusterError
    """
    if _lost:
        raise ClusterError(
            "this process was forked from one that had joined a Ray cluster, and Ray does not survive a fork; start processes "
            "with multiprocessing.get_context('spawn'), or fork them before anything joins a cluster"
        )


def leave() -> None:
    """One user less; the cluster that was started for them is stopped after the last."""
    global _users, _ours
    with _lock:
        _users = max(0, _users - 1)
        if not _users and _ours and ray.is_initialized() and session() == _ours:
            ray.shutdown()
            _ours = ""


def _forked() -> None:
    global _lost
    _lost = _lost or ray.is_initialized()


def _start() -> None:
    """A cluster on this machine, which reports nothing to Ray's makers: nobody who calls us was asked."""
    unsaid = _REPORTS not in os.environ
    os.environ.setdefault(_REPORTS, "0")
    try:
        ray.init(address="local", include_dashboard=False, logging_level="ERROR")
    finally:
        if unsaid:
            del os.environ[_REPORTS]


def session() -> str:
    """What tells this connection to a cluster from all others; "" where there is none."""
    return ray.get_runtime_context().get_job_id() + _node() if ray.is_initialized() else ""


def total_cpus() -> float:
    """Of all nodes that are alive."""
    return sum(float(n["Resources"].get("CPU", 0.0)) for n in ray.nodes() if n["Alive"])


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
