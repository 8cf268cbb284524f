"""Bad input is met at the border, with the words of ours, and nothing of the user's changed."""

import autograd
import numpy as np
import pytest

import gradbridge as gb
from gradbridge.errors import (
    InputError,
    NonFiniteParamsError,
    OptionError,
    OutputError,
    ParamsDtypeError,
    ParamsShapeError,
)


def line(params, x):
    return params["a"] + x @ params["b"]


@pytest.fixture
def f():
    tree = {"a": np.zeros(1), "b": np.ones(2)}
    vjp = lambda ans, p, x: lambda v: {"a": np.array([v.sum()]), "b": v @ x}
    return gb.bridge(line, params=tree, backend="numpy", vjp=vjp)


X = np.arange(6.0).reshape(3, 2)


def test_params_of_a_wrong_length(f):
    with pytest.raises(
        ParamsShapeError,
        match=r"over line expects params of shape \(3,\), got \(4,\); the first argument of a bridge is the params, "
        r".* f\.params are the model's own",
    ):
        f(np.zeros(4), X)


def test_forgotten_params_are_named(f):
    with pytest.raises(ParamsShapeError, match=r"got \(3, 2\); the first argument of a bridge is the params"):
        f(X)


def test_a_model_in_place_of_the_params_is_not_an_array(f):
    with pytest.raises(
        ParamsDtypeError, match="it is not an array; the first argument of a bridge is the params"
    ):
        f(object(), X)


def test_a_model_without_parameters_names_primitive():
    f = gb.bridge(lambda x: x**2, backend="numpy")
    with pytest.raises(
        ParamsShapeError,
        match=r"no parameters: if its first argument is the params, bridge it with params=.*gradbridge\.primitive",
    ):
        f(X)


def test_params_with_a_unit_axis_too_many(f):
    with pytest.raises(ParamsShapeError, match=r"got \(3, 1\); flatten them with params.reshape\(-1\)"):
        f(np.zeros((3, 1)), X)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (np.array([1, 2, None], dtype=object), "object"),
        (np.zeros(3, complex), "real and imaginary"),
        (np.array(["a", "b", "c"]), "convert the strings"),
        (np.zeros(3, bool), "booleans"),
    ],
)
def test_params_of_a_wrong_dtype(f, bad, said):
    with pytest.raises(ParamsDtypeError, match=said):
        f(bad, X)


def test_nan_params_are_named_when_asked_to_check():
    f = gb.bridge(lambda p, x: p["w"] * x, params={"w": np.ones((2, 2))}, backend="numpy", check_finite=True)
    bad = np.array([0.0, np.inf, np.nan, 1.0])
    with pytest.raises(
        NonFiniteParamsError, match=r"1 NaN and 1 infinite values among 4; the first is w\[0, 1\] = inf"
    ):
        f(bad, 1.0)


def test_nan_params_are_named_inside_a_gradient_too():
    from autograd import grad

    f = gb.bridge(
        lambda p, x: p * x,
        params=np.ones(2),
        backend="numpy",
        vjp=lambda ans, p, x: lambda v: v * x,
        check_finite=True,
    )
    with pytest.raises(NonFiniteParamsError):
        grad(lambda p: f(p, np.ones(2)).sum())(np.array([np.nan, 1.0]))


def test_nan_params_pass_when_not_asked(f):
    assert np.isnan(f(np.full(3, np.nan), X)).all()


def test_complex_inputs_are_refused_by_a_guest_that_takes_none_with_the_reason():
    f = gb.primitive(lambda x: x * 2.0, gradient="numeric")
    said = "input 0 of .* has dtype complex128, and its backend, or its numeric gradient, takes no complex numbers"
    with pytest.raises(InputError, match=said):
        f(X + 1j)
    with pytest.raises(InputError, match="takes no complex numbers; pass the real and imaginary parts"):
        autograd.grad(lambda x: np.sum(np.real(f(x))))(X + 1j)
    with pytest.raises(OutputError, match="expected a real array"):
        gb.primitive(lambda x: x * 1j, gradient="numeric")(1.0)


@pytest.mark.parametrize("result", ["words", None, np.array(["a"]), [np.ones(2), "words"]])
def test_a_function_that_returns_no_array_is_refused(result):
    with pytest.raises(OutputError):
        gb.primitive(lambda x: result)(1.0)


@pytest.mark.parametrize(
    "options", [{"mode": "test"}, {"noise": "loud"}, {"seed": 1.5}, {"colour": "red"}, {"gradient": "guess"}]
)
def test_an_option_that_does_not_exist_is_refused(options):
    with pytest.raises(OptionError):
        gb.bridge(line, params={"a": np.zeros(1), "b": np.ones(2)}, backend="numpy", **options)


def test_a_list_of_numbers_is_an_array(f):
    assert np.array_equal(f([1.0, 2.0, 3.0], [[1.0, 1.0]]), [6.0])


def test_float32_params_give_float32_outputs_and_gradients(f):
    from autograd import make_vjp

    pull, value = make_vjp(f)(np.ones(3, np.float32), X)
    assert value.dtype == np.float32
    assert pull(np.ones(3, np.float32)).dtype == np.float32


def test_a_function_without_params_answers_in_the_dtype_of_its_first_floating_input():
    double = gb.primitive(lambda i, x: x * 2.0)
    assert double(3, np.ones(2, np.float32)).dtype == np.float32
    assert double(np.arange(2), np.ones(2)).dtype == np.float64


def test_integer_inputs_pass_through_untouched():
    seen = []

    @gb.primitive(audit="off")
    def look(i, flags, n, x):
        seen.extend([i.dtype, flags.dtype, type(n)])
        return x

    look(np.arange(2, dtype=np.int16), np.array([True]), 3, 1.0)
    assert seen == [np.int16, np.bool_, int]


def test_an_array_of_another_library_that_cannot_be_read_is_named_even_where_its_error_says_nothing(f):
    class Silent:
        def __array__(self, *args, **kwargs):
            raise RuntimeError

    for call in (lambda: f(f.params, Silent()), lambda: f(Silent(), X)):
        with pytest.raises(InputError, match=r"Silent that NumPy cannot read \(RuntimeError"):
            call()
