"""The command line `gradbridge`. Core knows no application: plugins add their commands by a hook."""

from __future__ import annotations

import io
import json
import os
import pathlib
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import gradbridge
from gradbridge.declarations import BackendInfo
from gradbridge.errors import GradbridgeError, OptionError, PluginError
from gradbridge.foreign import foreign_code
from gradbridge.registry import Registry, default_registry
from gradbridge.terminal import print_table, progress, silence_logs
from gradbridge.wording import suggestion


class _Commands(click.Group):
    """A group whose commands raise our errors as one red line and exit code 1, not a traceback."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = args[0], self.list_commands(ctx)
        if name[:1] != "-" and name not in known:  # click's own hint is newer than the click that we ask for
            ctx.fail(f"there is no command {name!r}; {suggestion(name, known)}there are {', '.join(known)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except GradbridgeError as error:
            said = escape(str(error))  # "gradbridge[torch]" is not markup
            Console(stderr=True).print(
                f"[bold red]{type(error).__name__}[/]: {said}{escape(_place(error))}",
                highlight=False,
                soft_wrap=True,
            )
            sys.exit(1)


_COMPLETION = """\b
Completion of commands, backends and checks by the Tab key, for the present shell:
  bash  eval "$(_GRADBRIDGE_COMPLETE=bash_source gradbridge)"
  zsh   eval "$(_GRADBRIDGE_COMPLETE=zsh_source gradbridge)"
  fish  _GRADBRIDGE_COMPLETE=fish_source gradbridge | source
In ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish the same line is for all shells.

\b
NO_COLOR=1 turns colours off; COLUMNS=N sets the width of tables, which is 80 in a pipe.
TF_CPP_MIN_LOG_LEVEL=0 shows the log lines of TensorFlow, which are left out.
"""


def _place(error: GradbridgeError) -> str:
    """The file and line where others' code raised what the error tells of, on a line of its own; "" if nobody did."""
    cause = error.__cause__
    if cause is None or isinstance(cause, GradbridgeError):
        return ""
    if isinstance(cause, SyntaxError):
        return f'\n  File "{cause.filename}", line {cause.lineno}'
    frames = [f for f in traceback.extract_tb(cause.__traceback__) if not f.filename.startswith("<frozen")]
    if not frames or pathlib.Path(frames[-1].filename).parent.name.startswith("gradbridge"):
        return ""  # nobody's code, or ours, whose message says enough
    return f'\n  File "{frames[-1].filename}", line {frames[-1].lineno}, in {frames[-1].name}'


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_COMPLETION)
@click.version_option(gradbridge.__version__, prog_name="gradbridge")
def cli() -> None:
    """Differentiate straight through a model that lives in another framework."""


_json = click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")


def _completed(known: Callable[[], Iterable[str]]) -> Callable[..., list[str]]:
    """What completes a name: those that begin with what is written."""
    return lambda context, parameter, written: [name for name in known() if name.startswith(written)]


def _backends() -> list[str]:
    return default_registry().names()


def _checks() -> list[str]:
    from gradbridge.testing.checks import CHECKS
    from gradbridge.testing.hosts.checks import HOST_CHECKS

    return [*CHECKS, *HOST_CHECKS]


@cli.command(short_help="List the backends, and whether each works here.")
@_json
def backends(as_json: bool) -> None:
    """List the backends: what each can be, whether it works here, and if not, why.

    A plugin that could not be taken in stands among them, as failed.
    """
    infos = gradbridge.backends()
    with progress("importing frameworks") as told:
        for done, (key, info) in enumerate(infos.items()):
            if told is not None:
                told(done, len(infos), key)
            _ = info.available  # imports its framework
    if as_json:
        click.echo(json.dumps([_as_dict(key, info) for key, info in infos.items()], indent=2))
        return
    console = Console()
    table = Table(title="gradbridge backends", title_justify="left")
    for heading in ("backend", "package", "roles", "framework", "works here"):
        table.add_column(heading, overflow="fold")
    for key, info in infos.items():
        version = info.version or ("needs none" if info.installed else "not installed" if info.roles else "–")
        cells = (key, info.package, " and ".join(info.roles) or "–", version)
        table.add_row(*map(escape, cells), _STATES[info.state] + (", but see below" if info.note else ""))
    print_table(console, table)
    for key, info in infos.items():
        for text in filter(None, (info.reason, info.note)):
            console.print(f"[bold]{escape(key)}[/]: {escape(text)}", highlight=False, soft_wrap=True)


_STATES = {"works": "[green]yes[/]", "missing": "[yellow]not installed[/]", "failed": "[bold red]failed[/]"}


def _as_dict(key: str, info: BackendInfo) -> dict[str, object]:
    """A row of `backends --json`."""
    told = ("state", "reason", "note", "package", "version", "install")
    return {"name": key, "roles": list(info.roles), **{name: getattr(info, name) for name in told}}


_only = click.option(
    "--only",
    metavar="CHECK",
    multiple=True,
    shell_complete=_completed(_checks),
    help="Name of a check to run, and no other; may be given again.",
)


