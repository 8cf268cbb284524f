"""The laws, on MyGrad."""

from gradbridge.testing import ConformanceSuite


class TestMyGrad(ConformanceSuite):
    backend = "mygrad"
