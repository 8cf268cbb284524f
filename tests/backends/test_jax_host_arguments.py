"""JAX as a host: what may be handed to a bridge there and what comes back, and what is refused, when."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import warnings

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import autograd  # noqa: E402
import autograd.numpy as anp  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import (  # noqa: E402
    HigherOrderError,
    HostError,
    InputError,
    LayoutError,
    NonFiniteParamsError,
    NotDifferentiableError,
    ParamsShapeError,
)
from gradbridge.execution.functional import FunctionalAdapter  # noqa: E402
from gradbridge_jax.isolation import enable_x64  # noqa: E402

X = np.linspace(0.1, 1.2, 6).reshape(3, 2)


@pytest.fixture(autouse=True)
def double():
    with enable_x64(True):
        yield


def like(*specs):
    return specs[0]


@pytest.fixture
def sine():
    """A function with a written rule, which says what it returns."""

    @gb.primitive(outputs=like)
    def sine(x):
        return np.sin(x)

    sine.defvjp(lambda ans, x: lambda v: v * np.cos(x))
    return sine


def linear(host="auto", **options):
    """``X w + b``, with parameters."""
    shapes = lambda x: ((x.shape[0],), x.dtype)
    return gb.bridge(
        lambda t, x: anp.dot(x, t["w"]) + t["b"],
        params={"w": np.array([1.0, -2.0]), "b": np.array(0.5)},
        backend="autograd",
        host=host,
        outputs=shapes,
        **options,
    )


either = pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])


# -- who calls -------------------------------------------------------------------------------------


def test_the_arrays_of_a_call_say_that_it_is_jax():
    f = linear()
    assert type(f.params) is type(f(f.params, X)) is np.ndarray
    for params, inputs in ((jnp.asarray(f.params), X), (jnp.asarray(f.params), jnp.asarray(X))):
        assert isinstance(f(params, inputs), jax.Array)
    assert type(f(f.params, jnp.asarray(X))) is np.ndarray  # nobody differentiates, so the params say it


@pytest.mark.parametrize(
    "transformed",
    [
        jax.jit,
        lambda f: jax.vmap(lambda row: f(row[None])),
        lambda f: jax.grad(lambda x: f(x).sum()),
        lambda f: lambda x: jax.jvp(f, (x,), (x,)),
        lambda f: lambda x: jax.eval_shape(f, x),
    ],
)
def test_a_traced_array_says_it_beside_params_of_numpy(transformed):
    f = linear()
    results = jax.tree.leaves(transformed(lambda x: f(f.params, x))(jnp.asarray(X)))
    assert all(isinstance(y, (jax.Array, jax.ShapeDtypeStruct)) for y in results)


def test_a_host_that_is_named_makes_numpys_arrays_its_own():
    f = linear(host="jax")
    assert isinstance(f.params, jax.Array)
    assert isinstance(f(np.asarray(f.params), X), jax.Array)
    x = X.copy()
    y = f(f.params, x)
    x[:] = 0  # the caller's array is nobody else's
    np.testing.assert_array_equal(y, linear()(np.asarray(f.params), X))


def test_two_systems_that_differentiate_one_call_are_refused():
    f = linear()
    with pytest.raises(HostError, match="autograd .* and jax"):
        jax.jit(lambda x: autograd.grad(lambda p: f(p, x).sum())(f.params))(jnp.asarray(X))


def test_arrays_of_jax_are_data_to_a_program_of_autograd():
    f = linear()
    gradient = autograd.grad(lambda p: anp.sum(f(p, jnp.asarray(X))))(f.params)
    assert type(gradient) is np.ndarray


# -- derivatives at one point ----------------------------------------------------------------------


def test_the_methods_at_concrete_arrays_give_the_hosts_own():
    f = linear()
    params, x = jnp.asarray(f.params), jnp.asarray(X)
    for of_numpy, of_jax in (
        (f.jacobian(f.params, X), f.jacobian(params, x)),
        (f.vjp(f.params, X, cotangent=np.ones(3)), f.vjp(params, x, cotangent=jnp.ones(3))),
        (f.jvp(f.params, X, tangent=f.params), f.jvp(params, x, tangent=params)),
    ):
        assert type(of_numpy) is np.ndarray
        assert isinstance(of_jax, jax.Array)
        np.testing.assert_array_equal(of_jax, of_numpy)
    assert f.audit(params, x)


def test_they_are_refused_where_jax_traces():
    f = linear()
    with pytest.raises(NotDifferentiableError, match="call the bridge itself there"):
        jax.jit(lambda p: f.jacobian(p, X))(jnp.asarray(f.params))


# -- trees, keywords, what is no array -------------------------------------------------------------


@either
def test_params_are_a_vector_or_the_tree_of_weights(run):
    f = linear(host="jax")
    tree = {name: jnp.asarray(w) for name, w in f.layout.unravel(np.asarray(f.params)).items()}
    loss = lambda p: (f(p, X) ** 2).sum()
    by_tree, by_vector = run(jax.grad(loss))(tree), run(jax.grad(loss))(f.params)
    y = X @ tree["w"] + tree["b"]
    np.testing.assert_allclose(by_tree["w"], 2 * y @ X, rtol=1e-12)
    np.testing.assert_allclose(by_tree["b"], 2 * y.sum(), rtol=1e-12)
    assert set(by_tree) == {"w", "b"}
    np.testing.assert_allclose(by_vector, f.layout.ravel(by_tree), rtol=1e-12)


@either
def test_trees_go_in_and_come_out_and_keywords_go_by_name(run):
    shapes = lambda pair, *, scale, how: {"sum": pair["a"], "parts": (pair["b"][0], [pair["a"]])}

    @gb.primitive(backend="autograd", outputs=shapes)
    def f(pair, *, scale, how):
        assert how == "loud"
        a, (b,) = pair["a"], pair["b"]
        return {"sum": (a + b) * scale, "parts": (a * b, [anp.exp(a)])}

    def g(pair, scale):
        return f(pair, scale=scale, how="loud")

    pair, scale = {"a": jnp.array([1.0, 2.0]), "b": [jnp.array([3.0, -1.0])]}, jnp.array(2.0)
    out = run(g)(pair, scale)
    assert set(out) == {"sum", "parts"}
    assert isinstance(out["parts"], tuple)
    assert isinstance(out["parts"][1], list)
    np.testing.assert_allclose(out["sum"], [8.0, 2.0])
    gradient = run(jax.grad(lambda pair, s: sum(y.sum() for y in jax.tree.leaves(g(pair, s))), (0, 1)))(
        pair, scale
    )
    np.testing.assert_allclose(gradient[0]["a"], 2 + np.array([3.0, -1.0]) + np.exp([1.0, 2.0]), rtol=1e-12)
    np.testing.assert_allclose(gradient[0]["b"][0], [3.0, 4.0], rtol=1e-12)
    np.testing.assert_allclose(gradient[1], 5.0, rtol=1e-12)


@either
def test_integers_have_no_derivative_and_pass_as_they_are(run):
    shapes = lambda x, rows: {"largest": ((2,), int), "picked": ((2, 2), x.dtype)}

    @gb.primitive(outputs=shapes)
    def f(x, rows):
        return {"largest": x.argmax(0), "picked": x[rows]}

    f.defvjp(lambda ans, x, rows: lambda v: picked(v["picked"], x, rows), argnums=(0,))

    def picked(v, x, rows):
        gradient = np.zeros_like(x)
        np.add.at(gradient, rows, v)
        return gradient

    x, rows = jnp.asarray(X), jnp.array([2, 0])
    out, tangents = run(lambda x, rows: jax.vjp(f, x, rows))(x, rows)[0], None
    assert out["largest"].dtype == int
    np.testing.assert_array_equal(out["largest"], [2, 2])
    tangents = run(lambda x: jax.jvp(lambda x: f(x, rows), (x,), (x,))[1])(x)
    assert tangents["largest"].dtype == jax.dtypes.float0
    np.testing.assert_allclose(tangents["picked"], X[[2, 0]], rtol=1e-12)
    by_rows = run(jax.grad(lambda rows: f(x, rows)["picked"].sum(), allow_int=True))(rows)
    assert by_rows.dtype == jax.dtypes.float0
    gradient = run(jax.grad(lambda x: (f(x, rows)["picked"] * 3).sum()))(x)
    np.testing.assert_array_equal(gradient, [[3, 3], [0, 0], [3, 3]])


@either
def test_complex_numbers_have_jaxs_own_gradients(run):
    f = gb.primitive(backend="autograd", outputs=like)(lambda z: z * anp.conj(z) * z)
    native = lambda z: z * jnp.conj(z) * z
    z, along = jnp.array([1 + 2j, 3 - 1j]), jnp.array([0.5 - 1j, 2j])
    loss = lambda f: lambda z: jnp.abs(f(z)).sum()
    hvp = lambda f: lambda z: jax.jvp(jax.grad(loss(f)), (z,), (along,))[1]
    np.testing.assert_allclose(run(jax.grad(loss(f)))(z), jax.grad(loss(native))(z), rtol=1e-12)
    np.testing.assert_allclose(
        run(lambda z: jax.jvp(f, (z,), (along,))[1])(z), jax.jvp(native, (z,), (along,))[1], rtol=1e-12
    )
    np.testing.assert_allclose(run(hvp(f))(z), hvp(native)(z), rtol=1e-10)


@either
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_results_and_gradients_have_the_dtype_of_what_they_came_from(sine, run, dtype):
    x = jnp.ones(3, dtype)
    assert run(sine)(x).dtype == dtype
    assert run(jax.grad(lambda x: sine(x).sum()))(x).dtype == dtype
    f = linear()
    by_params, by_x = run(jax.grad(lambda p, x: f(p, x).sum(), (0, 1)))(
        jnp.asarray(f.params, dtype), jnp.asarray(X, jnp.float32)
    )
    assert (by_params.dtype, by_x.dtype) == (dtype, jnp.float32)


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_without_64_bits_results_are_those_of_32_and_nobody_warns(run):
    shapes = lambda x: (((2,), float), ((2,), int))
    f = gb.primitive(outputs=shapes)(lambda x: (np.ones(2), np.arange(2)))  # float64 and int64
    f.defvjp(lambda ans, x: lambda v: np.zeros(x.shape))
    with enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("error")
        ones, numbers = run(f)(jnp.ones(2))
        assert (ones.dtype, numbers.dtype) == (jnp.float32, jnp.int32)


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_integers_that_32_bits_do_not_hold_are_refused(run):
    f = gb.primitive(outputs=like, host="jax")(lambda n: n.astype(np.int64) * 2**40)
    with enable_x64(False):
        with pytest.raises(InputError, match="do not fit into int32"):
            f(np.array([2**40]))
        with pytest.raises(Exception, match="numbers that do not fit into int32"):
            jax.block_until_ready(run(f)(jnp.array([1])))


def test_a_typed_key_is_refused_where_it_means_nothing(sine):
    for run in (lambda f: f, jax.jit):
        with pytest.raises(InputError, match="key_data"):
            run(sine)(jax.random.key(0))


@either
def test_a_model_of_jax_takes_typed_keys(run):
    f = gb.primitive(backend="jax")(lambda key, x: x * jax.random.normal(key, x.shape))
    key, x = jax.random.key(0), jnp.asarray(X)
    gradient = run(jax.grad(lambda x, key: f(key, x).sum()))(x, key)
    np.testing.assert_allclose(gradient, jax.random.normal(key, x.shape), rtol=1e-12)
    keys = jax.random.split(key, 4)
    assert run(jax.vmap(lambda key: f(key, x)))(keys).shape == (4, 3, 2)


def test_what_is_held_constant_has_a_zero_gradient(sine):
    f = linear(nondiff=(1,))
    gradient = jax.jit(jax.grad(lambda p, x: f(p, x).sum(), (0, 1)))(jnp.asarray(f.params), jnp.asarray(X))
    np.testing.assert_allclose(gradient[0], [3, *X.sum(0)], rtol=1e-12)
    assert not gradient[1].any()


# -- refused, and when -----------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_while_jax_traces(sine):
    f = linear()
    for trace in (jax.jit, jax.vmap, lambda f: lambda p: jax.eval_shape(f, p)):
        with pytest.raises((ParamsShapeError, LayoutError)):
            trace(lambda p: f(p, X))(jnp.ones((4, 4)))
    with pytest.raises(InputError, match="takes no complex numbers"):
        jax.jit(gb.primitive(gradient="numeric")(lambda x: x * 2))(jnp.array([1j]))


def test_shapes_that_were_announced_and_do_not_come_are_refused():
    f = gb.primitive(backend="autograd", outputs=((7,), float))(anp.sin)
    with pytest.raises(Exception, match=r"shapes \[\(3, 2\)\] where \[\(7,\)\] were announced"):
        jax.block_until_ready(jax.jit(f)(jnp.asarray(X)))


def test_a_second_derivative_that_the_guest_lacks_is_refused_while_jax_traces():
    adapter = gb.primitive(backend="autograd")(anp.sin).bridge.adapter
    framework = copy.copy(adapter.framework)
    framework.traits = dataclasses.replace(framework.traits, has_higher_orders=False)
    f = gb.bridge(FunctionalAdapter(framework, adapter.source), outputs=like)
    loss = lambda x: f(jnp.zeros(0), x).sum()
    x = jnp.asarray(X)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(x), np.cos(X), rtol=1e-12)
    for transformed in (jax.hessian(loss), jax.grad(lambda x: jax.grad(loss)(x).sum()), jax.jacfwd(loss)):
        with pytest.raises(HigherOrderError):
            jax.jit(transformed).lower(x)


def test_what_is_found_while_it_runs_says_our_sentence_within_jaxs():
    f = linear(check_finite=True)
    nan = jnp.asarray(f.params) * jnp.nan
    with pytest.raises(NonFiniteParamsError):
        f(nan, X)
    with pytest.raises(Exception, match="was asked to check its params and got 3 NaN"):
        jax.block_until_ready(jax.jit(f)(nan, X))


def test_symbolic_sizes_are_refused(sine):
    export = importlib.import_module("jax.export")  # older versions do not import it themselves
    [size] = export.symbolic_shape("n")
    with pytest.raises(HostError, match="guest runs at known ones"):
        export.export(jax.jit(sine))(jax.ShapeDtypeStruct((size,), jnp.float64))


def test_a_framework_that_knows_no_shapes_before_it_runs_is_tried_at_ones():
    f = gb.primitive(lambda x: anp.tanh(x), backend="autograd")
    with pytest.warns(gb.errors.GradbridgeWarning, match="evaluated once, at arrays of ones"):
        y = jax.jit(f)(X)
    np.testing.assert_allclose(y, np.tanh(X), rtol=1e-12)
    hessian = jax.jit(jax.hessian(lambda x: f(x).sum()))(jnp.ones(1))
    np.testing.assert_allclose(hessian, [[-2 * np.tanh(1) / np.cosh(1) ** 2]], rtol=1e-8)
