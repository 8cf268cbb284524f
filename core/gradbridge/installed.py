"""What is installed, as far as that is known without importing it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

from gradbridge.errors import BackendUnavailableError
from gradbridge.foreign import foreign_code


def version_of(module: str, distribution: str) -> str:
    """Of a framework that is installed, whichever distribution brings it (``tensorflow-cpu``, a nightly build)."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        pass
    for name in importlib.metadata.packages_distributions().get(module.partition(".")[0], ()):
        return importlib.metadata.version(name)
    return "unknown"


def has_module(name: str) -> bool:
    """Whether a module can be found, without importing it: of a submodule its parents are."""
    if name in sys.modules:
        return sys.modules[name] is not None
    try:
        with foreign_code(BackendUnavailableError, name):
            return importlib.util.find_spec(name) is not None
    except BackendUnavailableError:
        return False
