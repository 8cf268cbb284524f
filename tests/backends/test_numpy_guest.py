"""Functions without a framework: gradients written down in the tutorial's style, or numeric."""

import ctypes
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
from autograd import grad, jacobian
from hypothesis import given
from hypothesis import strategies as st

import gradbridge as gb
from gradbridge.errors import (
    GradientShapeError,
    GuestError,
    MissingVJPError,
    OptionError,
    VJPSignatureError,
)

HERE = pathlib.Path(__file__).parent
X = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])


def test_the_square_has_slope_8_at_4():
    @gb.primitive
    def Q(x):
        return x**2

    @Q.defvjp
    def Q_vjp(ans, x):
        return lambda v: 2 * x * v

    assert grad(Q)(4.0) == 8.0
    assert callable(Q_vjp)


def test_the_line_has_the_jacobian_of_ones_and_features():
    @gb.primitive
    def P(theta, x):
        return theta[0] + x @ theta[1:]

    @P.defvjp
    def P_vjp(ans, theta, x):
        J = np.column_stack([np.ones(len(x)), x])
        return lambda v: v @ J

    J = jacobian(P)(np.array([0.0, 1.0, 2.0]), X)
    assert np.array_equal(J, [[1, 1, 2], [1, 3, 4], [1, 5, 6], [1, 7, 8]])
    with pytest.raises(
        MissingVJPError,
        match=r"argument 1 \(x\) was asked for, and it has rules for argument 0 only; "
        r"write it with @P\.defvjp\(argnums=\(1,\)\), or make",
    ):
        jacobian(P, 1)(np.array([0.0, 1.0, 2.0]), X)


def test_a_rule_for_each_argument_and_none_for_no_influence():
    f = gb.primitive(lambda a, b, c: a * b)
    f.defvjp(lambda ans, a, b, c: lambda v: v * b, lambda ans, a, b, c: lambda v: v * a, None)
    assert grad(f, (0, 1, 2))(2.0, 3.0, 4.0) == (3.0, 2.0, 0.0)


def test_argnums_say_which_argument_a_rule_is_for():
    f = gb.primitive(lambda a, b: a * b)

    @f.defvjp(argnums=(1,))
    def _(ans, a, b):
        return lambda v: v * a

    assert grad(f, 1)(2.0, 3.0) == 2.0


class Spring:
    def __init__(self, k):
        self.k = k

    @gb.primitive
    def energy(self, x):
        return 0.5 * self.k * x**2

    @energy.defvjp(argnums=(1,))
    def _(ans, self, x):
        return lambda v: v * self.k * x

    def __call__(self, x):
        return self.k * x


def test_methods_closures_lambdas_and_callable_objects_work():
    assert grad(Spring(3.0).energy)(2.0) == 6.0
    assert Spring(3.0).energy(2.0) == 6.0
    bound = gb.primitive(Spring(5.0))
    bound.defvjp(lambda ans, x: lambda v: 5.0 * v)
    assert grad(bound)(1.0) == 5.0

    def scaled(k):
        f = gb.primitive(lambda x: k * x)
        f.defvjp(lambda ans, x: lambda v: k * v)
        return f

    assert grad(scaled(7.0))(1.0) == 7.0


def test_a_method_whose_rule_takes_self_first_is_told_the_order():
    with pytest.raises(VJPSignatureError, match=r"must take the answer first, got \(self, ans, x\)"):
        Spring.energy.defvjp(lambda self, ans, x: None, argnums=(1,))


@pytest.mark.parametrize("rule", [lambda ans: None, lambda x: None, lambda ans, x, y: None])
def test_a_rule_of_a_wrong_arity_is_refused_when_it_is_written(rule):
    f = gb.primitive(lambda x: x)
    with pytest.raises(VJPSignatureError, match=r"must take 2 arguments, \(ans, x\)"):
        f.defvjp(rule)


def test_more_rules_than_arguments_are_refused():
    with pytest.raises(VJPSignatureError, match="a rule for argument 1, but <lambda> takes 1"):
        gb.primitive(lambda x: x).defvjp(None, None)


def test_a_rule_that_returns_no_function_is_told_so():
    f = gb.primitive(lambda x: x)
    f.defvjp(lambda ans, x: 1.0)
    with pytest.raises(
        VJPSignatureError, match="must return a function of the cotangent, got a float; return `lambda v: …`"
    ):
        grad(f)(1.0)


