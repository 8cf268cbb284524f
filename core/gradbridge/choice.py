"""Which backend a model goes to, or builds, where nobody names one; and its adapter."""

from __future__ import annotations

import os
from typing import Any

from gradbridge.errors import BackendError, OptionError, UnknownBackendError, UnknownModelError
from gradbridge.installed import has_module
from gradbridge.options import BRIDGE_OPTIONS
from gradbridge.protocol import Adapter, GuestOptions
from gradbridge.registry import Registry
from gradbridge.wording import suggestion

#: Which frameworks `build` takes first when none is named.
PREFERRED = ("torch", "tensorflow", "jax", "numpy")


def adapter_of(model: Any, backend: str | None, registry: Registry, options: GuestOptions) -> Adapter:
    """The adapter of a model, by the guest half of its backend.

    Args:
        model: a native model, or a function.
        backend: the name that was asked for; None where nobody says.
        registry: where backends come from.
        options: for the guest half.

    Raises:
        UnknownModelError, UnknownBackendError, BackendUnavailableError
        OptionError: an option that may have been meant to say which backend it is, misspelt; or see the guest half.
    """
    try:
        name = find_backend(model, backend, registry, options.params is not None)
    except UnknownModelError:
        for option in options.extra:
            hint = suggestion(option, BRIDGE_OPTIONS)
            if hint:
                raise OptionError(f"bridge has no option {option!r}; {hint.strip()}") from None
        raise
    adapter = registry.guest(name)(model, options)
    registry.refuse_stranger(model, name, adapter.layout.size)
    return adapter


def find_backend(model: Any, backend: str | None, registry: Registry, has_params: bool = False) -> str:
    """Which backend a model goes to: the one asked for, its class's, or the environment's.

    Args:
        model: a native model, or a function.
        backend: the name that was asked for; None where nobody says.
        registry: where backends come from.
        has_params: whether params= was given.

    Raises:
        UnknownModelError, UnknownBackendError
    """
    if backend is not None:
        name = registry.backend(backend).name
        registry.refuse_class(model)
        return name
    try:
        return registry.match(model, has_params)
    except BackendError:
        named = os.environ.get("GRADBRIDGE_BACKEND")
        if not named:
            raise
        registry.refuse_class(model)
        return _named_in_environment(named, registry)


def _named_in_environment(named: str, registry: Registry) -> str:
    try:
        return registry.backend(named).name
    except UnknownBackendError as error:
        raise UnknownBackendError(
            f"the environment variable GRADBRIDGE_BACKEND is {named!r}, and {error}"
        ) from None


def default_backend(registry: Registry) -> str:
    """The backend that builds when none is named: ``GRADBRIDGE_BACKEND``, else the first installed.

    Raises:
        UnknownBackendError: the variable names none, or nothing here builds.
    """
    named = os.environ.get("GRADBRIDGE_BACKEND")
    if named:
        return _named_in_environment(named, registry)
    builders = [name for name in registry.names() if registry.backend(name).builder is not None]
    builders.sort(key=lambda name: (*(name != first for first in PREFERRED), name))
    for name in builders:
        framework = registry.backend(name).framework
        if framework is None or has_module(framework[0]):
            return name
    raise UnknownBackendError(
        'no backend that builds architectures is installed; install one, for example with: pip install "torch>=2.6"'
    )