@cli.command(short_help="Check a backend against the laws, as guest and as host.")
@click.argument("backend", shell_complete=_completed(_backends))
@_only
@click.option(
    "--guest",
    "guests",
    metavar="NAME",
    multiple=True,
    shell_complete=_completed(_backends),
    help="Of a host: a backend whose models it is checked with, in place of its own; may be given again.",
)
def check(backend: str, only: tuple[str, ...], guests: tuple[str, ...]) -> None:
    """Check BACKEND against the laws, as a guest and as a host; exit code 1 if it breaks one."""
    from gradbridge.testing import check_command

    sys.exit(check_command(backend, only=only, guests=guests))


@cli.command(short_help="Check every backend: host × guest, and guest × law.")
@_only
@click.option("--save", type=click.Path(dir_okay=False), help="Draw the matrix into this file, as SVG.")
@_json
def matrix(only: tuple[str, ...], save: str | None, as_json: bool) -> None:
    """Check every backend that works here: host × guest, and guest × law."""
    from gradbridge.testing import matrix_command

    sys.exit(matrix_command(only=only, save=save, as_json=as_json))


@cli.command(short_help="Audit a model or a bridge, by its import.")
@click.argument("target", metavar="MODULE:NAME")
@click.option(
    "--input",
    "inputs",
    metavar="SPEC",
    multiple=True,
    help="An input: its shape, 8x3, of normal numbers; 8x3:100 of integers below 100; or MODULE:NAME of an array. "
    "May be given again, in order.",
)
@click.option("--backend", help="The framework of a function.")
@click.option(
    "--dtype", help="The dtype to compute in; float64 if nothing is said, 'model' for the model's own."
)
@click.option("--params", metavar="MODULE:NAME", help="The tree of parameters of a function.")
def audit(
    target: str, inputs: tuple[str, ...], backend: str | None, dtype: str | None, params: str | None
) -> None:
    """Audit a model, or a bridge, that an import gives; exit code 1 if something is wrong."""
    from gradbridge.audit.command import audit_command

    sys.exit(audit_command(target, inputs, backend, dtype, params))


@cli.command(short_help="Measure what bridges cost here; in a clone.")
@click.argument("names", nargs=-1, metavar="[NAME ...]")
@_json
def bench(names: tuple[str, ...], as_json: bool) -> None:
    """Measure what bridges cost here, by NAME or all of it; in a clone.

    The same as python -m benchmarks, which has more options. With --json the figures are printed as
    [{name, value, unit, budget, kept}] when all are there, and the tables go to standard error.
    """
    root = pathlib.Path(gradbridge.__file__).resolve().parents[2]
    if not (root / "benchmarks" / "__main__.py").is_file():
        raise OptionError(
            "the benchmarks are in a clone of the repository and not in the installed package; run gradbridge bench, "
            "or python -m nox -s bench, in a clone"
        )
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    # A process of its own: it sets how many threads libraries may have before any is imported.
    command = [sys.executable, "-m", "benchmarks", *names, *(["--json", "-"] if as_json else [])]
    sys.exit(subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode)


@cli.command("new-backend", short_help="Write a package for a backend NAME, to fill in.")
@click.argument("name")
@click.option("--folder", type=click.Path(), help="Where to write it; gradbridge-NAME if nothing is said.")
def new_backend(name: str, folder: str | None) -> None:
    """Write an installable package for a backend NAME, with five methods to fill in."""
    from gradbridge.scaffold import new_backend as write

    for path in write(name, folder):
        click.echo(path)
    click.echo(f"\nFill in framework.py, then: pip install -e … && gradbridge check {name}")


_BUILT_IN = dict(cli.commands)


def main() -> None:
    """Entry point of the console script: core's commands and every plugin's."""
    for stream in (sys.stdout, sys.stderr):  # a pipe may not have all letters: minutes must not end in that
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    registry = default_registry()
    frameworks = (registry.backend(name).framework for name in registry.names())
    silence_logs({framework[0] for framework in frameworks if framework is not None})
    cli.commands = {**cli.commands, **_plugin_commands(registry), **_BUILT_IN}
    cli(prog_name="gradbridge")


def _plugin_commands(registry: Registry) -> dict[str, click.Command]:
    """What plugins add; a plugin that cannot, or takes the name of another command, is named."""
    commands: dict[str, click.Command] = {}
    for plugin, add in registry.implementations("gradbridge_commands"):
        group, faults = click.Group(), []
        try:
            with foreign_code(PluginError, f"{plugin.said} could not add its commands"):
                add(cli=group)
        except PluginError as error:
            faults.append(str(error))
        for name, command in group.commands.items():
            if not isinstance(name, str) or not isinstance(command, click.Command):
                faults.append(f"{plugin.said} adds {name!r}, which is not a command with a name")
            elif name in _BUILT_IN or name in commands:
                faults.append(
                    f"{plugin.said} adds a command {name!r}, which there is already; it is left out"
                )
            else:
                commands[name] = command
        for fault in faults:
            registry.complain(plugin, fault)
            Console(stderr=True).print(f"[yellow]{escape(fault)}[/]", highlight=False, soft_wrap=True)
    return commands
