"""The laws, on tinygrad."""

from gradbridge.testing import ConformanceSuite


class TestTinygrad(ConformanceSuite):
    backend = "tinygrad"
