"""MyGrad as a gradbridge backend."""

from gradbridge.hookspecs import hookimpl
from gradbridge.registry import Backend


@hookimpl
def gradbridge_backend() -> Backend:
    """Declare the backend; mygrad is imported when its guest half is."""
    return Backend(
        name="mygrad",
        framework=("mygrad", "mygrad"),
        install="pip install gradbridge-mygrad",
        guest="gradbridge_mygrad.guest:adapt",
    )
