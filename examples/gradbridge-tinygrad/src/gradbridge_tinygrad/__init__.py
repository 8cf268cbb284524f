"""tinygrad as a gradbridge backend."""

from gradbridge.extend import Backend, hookimpl


@hookimpl
def gradbridge_backend() -> Backend:
    """Declare the backend; tinygrad is imported when its guest half is."""
    return Backend(
        name="tinygrad",
        framework=("tinygrad", "tinygrad"),
        install="pip install tinygrad",
        guest="gradbridge_tinygrad.guest:adapt",
        models=(),  # tinygrad's models have no class in common, so users say backend="tinygrad"
    )
