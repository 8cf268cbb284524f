"""Functions without a framework as guests: NumPy, ctypes, a subprocess, any Python code."""

from gradbridge.declarations import Backend
from gradbridge.hookspecs import hookimpl

#: Qualified names of the scikit-learn classes that are read by their fitted attributes.
ESTIMATORS = (
    "sklearn.linear_model._base.LinearModel",
    "sklearn.linear_model._logistic.LogisticRegression",
    "sklearn.neural_network._multilayer_perceptron.BaseMultilayerPerceptron",
)


@hookimpl
def gradbridge_backend() -> Backend:
    """Declare the backend; it needs nothing that core does not have."""
    return Backend(
        name="numpy",
        guest="gradbridge_numpy.guest:adapt",
        builder="gradbridge_numpy.architectures:build",
        models=("gradbridge_numpy.architectures.Network", *ESTIMATORS),
    )
