"""The JAX guest keeps the laws, to every order."""

import pytest

from gradbridge.testing import ConformanceSuite, find, run

pytest.importorskip("jax")
pytest.importorskip("flax")


class TestJAX(ConformanceSuite):
    backend = "jax"


def test_a_compiler_that_keeps_what_a_function_has_read_from_outside_is_caught(monkeypatch):
    monkeypatch.setattr("gradbridge_jax.models.surroundings", lambda *functions: None)
    (row,) = run(find("jax"), checks=["outside_is_fresh"]).of("failed")
    assert row.message.startswith("output 0 after a number outside was changed: expected ")
