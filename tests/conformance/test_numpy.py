"""The NumPy guest keeps the laws: written gradients, first order."""

from gradbridge.testing import ConformanceSuite


class TestNumpy(ConformanceSuite):
    backend = "numpy"
