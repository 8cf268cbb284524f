"""JAX as a backend: a host; and functions of arrays, Flax NNX, Flax Linen and Equinox modules as guests."""

from gradbridge.declarations import Backend
from gradbridge.hookspecs import hookimpl


@hookimpl
def gradbridge_backend() -> Backend:
    """Declare the backend; jax is imported when one of its halves is."""
    return Backend(
        name="jax",
        framework=("jax", "jax"),
        install='pip install "jax>=0.7"',
        guest="gradbridge_jax.guest:adapt",
        host="gradbridge_jax.host:JaxHost",
        arrays=(
            "jaxlib._jax.ArrayImpl",
            "jax._src.array.ArrayImpl",  # jax < 0.8
            "jax._src.core.Tracer",
            "jax._src.random.prng.PRNGKeyArray",
            "jax._src.prng.PRNGKeyArray",  # jax < 0.10
        ),
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
        wrappers={"as_layer": "gradbridge_keras.wrapping:as_layer"},
    )
