"""`trace`, the built-in observer: how often each protocol step was made and how long it took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gradbridge.declarations import Step
from gradbridge.forks import fork_safe_lock
from gradbridge.hookspecs import hookimpl
from gradbridge.option_values import check_options
from gradbridge.registry import Registry, default_registry

STEPS = ("update", "forward", "zero", "backward")


class Trace:
    """Counts and wall times of the four steps.

    Attributes:
        counts: {step: how often}.
        seconds: {step: wall time in seconds, summed}.
        steps: the records in the order they were made.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = dict.fromkeys(STEPS, 0)
        self.seconds: dict[str, float] = dict.fromkeys(STEPS, 0.0)
        self.steps: list[Step] = []
        self._lock = fork_safe_lock()

    def _note(self, step: Step) -> None:
        with self._lock:
            self.counts[step.name] += 1
            self.seconds[step.name] += step.seconds
            self.steps.append(step)

    @hookimpl
    def gradbridge_update(self, step: Step) -> None:
        """Count an update."""
        self._note(step)

    @hookimpl
    def gradbridge_forward(self, step: Step) -> None:
        """Count a forward."""
        self._note(step)

    @hookimpl
    def gradbridge_zero(self, step: Step) -> None:
        """Count a zero."""
        self._note(step)

    @hookimpl
    def gradbridge_backward(self, step: Step) -> None:
        """Count a backward."""
        self._note(step)

    def __str__(self) -> str:
        totals: dict[tuple[str, str], list[float]] = {}
        for step in self.steps:
            row = totals.setdefault((step.bridge, step.name), [0, 0.0])
            row[0] += 1
            row[1] += step.seconds
        width = max([len("bridge"), *(len(bridge) for bridge, _ in totals)])
        lines = [f"{'bridge':<{width}}  {'step':<8}  {'count':>7}  {'total ms':>10}  {'µs each':>9}"]
        for (bridge, name), (count, seconds) in totals.items():
            lines.append(
                f"{bridge:<{width}}  {name:<8}  {int(count):>7}  {1e3 * seconds:>10.3f}  "
                f"{1e6 * seconds / count:>9.1f}"
            )
        return "\n".join(lines)

    __repr__ = __str__


@contextmanager
def trace(registry: Registry | None = None) -> Iterator[Trace]:
    """Observe the steps of every bridge while the block runs.

    ::

        with gradbridge.trace() as t:
            value_and_grad(loss)(params)
        t.counts["forward"]   # 1
        print(t)              # a table

    Args:
        registry: whose bridges; by default the process's.
    """
    check_options(registry=registry)
    observer = Trace()
    with (registry if registry is not None else default_registry()).observing(observer):
        yield observer
