"""TensorFlow programs differentiate through guests: tapes, accumulators, loops and maps, eagerly and in graphs.

The guest needs no framework beside autograd, which is there wherever gradbridge is; what it computes is written
once more in TensorFlow.
"""

import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb

tf = pytest.importorskip("tensorflow")

from tensorflow_programs import WAYS, gradient, jacobian, pushed  # noqa: E402

SHAPES = {"w": (2, 3), "b": (3,), "v": (3, 1)}
PARAMS = {name: np.cos(np.arange(np.prod(s))).reshape(s) for name, s in SHAPES.items()}
P = tf.constant(np.concatenate([PARAMS[name].ravel() for name in sorted(SHAPES)]))  # a tree's keys are sorted
X = tf.constant(np.linspace(-1.0, 1.0, 8).reshape(4, 2))
T = tf.sin(1.0 + tf.range(12, dtype=tf.float64))


def model(p, x):
    return anp.tanh(anp.dot(x, p["w"]) + p["b"]) @ p["v"]


def rows(x):
    return (x.shape[0], 1), "float64"


def native(p, x):
    b, v, w = tf.split(p, [3, 3, 6])
    return tf.tanh(x @ tf.reshape(w, (2, 3)) + b) @ tf.reshape(v, (3, 1))


def energy(function):
    return lambda p, x: tf.reduce_sum(tf.sin(function(p, x)) ** 2)


@pytest.fixture(scope="module")
def f():
    return gb.bridge(model, params=PARAMS, backend="autograd", outputs=rows, host="tensorflow")


@pytest.fixture(params=WAYS)
def compiled(request):
    return WAYS[request.param]


def close(ours, theirs, rtol=1e-12):
    ours, theirs = tf.nest.flatten(ours), tf.nest.flatten(theirs)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1e-300, np.abs(b).max()))


def test_values_and_gradients_by_params_and_inputs(f, compiled):
    def program(function):
        def run(p, x):
            with tf.GradientTape() as tape:
                tape.watch((p, x))
                y = energy(function)(p, x)
            return y, *tape.gradient(y, (p, x))

        return run

    close(compiled(program(f))(P, X), program(native)(P, X))


def test_nested_tapes_to_the_third_order(f, compiled):
    def orders(function):
        first = gradient(energy(function))
        second = gradient(first, seed=T)
        return second, gradient(second, seed=T)

    for ours, theirs, rtol in zip(orders(f), orders(native), (1e-10, 1e-8)):
        close(compiled(ours)(P, X), theirs(P, X), rtol)


def test_a_mixed_derivative_by_inputs_and_params(f, compiled):
    def mixed(function):
        return gradient(lambda p, x: tf.reduce_sum(gradient(energy(function), by=1)(p, x) ** 2))

    close(compiled(mixed(f))(P, X), mixed(native)(P, X), 1e-10)


@pytest.mark.parametrize("inner", [0, 1])
def test_a_tape_around_a_function_and_around_one_that_has_a_tape_within(f, inner):
    within, seed = (energy, None) if not inner else (lambda g: gradient(energy(g)), T)
    ours = gradient(tf.function(within(f)), seed=seed)
    close(ours(P, X), gradient(within(native), seed=seed)(P, X), 1e-10)
    close(gradient(ours, seed=T)(P, X), gradient(gradient(within(native), seed=seed), seed=T)(P, X), 1e-8)


@pytest.mark.parametrize("pfor", [True, False])
def test_jacobians_and_hessians_of_tapes(f, compiled, pfor):
    close(compiled(jacobian(f, pfor=pfor))(P, X), jacobian(native)(P, X))
    ours, theirs = jacobian(gradient(energy(f)), pfor=pfor), jacobian(gradient(energy(native)))
    close(compiled(ours)(P, X), theirs(P, X), 1e-10)


def test_a_gradient_of_a_jacobian(f, compiled):
    def norm(function):
        return gradient(lambda p, x: tf.reduce_sum(jacobian(function)(p, x) ** 2))

    close(compiled(norm(f))(P, X), norm(native)(P, X), 1e-10)


