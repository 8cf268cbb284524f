"""Workers of other programs, found by their names in the cluster."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray
from ray import exceptions

from gradbridge_ray import cluster
from gradbridge_ray.errors import ClusterError
from gradbridge_ray.messages import Tally
from gradbridge_ray.status import Status


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Be in a cluster, to look at it, while a block runs.

    Args:
        address: of it, ``"auto"`` for the one that runs on this machine.

    Raises:
        ClusterError: there is none.
    """
    is_in = ray.is_initialized()
    if not is_in:
        try:
            _knock(address)
            ray.init(address=address, namespace=cluster.NAMESPACE, logging_level="ERROR", log_to_driver=False)
        except (OSError, ValueError, RuntimeError, exceptions.RayError) as error:
            where = "on this machine" if address == "auto" else f"at {address}"
            raise ClusterError(
                f"no Ray cluster runs {where}, so there are no workers to look at ({' '.join(str(error).split())[:200]}); "
                f"run this while a program that called shard_rows(…) is running, or say --address. A cluster that Ray "
                f"started with a token is joined with RAY_AUTH_MODE=token"
            ) from error
    try:
        yield
    finally:
        if not is_in:
            ray.shutdown()


def _knock(address: str) -> None:
    """Whether anybody is there: Ray itself waits for two minutes.

    Raises:
        OSError: nobody is.
    """
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5.0):
            pass


def status() -> Status:
    """What all workers in the cluster did.

    Raises:
        ClusterError: there are none.
    """
    names = [
        one["name"]
        for one in ray.util.list_named_actors(all_namespaces=True)
        if one["namespace"] == cluster.NAMESPACE
    ]
    if not names:
        raise ClusterError("a Ray cluster runs, and no program in it has workers of gradbridge")
    names.sort(key=lambda name: (name.partition(":")[0], int(name.partition(":")[2] or 0)))
    tallies = {}
    for name in names:
        with suppress(ValueError, exceptions.RayError):  # it has ended since
            worker = ray.get_actor(name, namespace=cluster.NAMESPACE)
            tallies[name] = ray.get(worker.tally.remote(), timeout=3.0)
        tallies.setdefault(name, Tally())
    return Status(tallies)
