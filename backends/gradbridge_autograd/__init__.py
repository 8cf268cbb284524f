"""HIPS autograd as a backend: the default host, and a guest."""

from gradbridge.declarations import Backend
from gradbridge.hookspecs import hookimpl


@hookimpl
def gradbridge_backend() -> Backend:
    """Declare the backend; autograd is imported when its host half is."""
    return Backend(
        name="autograd",
        framework=("autograd", "autograd"),
        install='pip install "autograd>=1.8"',
        guest="gradbridge_autograd.guest:adapt",
        host="gradbridge_autograd.host:AutogradHost",
        arrays=("numpy.ndarray", "numpy.generic", "autograd.tracer.Box"),
    )
