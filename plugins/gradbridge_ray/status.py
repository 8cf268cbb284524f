"""What workers do, as a table."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.live import Live
from rich.table import Table

from gradbridge.errors import GradbridgeError
from gradbridge_ray.messages import Tally


class Status(Mapping[str, Tally]):
    """{worker: Tally}; prints as a table.

    Args:
        tallies: by the workers' names in the cluster.
    """

    def __init__(self, tallies: dict[str, Tally]) -> None:
        self._tallies = tallies

    def __getitem__(self, worker: str) -> Tally:
        return self._tallies[worker]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tallies)

    def __len__(self) -> int:
        return len(self._tallies)

    def table(self) -> Table:
        """For a rich console."""
        table = Table(title="workers with rows of a model", title_justify="left")
        table.add_column("worker")
        table.add_column("node")
        for heading in ("pid", "rows", "forwards", "backwards", "seconds", "µs a row", "kept", "restarts"):
            table.add_column(heading, justify="right")
        for name, one in self._tallies.items():
            table.add_row(
                name,
                one.node or "–",
                str(one.pid or "–"),
                f"{one.rows:,}",
                f"{one.forwards:,}",
                f"{one.backwards:,}",
                f"{one.seconds:.2f}",
                f"{1e6 * one.seconds / one.rows:.1f}" if one.rows else "–",
                str(one.kept),
                str(one.restarts) if not one.restarts else f"[yellow]{one.restarts}[/]",
            )
        return table

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        console = Console(width=118, no_color=True)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get().rstrip()

    __repr__ = __str__


@contextmanager
def watched(status: Callable[[], Status], seconds: float) -> Iterator[None]:
    """Show what workers do, anew every few seconds, while a block runs.

    Args:
        status: to be asked.
        seconds: between two looks.
    """
    ended = threading.Event()

    def look(live: Live) -> None:
        with suppress(GradbridgeError):  # closed within the block
            while not ended.wait(seconds):
                live.update(status().table(), refresh=True)

    with Live(status().table(), auto_refresh=False) as live:
        thread = threading.Thread(target=look, args=(live,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with suppress(GradbridgeError):
                live.update(status().table(), refresh=True)
