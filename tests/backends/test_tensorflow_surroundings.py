"""What TensorFlow code reads from outside of its arguments: noticed where it changes, refused where it is too late."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import gradbridge as gb
from gradbridge import errors
from gradbridge.call_spec import CallSpec
from gradbridge.options import GuestOptions

tf = pytest.importorskip("tensorflow")
from gradbridge_tensorflow.guest import adapt  # noqa: E402

P = np.array([1.0, -2.0, 0.5])
X = np.arange(6.0).reshape(2, 3)
rate, table = 1.0, {"rates": [1.0, 2.0]}


@tf.function
def within(x):
    return x * rate


class Scaled:
    def __init__(self):
        self.factor = 1.0

    def apply(self, p, x):
        return x * p * self.factor


@pytest.mark.parametrize("way", ["global", "within a tf.function", "item", "attribute", "cell"])
def test_what_a_function_reads_is_that_of_each_call(way, close):
    global rate
    scaled, factor = Scaled(), 1.0
    functions = {
        "global": lambda p, x: x * p * rate,
        "within a tf.function": lambda p, x: within(x * p),
        "item": lambda p, x: x * p * table["rates"][0],
        "attribute": scaled.apply,
        "cell": lambda p, x: x * p * factor,
    }
    f = gb.bridge(functions[way], params=P, backend="tensorflow")
    for value in (1.0, 3.0, -2.0, 1.0):
        rate = table["rates"][0] = scaled.factor = factor = value
        close(f(P, X), value * X * P)
        close(autograd.grad(lambda p: anp.sum(f(p, X) ** 2))(P), 2 * value**2 * np.sum(X**2, 0) * P)
        close(f.jacobian(P, X), np.stack([np.diag(value * row) for row in X]))


def test_a_derivative_that_must_be_traced_after_a_change_is_refused(close):
    factor = 1.0
    f = gb.primitive(lambda x: np.sin(1.0) * factor * x**3, backend="tensorflow")

    def changing(x):
        nonlocal factor
        y = f(x)
        factor = 2.0
        return anp.sum(y)

    with pytest.raises(errors.GuestError, match=r"reads factor from outside, which changed after the call"):
        autograd.grad(lambda x: anp.sum(autograd.grad(changing)(x)))(P)
    factor = 2.0
    close(
        autograd.grad(lambda x: anp.sum(autograd.grad(lambda x: anp.sum(f(x)))(x)))(P), 12 * np.sin(1.0) * P
    )


class Affine(tf.Module):
    def __init__(self):
        super().__init__()
        self.w, self.shift = tf.Variable(tf.ones(3)), np.full(3, 0.1, "float32")
        self.scale = tf.constant([0.1, 0.2, 0.3])

    @tf.function
    def __call__(self, x):
        return x * self.w * rate * self.scale + self.shift


def test_modules_notice_globals_and_keep_their_attributes():
    global rate
    rate, module = 1.0, Affine()
    f = gb.bridge(module, dtype="float32")
    before = f(P, X)
    module.shift = np.zeros(3, "float32")  # not the bridge's
    np.testing.assert_array_equal(f(P, X), before)
    rate = 2.0
    np.testing.assert_allclose(f(P, X) - 0.1, 2 * (before - 0.1), rtol=1e-5, atol=1e-6)
    rate = 1.0


def test_modules_compute_in_another_dtype_as_they_were_when_bridged():
    global rate
    rate, module = 1.0, Affine()
    f = adapt(module, GuestOptions())
    module.w.assign(tf.zeros(3))
    twin = f.in_dtype("float64")
    assert twin.in_dtype("float64") is twin
    assert f.in_dtype("float32") is f
    kinds = {str(d) for d in twin.source.dtypes}
    assert kinds == {"<dtype: 'float64'>"}
    out, _ = twin.forward(twin.update([P]), [X], CallSpec.of_arrays(1), ())
    scale, shift = np.float32([0.1, 0.2, 0.3]).astype(float), np.float64(np.float32(0.1))
    np.testing.assert_allclose(out.numpy(), X * P * scale + shift, rtol=1e-14)


def test_code_with_a_dtype_of_its_own_says_so_and_leaves_nothing_behind():
    class Hard(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(tf.ones(3))

        def __call__(self, x):
            return x * self.w * tf.constant([1.0, 2.0, 3.0])

    f = adapt(Hard(), GuestOptions())
    spec = CallSpec.of_arrays(1)
    twin = f.in_dtype("float64")
    for _ in range(2):
        with pytest.raises(errors.GuestError, match="float32.*float64|float64.*float32"):
            twin.forward(twin.update([P]), [X], spec, ())
    out, _ = f.forward(f.update([P]), [X], spec, ())
    np.testing.assert_allclose(out.numpy(), X * P * [1.0, 2.0, 3.0], rtol=1e-6)


class Lazy(tf.Module):
    def __init__(self, inner=None):
        super().__init__()
        self.inner = inner

    def __call__(self, x):
        if self.inner is not None:
            x = self.inner(x)
        self._build(x)
        return x @ self.w

    def _build(self, x):
        if not hasattr(self, "w"):
            self.w = tf.Variable(tf.ones((x.shape[-1], 2), x.dtype))


@pytest.mark.parametrize("make", [Lazy, lambda: Lazy(Lazy())], ids=["itself", "a part"])
def test_variables_made_on_the_first_call(make):
    module = make()
    with pytest.raises(
        errors.UnknownModelError, match=r"makes its variables when it is called.*example inputs"
    ):
        gb.bridge(module)
    module(tf.constant(X))
    f = gb.bridge(module)
    np.testing.assert_allclose(f(f.params, X), module(tf.constant(X)).numpy())


def test_variables_made_as_a_function_is_traced():
    made = []

    def lazy(x):
        if not made:
            made.append(tf.Variable(2.0, dtype=x.dtype))
        return x * made[0]

    with pytest.raises(
        errors.UnknownModelError, match=r"makes a tf.Variable when it is called.*call it once"
    ):
        gb.primitive(lazy, backend="tensorflow")(X)
    lazy(tf.constant(X))
    np.testing.assert_allclose(gb.primitive(lazy, backend="tensorflow")(X), 2 * X)


def test_trainable_variables_from_outside_are_told():
    w, b = (
        tf.Variable([1.0, 2.0, 3.0], dtype=tf.float64, name="w"),
        tf.Variable(1.0, trainable=False, dtype=tf.float64),
    )
    f = adapt(lambda x: x * w + b, GuestOptions())
    _, residuals = f.forward(f.update([]), [X], CallSpec.of_arrays(1), (0,))
    (stranger,) = f.strangers(residuals)
    assert "'w:0'" in stranger.name
    assert not stranger.is_parameter


def test_a_bridge_may_be_called_while_another_one_is_traced(close):
    square = gb.primitive(lambda x: x**2, backend="tensorflow")
    table = gb.bridge(lambda p, x: p * x, params=P, backend="tensorflow")

    def function(x):
        inner = autograd.grad(lambda p: anp.sum(square(table(p, X))))(P)  # traces two more
        return x * tf.constant(inner)

    close(gb.primitive(function, backend="tensorflow")(X), X * 2 * np.sum(X**2, 0) * P)


def test_errors_of_graphs_end_in_what_went_wrong():
    f = gb.primitive(lambda x: tf.debugging.assert_positive(x, "must be positive") or x, backend="tensorflow")
    g = gb.primitive(lambda x: tf.gather(x, tf.cast(x[0], tf.int32)), backend="tensorflow")
    for failing in (
        lambda: f(-X[0] - 1),
        lambda: g(np.array([7.0, 1.0])),
        lambda: autograd.grad(g)(np.array([7.0, 1.0])),
    ):
        with pytest.raises(errors.GradbridgeError) as raised:
            failing()
        said = str(raised.value)
        assert "stack traces" not in said
        assert "indices" in said or "positive" in said
