"""TensorFlow as a backend: Keras 3 models, tf.Modules and functions of tensors as guests; and a host."""

from gradbridge.declarations import Backend
from gradbridge.hookspecs import hookimpl


@hookimpl
def gradbridge_backend() -> Backend:
    """Declare the backend; tensorflow is imported when its guest half is."""
    return Backend(
        name="tensorflow",
        framework=("tensorflow", "tensorflow"),
        install='pip install "tensorflow>=2.18"',
        guest="gradbridge_tensorflow.guest:adapt",
        host="gradbridge_tensorflow.host:TensorFlowHost",
        arrays=(
            "tensorflow.python.framework.tensor.Tensor",
            "tensorflow.python.ops.variables.Variable",
            "keras.src.backend.tensorflow.core.Variable",
        ),
        builder="gradbridge_tensorflow.architectures:build",
        models=("tensorflow.python.module.module.Module", "keras.src.backend.tensorflow.layer.TFLayer"),
        aliases=("keras", "tf"),
        has_compiler=True,  # AutoGraph
        wrappers={"as_layer": "gradbridge_keras.wrapping:as_layer"},
    )
