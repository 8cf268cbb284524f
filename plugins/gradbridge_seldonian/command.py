"""`gradbridge demo`: two stories told on the terminal, and saved as pictures."""

from __future__ import annotations

import errno
import functools
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import gradbridge
from gradbridge.choice import default_backend

STORIES = ("regression", "digits", "fairness")


@click.command()
@click.option(
    "--out", type=click.Path(path_type=pathlib.Path), default="demo_output", help="Where the pictures go."
)
@click.option("--only", type=click.Choice(STORIES), help="Tell this story alone.")
@click.option("--backend", default=None, help="The framework of the models; torch if nothing is said.")
@click.option(
    "--quick", is_flag=True, help="A tenth of the iterations: to see that it runs, not what it finds."
)
def demo(out: pathlib.Path, only: str | None, backend: str | None, quick: bool) -> None:
    """Train models under behavioral constraints with the real Seldonian Engine."""
    from gradbridge_seldonian import stories

    console = Console()
    registry = gradbridge.default_registry()
    name = backend or default_backend(registry)
    registry.builder(name)
    told_stories = (only,) if only else STORIES
    _try_folder(out, told_stories)
    build = functools.partial(gradbridge.build, backend=name)
    version = gradbridge.backends()[name].version or ""
    console.print(
        f"[bold]gradbridge {gradbridge.__version__}[/]: models in {name} {version}, the Seldonian Engine in autograd\n"
    )
    good = True
    for story in told_stories:
        if story == "digits" and name == "numpy":
            console.print("[bold]digits[/] is left out: the numpy backend builds no convolutions.\n")
            continue
        tell = getattr(stories, story)
        arguments = {} if story == "regression" else {"quick": quick}
        told, seconds = _with_progress(console, story, functools.partial(tell, build=build, **arguments))
        good &= _tell(console, story, told, seconds)
        for path in _draw(story, told, out):
            console.print(f"picture: {path}", soft_wrap=True)
        console.print()
    if not good:
        console.print("[bold red]The demonstration did not reach what it should; see above.[/]")
        sys.exit(1)


def _try_folder(out: pathlib.Path, told_stories: Iterable[str]) -> None:
    """Refuse a folder that the pictures cannot go to, before anything is trained for them."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        for story in told_stories:
            for picture in out.glob(f"{story}_*.png"):
                if not picture.is_file():
                    raise FileExistsError(errno.EEXIST, "no file that could be replaced", str(picture))
                with picture.open("r+b"):
                    pass
    except OSError as error:
        raise click.BadParameter(f"the pictures cannot go there: {error}", param_hint="--out") from error


def _with_progress(console: Console, label: str, tell: Callable[..., Any]) -> tuple[Any, float]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("iterations"),
        TimeElapsedColumn(),
    )
    start = time.perf_counter()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=None)
        told = tell(lambda: progress.advance(task))
    return told, time.perf_counter() - start


def _tell(console: Console, name: str, story: Any, seconds: float) -> bool:
    """Print a story's table; whether it reached what it must."""
    from gradbridge_seldonian import stories

    table = Table(title=story.title, title_justify="left", title_style="bold")
    labels = story.safety.labels
    columns: dict[str, Callable[[Any], str]] = {
        "safety test": lambda o: "[green]passed[/]" if o.passed else "[red]FAILED[/]"
    }
    if name == "regression":
        columns["intercept"] = lambda o: f"{_line(o)[0]:.8f}"
        columns["slope"] = lambda o: f"{_line(o)[1]:.8f}"
    else:
        columns["accuracy"] = lambda o: f"{stories.accuracy(o, labels):.3f}"
    columns[story.objective] = lambda o: f"{o.loss:.4f}"
    for i, text in enumerate(story.constraints):
        columns[f"upper bound of {escape(text)}, ≤ 0 passes"] = lambda o, i=i: f"{o.bounds[i]:+.4f}"
    columns["guest forwards per iteration"] = lambda o: (
        f"{o.forwards / len(o.selection['f_vals']):.2f}" if o.forwards else "–"
    )
    table.add_column("")
    for outcome in story.outcomes:
        table.add_column(outcome.name, justify="right")
    for heading, cell in columns.items():
        table.add_row(heading, *[cell(outcome) for outcome in story.outcomes])
    console.print(table)
    console.print(f"{len(story.safety.labels)} safety rows, {seconds:.1f} s")
    if name != "regression":
        return True
    ours, engines = story.outcomes
    difference = float(np.max(np.abs(ours.theta - engines.theta)))
    console.print(f"largest difference from the engine's own NumPy model: {difference:.1e}")
    return ours.passed and difference < 1e-6


def _line(outcome: Any) -> Any:
    """(intercept, slope): a portable line has its bias first, as the engine's has."""
    return outcome.theta


def _draw(name: str, story: Any, out: pathlib.Path) -> list[pathlib.Path]:
    from gradbridge_seldonian import pictures, stories

    first, second = story.outcomes
    paths = [
        pictures.plot_candidate_selection(
            first.selection,
            out / f"{name}_candidate_selection.png",
            title=story.title,
            objective=story.objective,
            constraints=story.constraints,
        )
    ]
    if name == "regression":
        return paths
    both = (first, second)
    labels = story.safety.labels
    measures: list[tuple[str, dict[str, float], float | None]] = [
        ("accuracy on unseen data", {o.name: stories.accuracy(o, labels) for o in both}, None),
        (story.objective, {o.name: o.loss for o in both}, None),
    ]
    if name == "fairness":
        measures.append(
            ("gap in missed fast progressions", {o.name: _miss_gap(o, story.safety) for o in both}, 0.2)
        )
    bound = {o.name: o.bounds[0] for o in both}
    measures.append(("upper bound of the constraint,\n≤ 0 passes the safety test", bound, 0.0))
    tests = ", ".join(f"{o.name}: {'passed' if o.passed else 'failed'}" for o in both)
    paths.append(
        pictures.plot_comparison(
            story.title,
            measures,
            out / f"{name}_comparison.png",
            note=f"constraint {story.constraints[0]}. Safety test: {tests}",
        )
    )
    return paths


def _miss_gap(outcome: Any, safety: Any) -> float:
    """Difference of the mean probability of missing a fast progression, between the sexes."""
    missed = 1.0 - outcome.predictions
    first, second = ((safety.sensitive_attrs[:, i] == 1) & (safety.labels == 1) for i in (0, 1))
    return float(abs(missed[first].mean() - missed[second].mean()))
