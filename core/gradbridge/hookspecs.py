"""What a plugin may implement. Register a module with these under the entry-point group `gradbridge`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click

    from gradbridge.declarations import Backend, Step

GROUP = "gradbridge"

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def gradbridge_backend() -> Backend:  # type: ignore[empty-body]
    """Declare a backend: its name, its framework, and where its halves are.

    The module that implements this must not import the framework; the halves named in the
    declaration are imported when they are first needed.
    """


@hookspec
def gradbridge_commands(cli: click.Group) -> None:
    """Add commands to the `gradbridge` command line. Names that there are already stay what they are.

    Args:
        cli: a group of this plugin's own, whose commands are taken over.
    """


@hookspec
def gradbridge_update(step: Step) -> None:
    """Observe that parameters were loaded into a guest. Called after the step, with its record.

    What an observer raises is a warning, once, and changes no number.

    Args:
        step: the record: `step.name` is ``"update"``, `step.bridge` the model's label, `step.shapes` the shapes of the
            params, `step.seconds` the wall time that the guest took.
    """


@hookspec
def gradbridge_forward(step: Step) -> None:
    """Observe that a guest computed its outputs.

    Args:
        step: the record, as for `gradbridge_update`; `step.shapes` are those of the inputs.
    """


@hookspec
def gradbridge_zero(step: Step) -> None:
    """Observe that a guest's accumulated gradients were cleared.

    Args:
        step: the record, as for `gradbridge_update`.
    """


@hookspec
def gradbridge_backward(step: Step) -> None:
    """Observe that cotangents were pulled back.

    Args:
        step: the record, as for `gradbridge_update`; `step.shapes` are those of the cotangents.
    """


def step_hooks() -> tuple[str, ...]:
    """Names of the hooks that observe a step."""
    return ("gradbridge_update", "gradbridge_forward", "gradbridge_zero", "gradbridge_backward")


__all__: list[Any] = ["GROUP", "hookimpl", "hookspec", "step_hooks"]
