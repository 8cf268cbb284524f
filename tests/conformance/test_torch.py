"""The PyTorch guest keeps the laws, to every order."""

import pytest

from gradbridge.testing import ConformanceSuite

pytest.importorskip("torch")


class TestTorch(ConformanceSuite):
    backend = "torch"
