"""The halves of a backend, and what they return, looked at before anything is done with it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from gradbridge.errors import PluginError
from gradbridge.foreign import foreign_code
from gradbridge.host import Host
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter, GuestOptions
from gradbridge.wording import described

GuestHalf = Callable[[Any, GuestOptions], Adapter]


def checked_half(role: str, half: Any, said: str) -> Any:
    """What users of a half are given: a host, made; a guest half or a builder whose results are looked at.

    Args:
        role: ``guest``, ``host`` or ``builder``, or the name of a wrapper.
        half: as its module has it.
        said: how errors begin that are about it.

    Raises:
        PluginError: it is not such a half.
    """
    if not callable(half):
        raise PluginError(f"{said} cannot be called: it is {described(half)}")
    if role == "host":
        with foreign_code(PluginError, f"{said} cannot be made"):
            host = half()
        if not isinstance(host, Host):
            raise PluginError(f"{said} is not a gradbridge.host.Host: calling it gives {described(host)}")
        return host
    if role == "guest":
        return functools.partial(_adapted, half, said)
    return functools.partial(_built if role == "builder" else _called, half, said)


def _adapted(half: GuestHalf, said: str, model: Any, options: GuestOptions) -> Adapter:
    """What a guest half makes of a model, looked at before it is used."""
    adapter = _called(half, said, model, options)
    if not isinstance(adapter, Adapter):
        raise PluginError(
            f"{said} returned {described(adapter)} for {described(model)}, and should return a gradbridge.Adapter"
        )
    for name, kind in (("label", str), ("layout", ParameterLayout)):
        value = getattr(adapter, name, None)
        if not isinstance(value, kind):
            raise PluginError(
                f"{said} returned an Adapter whose {name} is {described(value)}, and should be a {kind.__name__}"
            )
    return adapter


def _built(half: Callable[..., Any], said: str, architecture: Any, arrays: dict[str, Any]) -> Any:
    """What a builder makes of an architecture."""
    model = _called(half, said, architecture, arrays)
    if model is None:
        raise PluginError(f"{said} returned None for {architecture.name!r}, and should return a native model")
    return model


def _called(half: Callable[..., Any], said: str, *arguments: Any, **options: Any) -> Any:
    try:
        return half(*arguments, **options)
    except SystemExit as error:  # the user's program goes on; what else is raised is about the user's model
        raise PluginError(f"{said} asked to exit: {error}") from error
