"""What an author brings for the kit, imported and made; what goes wrong there is told with its file and line."""

from __future__ import annotations

import importlib
from typing import Any

from gradbridge.errors import BackendUnavailableError
from gradbridge.registry import Registry
from gradbridge.testing import tracebacks
from gradbridge.wording import in_short


def under_test_of(module: str, registry: Registry, said: str, what: str, how: str) -> Any:
    """The class `UnderTest` of a module, called with the registry.

    Args:
        module: its name.
        registry: the plugins to choose from.
        said: whose it is, as errors begin: ``backend 'mine'``.
        what: is brought there: ``factories for the conformance kit``.
        how: to write one, in a few words.

    Raises:
        BackendUnavailableError: there is no such module or class, or its code raised, with file and line.
    """
    try:
        try:
            found = getattr(importlib.import_module(module), "UnderTest", None)
            why = f"{module} has none"
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise  # it is there, and imports something that is not
            found, why = None, str(error)
        if found is None:
            raise BackendUnavailableError(
                f"{said} brings no {what}: expected a class UnderTest in the module {module} ({why}); {how}"
            )
        return found(registry)
    except BackendUnavailableError:
        raise
    except Exception as error:
        raise BackendUnavailableError(
            f"the {what} of {said}, in the module {module}, raised {in_short(error)}\n{tracebacks.of_backend(error)}"
        ) from error
