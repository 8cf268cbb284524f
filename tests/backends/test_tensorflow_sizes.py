"""Python code that looks at sizes: what a call gives does not depend on the calls before it."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

P = np.array([1.0, 2.0, 3.0])
ROWS = (2, 3, 4, 1, 5, 1, 2)


@tf.function
def inner(x):
    return 2.0 * x if x.shape[0] == 1 else x


def twice_for_one(is_one):
    return lambda p, x: x * p * (2.0 if is_one(x) else 1.0)


LOOKS = {
    "an axis": twice_for_one(lambda x: x.shape[0] == 1),
    "a list": twice_for_one(lambda x: 1 in x.get_shape().as_list()),
    "unpacked": twice_for_one(lambda x: 1 in set(x.shape)),
    "len": twice_for_one(lambda x: len(x) == 1),
    "a product": twice_for_one(lambda x: np.prod(x.shape) == 3),
    "elements": twice_for_one(lambda x: x.shape.num_elements() == 3),
    "compared": twice_for_one(lambda x: x.shape == (1, 3)),
    "a part": twice_for_one(lambda x: x.shape.with_rank(2)[:1][0] == 1),
    "of what was computed": twice_for_one(lambda x: tf.sin(x).shape[0] == 1),
    "within a tf.function": lambda p, x: inner(x * p),
    "a loop": lambda p, x: tf.stack([row * p * (2.0 if len(x) == 1 else 1.0) for row in x]),
}


def check(f, close):
    for rows in ROWS:
        x, factor = np.arange(3.0 * rows).reshape(rows, 3), 2.0 if rows == 1 else 1.0
        close(f(P, x), factor * x * P)
        close(autograd.grad(lambda p, x=x: anp.sum(f(p, x) ** 2))(P), 2 * factor**2 * np.sum(x * x, 0) * P)


@pytest.mark.parametrize("what", LOOKS)
def test_branches_on_the_number_of_rows_are_those_of_each_call(what, close):
    check(gb.bridge(LOOKS[what], params=P, backend="tensorflow"), close)


def test_a_layer_that_branches_on_the_number_of_rows(close):
    class Scaled(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(3,), initializer="ones")

        def call(self, x):
            return 2.0 * x * self.w if x.shape[0] == 1 else x * self.w

    model = keras.Sequential([keras.Input((3,), dtype="float64"), Scaled(dtype="float64")])
    check(gb.bridge(model, dtype="float64"), close)


def test_a_users_function_keeps_no_trace_of_the_bridges(close):
    function = tf.function(lambda x: 2.0 * x if x.shape[0] == 1 else x)
    f = gb.bridge(lambda p, x: function(x * p), params=P, backend="tensorflow")
    for rows in (2, 3, 4):
        f(P, np.ones((rows, 3)))
    assert function.experimental_get_tracing_count() == 0
    close(function(tf.ones((1, 3))), np.full((1, 3), 2.0))


def test_code_that_leaves_the_number_of_rows_alone_is_traced_twice(close):
    traces = []

    def function(p, x):
        traces.append(x.shape.rank)
        width, rank = x.shape[-1], len(x.shape)
        return tf.reduce_sum(x * p, axis=rank - 1) / width

    f = gb.bridge(function, params=P, backend="tensorflow")
    for rows in range(1, 30):
        close(f(P, np.ones((rows, 3))), np.full(rows, 2.0))
    assert len(traces) == 2


def test_loops_over_rows_whose_variables_change_their_kind(close):
    def function(p, x):
        total = 0.0
        for row in x:
            total = total + row * p
        return total

    f = gb.bridge(function, params=P, backend="tensorflow")
    for rows in (2, 3, 1, 4):
        x = np.arange(3.0 * rows).reshape(rows, 3)
        close(f(P, x), x.sum(0) * P)
