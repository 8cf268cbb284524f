"""`gradbridge ray status`: what the workers of a running program do."""

from __future__ import annotations

import time

import click
from rich.console import Console
from rich.live import Live

from gradbridge_ray.errors import no_ray


@click.group("ray")
def ray_commands() -> None:
    """Rows of models over a Ray cluster."""


@ray_commands.command()
@click.option("--address", default="auto", help="Of the cluster; the one on this machine if nothing is said.")
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "--every", type=click.FloatRange(min=0.05), default=1.0, show_default=True, help="Seconds between looks."
)
def status(address: str, watch: bool, every: float) -> None:
    """Print what the workers of running programs did: rows, forwards, seconds, restarts."""
    try:
        from gradbridge_ray import looking
    except ImportError as error:
        raise no_ray(error) from error
    console = Console()
    with looking.joined(address):
        if not watch:
            console.print(looking.status())
            return
        try:
            with Live(looking.status().table(), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(every)
                    live.update(looking.status().table(), refresh=True)
        except KeyboardInterrupt:
            pass
