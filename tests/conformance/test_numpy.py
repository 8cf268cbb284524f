"""The NumPy guest keeps the laws: written gradients, of every order that is written."""

from gradbridge.testing import ConformanceSuite


class TestNumpy(ConformanceSuite):
    backend = "numpy"
