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
            found = importlib.import_module(module).UnderTest
        except (ModuleNotFoundError, AttributeError) as error:
            missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
            if not missing and getattr(error, "name", None) != "UnderTest":
                raise  # it is there, and its own code looks for something that is not
            raise BackendUnavailableError(
                f"{said} brings no {what}: expected a class UnderTest in the module {module} ({error}); {how}"
            ) from error
        return found(registry)
    except BackendUnavailableError:
        raise
    except Exception as error:
        raise BackendUnavailableError(
            f"the {what} of {said}, in the module {module}, raised {in_short(error)}\n{tracebacks.of_backend(error)}"
        ) from error
