"""The JAX guest keeps the laws, to every order."""

import pytest

from gradbridge.testing import ConformanceSuite

pytest.importorskip("jax")
pytest.importorskip("flax")


class TestJAX(ConformanceSuite):
    backend = "jax"
