"""What can be told apart by looking at it, and what may change unseen."""

import enum
import math

import numpy as np
import pytest

from gradbridge.constants import constant_key


class Colour(enum.Enum):
    RED = 1


class Tagged(str):
    pass


class Settings:
    rate = 1.0


@pytest.mark.parametrize(
    "value",
    ["a", b"a", 1, True, 2.5, 1j, np.float32(1), int, Colour.RED, len, None, frozenset({1}), np.dtype("f4")],
)
def test_what_never_changes_has_a_key(value):
    assert constant_key(value) == constant_key(value)
    assert hash(constant_key(value)) == hash(constant_key(value))


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (1, 1.0), (0, False), ("a", b"a"), (np.float32(1), 1.0)]
)
def test_equal_values_of_different_types_are_different(one, other):
    assert constant_key(one) != constant_key(other)


def test_what_may_change_has_none():
    rate = 1.0
    for value in (
        Settings(),
        {1},
        bytearray(b"a"),
        lambda: rate,
        [1].append,
        frozenset({(1, 2)}) | {Settings()},
    ):
        assert constant_key(value) is None, value
    assert constant_key(lambda x: x) is not None
    assert constant_key(math.sin) is not None
