"""PyTorch as a backend: modules and functions of tensors as guests."""

from gradbridge.declarations import Backend
from gradbridge.hookspecs import hookimpl


@hookimpl
def gradbridge_backend() -> Backend:
    """Declare the backend; torch is imported when its guest half is."""
    return Backend(
        name="torch",
        framework=("torch", "torch"),
        install='pip install "torch>=2.6"',
        guest="gradbridge_torch.guest:adapt",
        builder="gradbridge_torch.architectures:build",
        models=("torch.nn.modules.module.Module",),
        aliases=("pytorch",),
        host="gradbridge_torch.host:TorchHost",
        arrays=("torch.Tensor",),
        has_compiler=True,
        wrappers={
            "as_module": "gradbridge_torch.wrapping:as_module",
            "as_layer": "gradbridge_keras.wrapping:as_layer",
        },
    )
