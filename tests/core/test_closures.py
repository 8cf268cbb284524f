"""What a function reads from outside is watched: a change gives another key, and what is the same the same one."""

import copy
import dataclasses
import functools
import pickle
import warnings

import numpy as np
import pytest

from gradbridge.closures import surroundings
from gradbridge.errors import GradbridgeWarning, GuestError

rate = 1.0
table = {"a": 1.0, "inner": [1.0, 2.0]}
array = np.ones(3)
large = np.ones(100_000)


def helper(x):
    return x * rate


class Config:
    power = 2.0


@dataclasses.dataclass(slots=True)
class Slotted:
    shift: float = 0.0


slotted = Slotted()


class Scaled:
    def __init__(self):
        self.factor, self.history = 1.0, []

    @property
    def doubled(self):
        return 2 * self.factor

    def __call__(self, x):
        return x * self.doubled


scaled = Scaled()


def _rebound(name, value):
    globals()[name] = value


CHANGES = {
    "a global": (lambda x: x * rate, lambda: _rebound("rate", rate + 1)),
    "a global of a function that it calls": (lambda x: helper(x), lambda: _rebound("rate", rate + 1)),
    "a function that it calls": (lambda x: helper(x), lambda: _rebound("helper", lambda x: x)),
    "an item within a dict": (lambda x: x * table["inner"][0], lambda: table["inner"].__setitem__(0, 5.0)),
    "another item of a list": (lambda x: x * sum(table["inner"]), lambda: table["inner"].append(5.0)),
    "a number in an array": (lambda x: x * array, lambda: array.__setitem__(1, 7.0)),
    "a large array": (lambda x: x * large, lambda: large.__imul__(2.0)),
    "an attribute of a class": (lambda x: x**Config.power, lambda: setattr(Config, "power", 3.0)),
    "an attribute in a slot": (lambda x: x + slotted.shift, lambda: setattr(slotted, "shift", 3.0)),
    "an attribute of an object that is called": (
        lambda x: scaled(x),
        lambda: setattr(scaled, "factor", scaled.factor + 1),
    ),
    "an attribute of the object itself": (scaled, lambda: setattr(scaled, "factor", scaled.factor + 1)),
    "what a partial function was given": (
        functools.partial(lambda t, x: t["a"] * x, table),
        lambda: table.update(a=9.0),
    ),
    "a default": (lambda x, t=table: t["a"] * x, lambda: table.update(a=11.0)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_another_key(what):
    function, change = CHANGES[what]
    key = surroundings(function)
    before = key()
    assert key() == before
    change()
    assert key() != before
    assert key() == key()


def test_a_cell_that_changes_back_has_the_key_that_it_had():
    factor = 1.0

    def function(x):
        return factor * x

    key = surroundings(function)
    keys = []
    for factor in (1.0, 2.0, 1.0, 1.0 * 1, 2.0):  # noqa: B007 it is the cell
        keys.append(key())
    assert keys[0] == keys[2] == keys[3] != keys[1] == keys[4]


def test_functions_of_modules_alone_are_not_watched():
    assert surroundings(lambda x: np.tanh(x) @ np.ones(3)) is None


def test_what_the_code_does_not_name_is_no_change():
    key = surroundings(scaled)
    before = key()
    scaled.history.append(1)
    scaled.other = 3
    assert key() == before


def test_what_a_function_changes_as_it_is_traced_is_its_own_note():
    traces, count, factor = [], 0, 1.0

    def function(x):
        nonlocal count
        count += 1
        traces.append(count)
        return factor * x

    key = surroundings(function)
    before = key()
    with key.traced(before):
        function(1.0)
    assert key() == before
    function(1.0)
    assert key() == before
    factor = 2.0
    assert key() != before


def test_a_call_that_cannot_be_made_again_says_what_changed():
    factor = 1.0
    key = surroundings(lambda x: factor * x)
    before = key()
    factor = 2.0
    with pytest.raises(GuestError, match=r"reads factor from outside, which changed after the call"):
        key.require(before)


def test_changes_that_go_on_cost_a_word_once():
    step = 0
    key = surroundings(lambda x: step * x)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(30):  # noqa: B007 it is the cell
            key()
    assert [w.category for w in said] == [GradbridgeWarning]
    assert "step from outside" in str(said[0].message)


def test_objects_that_refer_to_themselves_are_seen_once():
    ring = [1.0]
    ring.append(ring)
    key = surroundings(lambda x: x * ring[0])
    before = key()
    ring[0] = 2.0
    assert key() != before


def test_copies_watch_the_same():
    key = surroundings(scaled)
    assert copy.deepcopy(key) is key
    assert pickle.loads(pickle.dumps(surroundings(len))) is None
