"""JAX as a backend: functions of arrays, Flax NNX, Flax Linen and Equinox modules as guests."""

from gradbridge.declarations import Backend
from gradbridge.hookspecs import hookimpl


@hookimpl
def gradbridge_backend() -> Backend:
    """Declare the backend; jax is imported when its guest half is."""
    return Backend(
        name="jax",
        framework=("jax", "jax"),
        install='pip install "gradbridge[jax]"',
        guest="gradbridge_jax.guest:adapt",
        builder="gradbridge_jax.architectures:build",
        models=(
            "flax.nnx.module.Module",
            "flax.linen.module.Module",
            "equinox._module._module.Module",
            "equinox._module.Module",  # equinox < 0.12
            "gradbridge_jax.architectures.Network",
            "keras.src.backend.jax.layer.JaxLayer",
        ),
        aliases=("flax", "equinox"),
    )
