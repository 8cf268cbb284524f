"""The TensorFlow guest keeps the laws, to every order."""

import pytest

from gradbridge.testing import ConformanceSuite

pytest.importorskip("tensorflow")


class TestTensorflow(ConformanceSuite):
    backend = "tensorflow"
