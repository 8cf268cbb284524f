"""What can go wrong between this process and its workers."""

from __future__ import annotations

from gradbridge.errors import BackendUnavailableError, GradbridgeError

INSTALL = 'pip install "ray>=2.40"'


class ClusterError(GradbridgeError, RuntimeError):
    """The Ray cluster cannot do what it was asked: it is gone, too small, or a worker dies whenever it is started."""


class ShardTimeoutError(ClusterError, TimeoutError):
    """A worker did not answer within `timeout`."""


def no_ray(error: Exception) -> BackendUnavailableError:
    """Ray is missing, or does not import."""
    return BackendUnavailableError(
        f"sharding of rows needs Ray, which cannot be imported ({error}): {INSTALL}"
    )