def test_a_gradient_of_a_wrong_shape_is_refused():
    f = gb.primitive(lambda x: x.sum())
    f.defvjp(lambda ans, x: lambda v: np.ones(4))
    with pytest.raises(GradientShapeError, match=r"argument's shape \(3,\), got \(4,\)"):
        grad(f)(np.ones(3))


def test_no_rule_at_all_says_what_to_do():
    with pytest.raises(MissingVJPError, match="it has no rules; write it with @f.defvjp, or"):

        @gb.primitive
        def f(x):
            return x

        grad(f)(1.0)


def test_a_function_that_raises_is_named_with_its_inputs():
    f = gb.primitive(lambda x, y: x @ y)
    with pytest.raises(GuestError, match=r"failed on inputs \(2, 3\), \(2, 3\): ValueError"):
        f(np.ones((2, 3)), np.ones((2, 3)))


def test_the_function_cannot_write_to_the_callers_arrays():
    @gb.primitive
    def rude(x):
        x += 1
        return x

    mine = np.zeros(3)
    assert np.array_equal(rude(mine), [1, 1, 1])
    assert np.array_equal(mine, [0, 0, 0])


def test_params_of_a_tree_become_a_flat_vector_with_names():
    def line(p, x):
        return p["intercept"] + x @ p["slope"]

    f = gb.bridge(
        line,
        params={"intercept": np.zeros(()), "slope": np.array([1.0, 2.0])},
        backend="numpy",
        vjp=lambda ans, p, x: lambda v: {"intercept": v.sum(), "slope": v @ x},
    )
    assert f.layout.names == ("intercept", "slope")
    assert np.array_equal(f.params, [0, 1, 2])
    assert np.array_equal(jacobian(f)(f.params, X), [[1, 1, 2], [1, 3, 4], [1, 5, 6], [1, 7, 8]])
    assert np.array_equal(f.model(np.array([1.0, 0.0, 0.0]))(X), np.ones(4))


@given(st.integers(0, 3), st.integers(1, 3))
def test_numeric_gradients_agree_with_the_closed_form(rows, columns):
    f = gb.primitive(gradient="numeric")(lambda a, x: np.sin(x) * a)
    x = np.linspace(-1, 1, rows * columns).reshape(rows, columns)
    pulled = jacobian(lambda x: f(2.0, x).sum())(x)
    assert pulled.shape == x.shape
    assert np.allclose(pulled, 2 * np.cos(x), rtol=1e-8, atol=1e-10)


def test_a_numeric_jacobian_is_computed_once_for_all_its_rows():
    calls = []

    @gb.primitive(gradient="numeric")
    def f(x):
        calls.append(1)
        return np.outer(x, x)

    x = np.array([1.0, 2.0])
    jacobian(f)(x)  # the first call looks at more
    calls.clear()
    J = jacobian(f)(x)
    expected = np.einsum("ik,j->ijk", np.eye(2), x) + np.einsum("jk,i->ijk", np.eye(2), x)
    assert np.allclose(J, expected, atol=1e-8)
    once = len(calls)
    calls.clear()
    grad(lambda x: f(x).sum())(x)
    assert len(calls) == once


@pytest.mark.skipif(shutil.which("gcc") is None, reason="compiles a C file")
def test_a_c_library_with_its_own_vjp(tmp_path):
    library = tmp_path / "libpotential.so"
    source = HERE / "potential.c"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, source, "-lm"], check=True)
    c = ctypes.CDLL(str(library))
    array = np.ctypeslib.ndpointer(np.float64, flags="C_CONTIGUOUS")
    c.morse.argtypes = (ctypes.c_int, array, ctypes.c_double, array)
    c.morse_vjp.argtypes = (ctypes.c_int, array, ctypes.c_double, array, array)

    @gb.primitive
    def morse(r, a):
        energy = np.empty_like(r)
        c.morse(r.size, np.ascontiguousarray(r), float(a), energy)
        return energy

    @morse.defvjp
    def _(ans, r, a):
        def pull(v):
            gradient = np.empty_like(r)
            c.morse_vjp(r.size, np.ascontiguousarray(r), float(a), np.ascontiguousarray(v), gradient)
            return gradient

        return pull

    r = np.linspace(0.5, 3.0, 6)[::-1]
    e = np.exp(-1.5 * (r - 1))
    assert np.allclose(morse(r, 1.5), (1 - e) ** 2, rtol=1e-14)
    assert np.allclose(
        grad(lambda r: (morse(r, 1.5) * r).sum())(r), (1 - e) ** 2 + r * 3 * (1 - e) * e, rtol=1e-13
    )


