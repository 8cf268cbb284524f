"""`gradbridge demo`: stories told on the terminal, and saved as pictures."""

from __future__ import annotations

import errno
import functools
import importlib
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import gradbridge
from gradbridge.choice import default_backend
from gradbridge.terminal import print_table
from gradbridge.wording import suggestion

if TYPE_CHECKING:
    from gradbridge_seldonian.demo.story import Story

#: {name: "module:function" that tells it, from a `story.Setting` to a `story.Story`}
STORIES = {
    "regression": "gradbridge_seldonian.demo.stories:regression",
    "digits": "gradbridge_seldonian.demo.stories:digits",
    "fairness": "gradbridge_seldonian.demo.stories:fairness",
    "gridworld": "gradbridge_seldonian.demo.gridworld:gridworld",
}


class _StoryName(click.Choice[str]):
    """One of the stories, in any case; of another name the nearest is suggested."""

    def __init__(self) -> None:
        super().__init__(list(STORIES), case_sensitive=False)

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        return f"there is no story {value!r}; {suggestion(value, STORIES)}there are {', '.join(STORIES)}"


@click.command(short_help="Train models under constraints, by the real engine.")
@click.option(
    "--out",
    type=click.Path(path_type=pathlib.Path),
    default="demo_output",
    show_default=True,
    help="Where the pictures go.",
)
@click.option("--only", type=_StoryName(), help="Tell this story alone.")
@click.option("--backend", default=None, help="The framework of the models; torch if nothing is said.")
@click.option(
    "--quick", is_flag=True, help="A tenth of the iterations: to see that it runs, not what it finds."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="The fairness story's rows over N workers of a Ray cluster.",
)
def demo(out: pathlib.Path, only: str | None, backend: str | None, quick: bool, workers: int | None) -> None:
    """Train models under behavioral constraints with the real Seldonian Engine."""
    console = Console()
    registry = gradbridge.default_registry()
    name = registry.backend(backend).name if backend else default_backend(registry)
    registry.builder(name)
    names = (only,) if only else tuple(STORIES)
    _try_folder(out, names)
    version = gradbridge.backends()[name].version or ""
    console.print(
        f"[bold]gradbridge {gradbridge.__version__}[/]: models in {' '.join((name, version)).strip()}, the Seldonian "
        f"Engine in autograd"
    )
    if quick:
        console.print(
            "--quick: real data get a tenth of the iterations, to see that it runs, not what it finds"
        )
    options = {"build": functools.partial(gradbridge.build, backend=name), "quick": quick, "workers": workers}
    told = [_tell(console, story, options, out) for story in names]
    if not any(story is not None for story in told):
        sys.exit(1)
    if not all(story.is_good for story in told if story is not None):
        console.print("[bold red]The demonstration did not reach what it should; see above.[/]")
        sys.exit(1)


def _try_folder(out: pathlib.Path, names: Iterable[str]) -> None:
    """Refuse a folder that the pictures cannot go to, before anything is trained for them."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        for name in names:
            for picture in out.glob(f"{name}_*.png"):
                if not picture.is_file():
                    raise FileExistsError(errno.EEXIST, "no file that could be replaced", str(picture))
                with picture.open("r+b"):
                    pass
    except OSError as error:
        raise click.BadParameter(f"the pictures cannot go there: {error}", param_hint="--out") from error


def _tell(console: Console, name: str, options: dict[str, Any], out: pathlib.Path) -> Story | None:
    """Tell a story, print it and draw its pictures; None where it is left out with this backend."""
    from gradbridge_seldonian.demo.story import LeftOut, Setting

    module, _, function = STORIES[name].partition(":")
    tell = getattr(importlib.import_module(module), function)
    console.print()
    try:
        story, seconds = _with_progress(name, lambda tick: tell(Setting(tick=tick, **options)))
    except LeftOut as reason:
        console.print(f"[bold]{name}[/] is left out: {escape(str(reason))}", highlight=False)
        return None
    _print(console, story, seconds)
    for what, draw in story.pictures.items():
        console.print(
            f"picture: {escape(str(draw(out / f'{name}_{what}.png')))}", soft_wrap=True, highlight=False
        )
    return story


def _with_progress(label: str, tell: Callable[..., Any]) -> tuple[Any, float]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("iterations"),
        TimeElapsedColumn(),
    )
    start = time.perf_counter()
    bars = Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        disable=not sys.stderr.isatty(),  # rich takes FORCE_COLOR for a terminal
    )
    with bars as progress:
        task = progress.add_task(label, total=None)
        told = tell(lambda: progress.advance(task))
    return told, time.perf_counter() - start


def _print(console: Console, story: Story, seconds: float) -> None:
    console.print(f"[bold]{escape(story.title)}[/]", highlight=False)
    for constraint, delta in zip(story.constraints, story.deltas):
        console.print(f"must hold with probability {1 - delta:g}: {escape(constraint)}", highlight=False)
    table = Table()
    table.add_column("")
    for outcome in story.outcomes:
        table.add_column(outcome.name, justify="right")
    verdicts = ("[green]passed[/]" if o.passed else "[red]FAILED[/]" for o in story.outcomes)
    table.add_row("safety test", *verdicts)
    for heading, cell in story.rows:
        table.add_row(escape(heading), *[cell(outcome) for outcome in story.outcomes])
    print_table(console, table)
    for note in story.notes:
        console.print(escape(note), highlight=False)
    console.print(f"{story.data}, {seconds:.1f} s", highlight=False)
