"""The laws, on MyGrad."""

from gradbridge.testing import ConformanceSuite
from gradbridge.testing.hosts import HostConformanceSuite


class TestMyGrad(ConformanceSuite):
    backend = "mygrad"


class TestMyGradAsHost(HostConformanceSuite):
    host = "mygrad"


class TestMyGradInMyGrad(HostConformanceSuite):
    host = "mygrad"
    guest = "mygrad"
