"""Observers see what is done, and decide about nothing."""

import dataclasses
import importlib.metadata
import warnings

import numpy as np
import pytest
from autograd import value_and_grad

import gradbridge as gb
from gradbridge.errors import (
    GradbridgeWarning,
    PluginError,
)
from gradbridge.hookspecs import hookimpl
from gradbridge.registry import Registry

OWN = [importlib.metadata.EntryPoint(n, f"gradbridge_{n}", "gradbridge") for n in ("autograd", "numpy")]


def square(known):
    return gb.bridge(lambda p, x: p**2 * x, params=np.ones(2), backend="autograd", registry=known)


@pytest.mark.parametrize("error", [ValueError("the log is full"), SystemExit(3)])
def test_an_observer_that_raises_changes_no_number_and_is_warned_of_once(error):
    class Loud:
        @hookimpl
        def gradbridge_forward(self, step):
            raise error

        @hookimpl
        def gradbridge_backward(self, step):
            raise error

    known = Registry(OWN)
    f, x = square(known), np.array([2.0, 3.0])
    known.register(Loud(), "loud")
    with gb.trace(known) as t, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            value, gradient = value_and_grad(lambda p: f(p, x).sum())(np.ones(2))
    assert value == 5.0
    assert np.array_equal(gradient, [4.0, 6.0])
    assert (t.counts["forward"], t.counts["backward"]) == (2, 2)
    assert ["plugin 'loud'" in str(one.message) for one in said] == [True]
    assert issubclass(said[0].category, GradbridgeWarning)


def test_observers_that_are_equal_are_two():
    @dataclasses.dataclass
    class Count:
        seen: int = 0

        @hookimpl
        def gradbridge_forward(self, step):
            self.seen += 1

    class Log(list):
        @hookimpl
        def gradbridge_forward(self, step):
            self.append(step.name)

    known = Registry(OWN)
    observers = [Count(), Count(), Log(), Log()]
    for index, observer in enumerate(observers):
        known.register(observer, f"observer {index}")
    f = square(known)
    f(np.ones(2), 1.0)
    known.unregister(observers[0])
    known.unregister(observers[3])
    f(np.ones(2), 1.0)
    assert [o.seen if isinstance(o, Count) else len(o) for o in observers] == [1, 2, 2, 1]
    for observer in observers[1:3]:
        known.unregister(observer)
    assert not known.observed


def test_registering_the_same_observer_again_is_once_and_another_of_its_name_is_refused():
    known, observer = Registry(OWN), gb.Trace()
    known.register(observer, "counts")
    known.register(observer, "counts")
    with pytest.raises(PluginError, match="'counts'.*another of that name already"):
        known.register(gb.Trace(), "counts")
    with known.observing(observer):
        square(known)(np.ones(2), 1.0)
    assert observer.counts["forward"] == 1
    square(known)(np.ones(2), 1.0)
    assert observer.counts["forward"] == 2
    known.unregister(observer)
    assert not known.observed
    with pytest.raises(
        PluginError, match="unregister takes a registered plugin, and this Trace is not registered"
    ):
        known.unregister(observer)