def test_rules_and_functions_that_write_to_what_they_get_change_nothing():
    import autograd.numpy as anp

    h = gb.primitive(lambda x: 2 * x)

    def doubling(v):
        v *= 2
        return v

    h.defvjp(lambda ans, x: doubling)
    assert np.array_equal(grad(lambda x: anp.sum(anp.sin(x) + h(x)))(np.zeros(2)), [3, 3])

    @gb.primitive
    def shifted(x):
        x += 1
        return x**2

    @shifted.defvjp
    def _(ans, x):
        x += 1
        return lambda v: 2 * x * v

    assert np.array_equal(jacobian(shifted)(np.ones(2)), 4 * np.eye(2))


def test_a_function_that_reuses_its_buffer_does_not_change_earlier_results():
    buffer = np.empty(2)

    @gb.primitive
    def fill(x):
        buffer[:] = x
        return buffer

    first, second = fill(np.ones(2)), fill(np.zeros(2))
    assert np.array_equal(first, [1, 1])
    assert np.array_equal(second, [0, 0])


@pytest.mark.parametrize("wrong", [lambda v: None, lambda v: v * 1j, lambda v: "words"])
def test_gradients_that_are_none_or_not_real_are_refused(wrong):
    f = gb.primitive(lambda x: 2 * x)
    f.defvjp(lambda ans, x: wrong)
    with pytest.raises(GradientShapeError):
        grad(f)(1.0)


def test_a_tree_argument_needs_a_tree_of_gradients():
    f = gb.primitive(lambda s: s["a"] * s["b"])
    f.defvjp(lambda ans, s: lambda v: v)
    with pytest.raises(GradientShapeError, match="a tree like its argument's"):
        grad(f)({"a": np.array(1.0), "b": np.array(2.0)})


def test_params_of_one_array_take_a_gradient_of_its_shape():
    f = gb.bridge(
        lambda p, x: p @ x,
        params=np.ones((3, 2)),
        backend="numpy",
        vjp=lambda ans, p, x: lambda v: np.outer(v, x),
    )
    x = np.array([1.0, 2.0])
    assert np.array_equal(grad(lambda p: f(p, x).sum())(f.params), [1, 2, 1, 2, 1, 2])


def test_ufuncs_take_a_rule():
    f = gb.primitive(np.sin)
    f.defvjp(lambda ans, x: lambda v: v * np.cos(x))
    assert grad(f)(0.0) == 1.0


@pytest.mark.parametrize("dtype", ["int8", "uint16", "bool", "complex128", np.int64, "<f8"])
def test_a_dtype_is_a_floating_one_of_numpys_or_refused(dtype):
    for make in (
        lambda: gb.bridge(lambda p, x: p * x, params=np.ones(2), backend="numpy", dtype=dtype),
        lambda: gb.primitive(lambda x: x, dtype=dtype),
        lambda: gb.bridge(gb.build("mlp", sizes=[2, 1], backend="numpy"), dtype=dtype),
    ):
        with pytest.raises(OptionError, match="dtype must be one of float64, float32, float16, got"):
            make()


def test_in_dtype_gives_the_same_function_in_another_precision():
    f = gb.bridge(lambda p, x: p * x, params=np.ones(2), backend="numpy", dtype="float32")
    x, one = np.array([1 / 3, 1 / 7]), np.ones(2)
    twin = f.adapter.in_dtype("float64")
    assert (f.adapter.dtype, twin.dtype) == ("float32", "float64")
    loss = lambda adapter: gb.bridge(adapter)(one, x)
    assert np.array_equal(loss(twin), x)
    assert np.array_equal(loss(f.adapter), x.astype("float32"))
    free = gb.bridge(lambda p, x: p * x, params=np.ones(2, "float32"), backend="numpy").adapter
    assert free.in_dtype("float64") is free
    assert free.in_dtype("float32") is free
    with pytest.raises(OptionError, match="dtype must be one of"):
        f.adapter.in_dtype("bfloat16")
