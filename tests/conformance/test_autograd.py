"""The autograd guest keeps the laws, to every order."""

import pytest

from gradbridge.testing import ConformanceSuite
from gradbridge_autograd.conformance import UnderTest

pytest.importorskip("autograd")


class TestAutograd(ConformanceSuite):
    under_test = UnderTest
