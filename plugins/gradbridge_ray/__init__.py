"""Rows of a bridged model over a Ray cluster: where one machine is outgrown.

The names below import Ray when they are first used::

    from gradbridge_ray import shard_rows
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gradbridge.hookspecs import hookimpl

if TYPE_CHECKING:
    import click

    from gradbridge_ray.bridge import ShardedBridge, shard_rows
    from gradbridge_ray.errors import ClusterError, ShardTimeoutError
    from gradbridge_ray.status import Status

_HOMES = {
    "shard_rows": "bridge",
    "ShardedBridge": "bridge",
    "ClusterError": "errors",
    "ShardTimeoutError": "errors",
    "Status": "status",
}
__all__ = ["ClusterError", "ShardTimeoutError", "ShardedBridge", "Status", "shard_rows"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradbridge_ray' has no attribute {name!r}")
    module = f"gradbridge_ray.{_HOMES[name]}"
    if _HOMES[name] != "errors":
        try:
            import ray  # noqa: F401
        except ImportError as error:
            from gradbridge_ray.errors import no_ray

            raise no_ray(error) from error
    return getattr(importlib.import_module(module), name)


@hookimpl
def gradbridge_commands(cli: click.Group) -> None:
    """Add `gradbridge ray`."""
    from gradbridge_ray.command import ray_commands

    cli.add_command(ray_commands)
