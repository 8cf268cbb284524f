"""Arrays that are more than their numbers: refused wherever they come in, never stripped."""

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad

import gradbridge as gb
from gradbridge.admission import as_array
from gradbridge.errors import InputError, OptionError, ParamsDtypeError

P, X = onp.array([1.0, 2.0, 3.0]), onp.array([0.5, -1.0, 2.0])
MASKED = onp.ma.array([1e9, 2.0, 3.0], mask=[True, False, False])


class Metres(onp.ndarray):
    """An array with a unit: it has a multiplication of its own."""

    def __mul__(self, other):
        return NotImplemented


METRES, MATRIX = X.view(Metres), X.reshape(1, 3).view(onp.matrix)
WORDS = {
    "masked": (MASKED, "1 of its 3 numbers are masked.* the masked ones, too; .*filled"),
    "unit": (METRES, "Metres, whose operations are not those of a NumPy array .* np.asarray"),
    "matrix": (MATRIX, "matrix, whose operations are not those of a NumPy array .* np.asarray"),
}


@pytest.fixture(params=["autograd", "numpy", "torch"])
def f(request):
    if request.param == "torch":
        pytest.importorskip("torch")
    rule = {"vjp": lambda ans, p, x: lambda v: v * x} if request.param == "numpy" else {}
    return gb.bridge(lambda p, x: p * x, params=P, backend=request.param, **rule)


@pytest.mark.parametrize("kind", WORDS)
def test_what_is_more_than_its_numbers_is_refused_at_every_way_in(f, kind, tmp_path):
    array, words = WORDS[kind]
    for call in (
        lambda: f(array, X),
        lambda: f({"params": array}, X),
        lambda: f(P, array),
        lambda: f(P, x=array),
        lambda: grad(lambda p: np.sum(f(p, array)))(P),
        lambda: f.jacobian(P, array),
        lambda: f.jacobian(array, X),
        lambda: f.vjp(P, X, cotangent=array),
        lambda: f.jvp(P, X, tangent=array),
        lambda: f.model(array),
        lambda: f.save(tmp_path / "p.safetensors", array),
        lambda: f.layout.ravel({"params": array}),
    ):
        with pytest.raises(InputError, match=words):
            call()


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("backend", ["autograd", "numpy", "torch", "jax", "tensorflow"])
def test_params_of_a_function_are_refused_by_their_names(kind, backend):
    pytest.importorskip(backend)
    array, words = WORDS[kind]
    with pytest.raises(InputError, match=f"parameter 'layers/1' of params= is a .*{words}"):
        gb.bridge(lambda p, x: x, params={"layers": [X, array]}, backend=backend)


@pytest.mark.parametrize("backend", ["autograd", "numpy", "torch", "jax", "tensorflow"])
@pytest.mark.parametrize(
    "leaf",
    ["1.5", b"2", onp.array(["1", "2"]), onp.array([1.0, None]), onp.array("2026-01-01", "M8[D]"),
     onp.zeros(2, [("a", float)])],
)  # fmt: skip
def test_params_of_text_dates_and_objects_are_refused_by_their_names(leaf, backend):
    pytest.importorskip(backend)
    with pytest.raises(OptionError, match="parameter 'b' of params= .*parameters are real floating arrays"):
        gb.bridge(lambda p, x: x, params={"a": 1.0, "b": leaf}, backend=backend)


@pytest.mark.parametrize("leaf", [True, 1j, onp.ones(2, complex), onp.ones(2, bool)])
def test_plain_functions_have_real_params(leaf):
    with pytest.raises(OptionError, match="parameter 'b' of params= has dtype"):
        gb.bridge(lambda p, x: x, params={"b": leaf}, backend="numpy")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (onp.array([1.0, None, 2.0]), "ragged list, or has missing values"),
        (onp.array(["2026-01-01"] * 3, "M8[D]"), "subtract a reference date and divide by a unit"),
        (onp.array([1, 2, 3], "m8[s]"), "divide them by a unit"),
        (onp.zeros(3, [("a", float), ("b", float)]), "take its fields one by one"),
    ],
)
def test_a_vector_of_params_says_what_to_do_with_its_dtype(f, params, words):
    with pytest.raises(ParamsDtypeError, match=words):
        f(params, X)


@pytest.mark.parametrize("backend", ["autograd", "numpy"])
@pytest.mark.parametrize("kind", WORDS)
def test_outputs_that_are_more_than_their_numbers_are_refused(kind, backend):
    array, words = WORDS[kind]
    f = gb.bridge(lambda p, x: (x, array), params=P, backend=backend)
    with pytest.raises(InputError, match=words):
        f(P, X)


def test_gradients_of_written_rules_are_refused_likewise():
    f = gb.primitive(lambda x: x**2)
    f.defvjp(lambda ans, x: lambda v: onp.ma.masked_less(2 * x * v, 0))
    with pytest.raises(
        InputError, match=r"what the VJP of <lambda> for argument 0 returned is a masked array"
    ):
        grad(lambda x: np.sum(f(x)))(X)


def test_what_is_its_numbers_goes_through(f, tmp_path):
    onp.save(tmp_path / "x.npy", X)
    for array in (
        onp.ma.array(X),  # of which nothing is masked
        onp.load(tmp_path / "x.npy", mmap_mode="r"),
        X.view(onp.recarray),
        X.tolist(),
    ):
        onp.testing.assert_array_equal(f(P, array), P * X)
        onp.testing.assert_array_equal(f(array, P), P * X)
        assert type(as_array(array, "x")) is onp.ndarray
