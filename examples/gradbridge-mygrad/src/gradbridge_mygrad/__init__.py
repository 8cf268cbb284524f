"""MyGrad as a gradbridge backend."""

from gradbridge.extend import Backend, hookimpl


@hookimpl
def gradbridge_backend() -> Backend:
    """Declare the backend; mygrad is imported when a half of it is."""
    return Backend(
        name="mygrad",
        framework=("mygrad", "mygrad"),
        install="pip install mygrad",
        guest="gradbridge_mygrad.guest:adapt",
        host="gradbridge_mygrad.host:MyGradHost",
        arrays=("mygrad.tensor_base.Tensor",),
    )