def test_jacobians_of_rows(f, compiled):
    def of_rows(function):
        def run(p, x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = function(p, x)
            return tape.batch_jacobian(y, x)

        return run

    close(compiled(of_rows(f))(P, X), of_rows(native)(P, X))


def test_many_cotangents_of_a_map_are_pulled_back_at_once():
    torch = pytest.importorskip("torch")
    guest = gb.primitive(backend="torch")(torch.sin)
    jacobian(guest)(X)
    with gb.trace() as trace:
        found = jacobian(guest)(X)
    assert (trace.counts["forward"], trace.counts["backward"]) == (1, 1)
    close(found, jacobian(tf.sin)(X))


def test_accumulators_push_and_mix_with_tapes(f, compiled):
    def programs(function):
        g = energy(function)
        yield pushed(function, T)
        yield pushed(gradient(g), T)
        yield gradient(pushed(g, T))
        yield pushed(pushed(g, T), T)

    for ours, theirs in zip(programs(f), programs(native)):
        close(compiled(ours)(P, X), theirs(P, X), 1e-10)


def test_an_accumulator_around_a_function(f):
    close(pushed(tf.function(f), T)(P, X), pushed(native, T)(P, X))


def descended(function):
    def step(i, p):
        return i + 1, p - 0.1 * gradient(energy(function))(p, X)

    return lambda p: tf.while_loop(lambda i, p: i < 3, step, (0, p))[1]


def chosen(function):
    return lambda p: tf.cond(tf.reduce_sum(p) > -1e9, lambda: function(p, X), lambda: function(2.0 * p, X))


def mapped(function):
    return lambda p: tf.map_fn(lambda s: function(s * p, X), tf.constant([1.0, 2.0], tf.float64))


def vectorized(function):
    return lambda p: tf.vectorized_map(lambda s: function(s * p, X), tf.constant([1.0, 2.0], tf.float64))


@pytest.mark.parametrize("program", [descended, chosen, mapped, vectorized])
def test_loops_branches_and_maps_and_their_gradients(f, compiled, program):
    def summed(function):
        return lambda p: tf.reduce_sum(program(function)(p) ** 2)

    close(compiled(program(f))(P), program(native)(P))
    close(compiled(gradient(summed(f)))(P), gradient(summed(native))(P), 1e-10)


def test_gradients_within_a_map(f, compiled):
    def program(function):
        scales = tf.constant([1.0, 2.0], tf.float64)
        return lambda p: tf.vectorized_map(lambda s: gradient(energy(function))(s * p, X), scales)

    close(compiled(program(f))(P), program(native)(P))


def test_sizes_may_be_unknown(f):
    signature = [tf.TensorSpec([None], tf.float64), tf.TensorSpec([None, 2], tf.float64)]
    shapes = []

    @tf.function(input_signature=signature)
    def program(p, x):
        with tf.GradientTape() as tape:
            tape.watch(p)
            y = f(p, x)
            shapes.append(y.shape.as_list())
            y = tf.sin(y)
        return tape.gradient(y, p)

    for x in (X, X[:3]):
        close(program(P, x), gradient(lambda p, x: tf.sin(native(p, x)))(P, x))
    assert shapes == [[None, 1]]
    with pytest.raises(tf.errors.InvalidArgumentError, match="is not compatible with expected shape"):
        program(P[1:], X)


def test_rows_of_a_dataset(f):
    data = tf.data.Dataset.from_tensor_slices(X).batch(3).map(lambda x: f(P, x))
    close(tf.concat(list(data), 0), native(P, X))


def test_weights_may_be_variables_of_tensorflow_or_keras_and_trees_of_them(f, compiled):
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras runs elsewhere")
    expected = gradient(energy(native))(P, X)
    whole = tf.Variable(P)
    tree = {name: keras.Variable(value, dtype="float64") for name, value in PARAMS.items()}

    def program():
        with tf.GradientTape() as tape:
            y = energy(f)(whole, X)
        with tf.GradientTape() as other:
            z = energy(f)(tree, X)
        return tape.gradient(y, whole), other.gradient(z, [tree[n].value for n in sorted(tree)])

    by_whole, by_parts = compiled(program)()
    close(by_whole, expected)
    close(tf.concat([tf.reshape(g, [-1]) for g in by_parts], 0), expected)


def test_the_gradient_is_that_of_the_values_though_a_variable_changed_since(f, compiled):
    expected, v = gradient(energy(native))(P, X), tf.Variable(P)

    def program():
        with tf.GradientTape() as tape:
            y = energy(f)(v, X)
            v.assign_add(tf.ones_like(P))
            v.scatter_nd_update([[0]], [5.0])
        return tape.gradient(y, v)

    close(compiled(program)(), expected)


def test_slices_as_cotangents(f, compiled):
    def program(function):
        return gradient(lambda p, x: tf.reduce_sum(tf.gather(function(p, x), [0, 2, 0]) ** 2))

    close(compiled(program(f))(P, X), program(native)(P, X))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_each_gradient_has_its_operands_dtype(compiled, dtype):
    f = gb.bridge(model, params=PARAMS, backend="autograd", outputs=rows)
    p = tf.cast(P, dtype)

    def program(p, x):
        with tf.GradientTape() as tape:
            tape.watch((p, x))
            y = f(p, x)
        return y, *tape.gradient(y, (p, x))

    y, by_params, by_inputs = compiled(program)(p, X)
    assert (y.dtype.name, by_params.dtype.name, by_inputs.dtype.name) == (dtype, dtype, "float64")
    np.testing.assert_allclose(
        tf.cast(y, tf.float64), native(P, X), atol=4 * float(np.finfo("float16").eps) * 8
    )


def test_a_value_and_gradient_costs_one_forward(f, compiled):
    program = compiled(gradient(energy(f)))
    program(P, X)
    with gb.trace() as trace:
        program(P, X)
    assert trace.counts == {"update": 1, "forward": 1, "zero": 1, "backward": 1}


def test_a_product_with_the_hessian_costs_no_second_forward(compiled):
    torch = pytest.importorskip("torch")
    guest = gb.primitive(backend="torch")(lambda x: torch.tanh(x) ** 2)

    def energies(x):
        return tf.reduce_sum(guest(x) ** 2)

    product = compiled(gradient(gradient(energies), seed=X))
    around = gradient(compiled(gradient(energies)), seed=X)
    exact = gradient(gradient(lambda x: tf.reduce_sum(tf.tanh(x) ** 4)), seed=X)(X)
    for program in (product, around):
        close(program(X), exact, 1e-10)
        with gb.trace() as trace:
            program(X)
        assert trace.counts["forward"] == 1


def test_what_is_not_differentiated_records_nothing(f):
    f(P, X)
    with gb.trace() as trace, tf.GradientTape():
        f(P, X)  # nobody watches
    assert trace.counts == {"update": 1, "forward": 1, "zero": 0, "backward": 0}
