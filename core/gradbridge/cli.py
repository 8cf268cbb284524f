"""The command line `gradbridge`. Core knows no application: plugins add their commands by a hook."""

from __future__ import annotations

import io
import sys

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import gradbridge
from gradbridge.errors import GradbridgeError, PluginError
from gradbridge.foreign import foreign_code
from gradbridge.registry import Registry, default_registry
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
            said = escape(str(error))  # "gradbridge[torch]" is no markup
            Console(stderr=True).print(
                f"[bold red]{type(error).__name__}[/]: {said}", highlight=False, soft_wrap=True
            )
            sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(gradbridge.__version__, prog_name="gradbridge")
def cli() -> None:
    """Differentiate straight through a model that lives in another framework."""


@cli.command()
def backends() -> None:
    """List the backends: what each can be, whether it works here, and if not, why."""
    console = Console()
    table = Table(title="gradbridge backends", title_justify="left")
    for heading in ("backend", "package", "roles", "framework", "works here"):
        table.add_column(heading, overflow="fold")
    for name, info in gradbridge.backends().items():
        works = "[green]yes[/]" if info.available else f"[red]no[/]: {escape(str(info.reason))}"
        if info.note:
            works += f", but {escape(info.note)}"
        version = info.version or ("needs none" if info.installed else "not installed" if info.roles else "")
        table.add_row(escape(name), escape(info.package), " and ".join(info.roles), version, works)
    console.print(table)


_only = click.option(
    "--only", metavar="CHECK", multiple=True, help="Name of a check to run, and no other; may be given again."
)


@cli.command()
@click.argument("backend")
@_only
@click.option(
    "--guest",
    "guests",
    metavar="NAME",
    multiple=True,
    help="Of a host: a backend whose models it is checked with, in place of its own; may be given again.",
)
def check(backend: str, only: tuple[str, ...], guests: tuple[str, ...]) -> None:
    """Check BACKEND against the laws, as a guest and as a host; exit code 1 if it breaks one."""
    from gradbridge.testing import check_command

    sys.exit(check_command(backend, only=only, guests=guests))


@cli.command()
@_only
@click.option("--save", type=click.Path(dir_okay=False), help="Draw the matrix into this file, as SVG.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def matrix(only: tuple[str, ...], save: str | None, as_json: bool) -> None:
    """Check every backend that works here: host × guest, and guest × law."""
    from gradbridge.testing import matrix_command

    sys.exit(matrix_command(only=only, save=save, as_json=as_json))


@cli.command()
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


@cli.command("new-backend")
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
    cli.commands = {**cli.commands, **_plugin_commands(default_registry()), **_BUILT_IN}
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
                faults.append(f"{plugin.said} adds {name!r}, which is no command with a name")
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
