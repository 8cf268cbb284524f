"""A host on paper: a small tape over NumPy, with no framework behind it.

It keeps every law, so that core's lifting is tested with nothing installed, and is what the kit's faulty
hosts are faulty copies of. It is complete: derivatives of every order, backward and forward.
"""

from gradbridge.declarations import Backend
from gradbridge.hookspecs import hookimpl

#: Name of the backend.
PAPER = "paper"


class Declaration:
    """What declares the host, as a package with an entry point would.

    Args:
        half: the host half, ``"module:Class"``.
    """

    def __init__(self, half: str = f"{__name__}.host:PaperHost") -> None:
        self._half = half

    @hookimpl
    def gradbridge_backend(self) -> Backend:
        """Declare the backend."""
        arrays = (f"{__name__}.arrays.PaperArray",)
        return Backend(name=PAPER, host=self._half, arrays=arrays)


#: The one that is right.
DECLARATION = Declaration()
