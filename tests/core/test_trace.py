import numpy as np
from autograd import value_and_grad

import gradbridge as gb
from gradbridge.hookspecs import hookimpl
from gradbridge.registry import default_registry


def square():
    f = gb.primitive(lambda x: x**2)
    f.defvjp(lambda ans, x: lambda v: 2 * x * v)
    return f


def test_a_value_and_gradient_costs_one_of_each_step():
    f = square()
    with gb.trace() as t:
        value_and_grad(lambda x: f(x).sum())(np.arange(3.0))
    assert t.counts == {"update": 1, "forward": 1, "zero": 1, "backward": 1}
    assert all(seconds >= 0 for seconds in t.seconds.values())


def test_nothing_is_counted_outside_the_block():
    f = square()
    with gb.trace() as t:
        pass
    f(2.0)
    assert t.counts["forward"] == 0
    assert not default_registry().observed


def test_traces_nest_and_each_sees_its_own_block():
    f = square()
    with gb.trace() as outer:
        f(1.0)
        with gb.trace() as inner:
            f(1.0)
    assert (outer.counts["forward"], inner.counts["forward"]) == (2, 1)


def test_it_prints_as_a_table_of_bridges_and_steps():
    @gb.primitive
    def hypotenuse(x):
        return x

    with gb.trace() as t:
        hypotenuse(1.0)
    assert "hypotenuse  forward" in str(t)


def test_a_plugin_observes_the_steps_with_their_shapes():
    class Observer:
        seen = ()

        @hookimpl
        def gradbridge_forward(self, step):
            self.seen += ((step.name, step.shapes),)

    observer = Observer()
    f = square()
    with default_registry().observing(observer):
        f(np.ones((2, 3)))
    assert observer.seen == (("forward", ((2, 3),)),)
