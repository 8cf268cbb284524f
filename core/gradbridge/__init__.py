"""gradbridge: differentiate straight through a model that lives in another framework.

The names here are for users; those for whoever writes a backend are in `gradbridge.extend`.
"""

from gradbridge import errors
from gradbridge.architectures import build
from gradbridge.bridge import Bridge, bridge
from gradbridge.declarations import BackendInfo
from gradbridge.errors import GradbridgeError
from gradbridge.layout import ParameterLayout
from gradbridge.primitive import Primitive, primitive
from gradbridge.protocol import Adapter
from gradbridge.registry import default_registry
from gradbridge.tracing import Trace, trace

__version__ = "0.2.0"


def backends() -> dict[str, BackendInfo]:
    """Every registered backend, by name.

    Listing them imports no framework. `BackendInfo.reason` and `.available` try the import.

    Returns:
        {name: BackendInfo}, sorted by name. Another key raises `UnknownBackendError`, a `KeyError`, which says what is
        nearest.
    """
    return default_registry().infos()


__all__ = [
    "Adapter",
    "BackendInfo",
    "Bridge",
    "GradbridgeError",
    "ParameterLayout",
    "Primitive",
    "Trace",
    "backends",
    "bridge",
    "build",
    "errors",
    "primitive",
    "trace",
]
