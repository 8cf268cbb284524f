"""Options of the wrong type are refused with their name, whatever it is that came."""

import copy
import inspect
import pickle

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad

import gradbridge as gb
from gradbridge.errors import BackendError, OptionError
from gradbridge.options import BRIDGE_OPTIONS
from gradbridge.registry import Registry

ODD = [
    [],
    {},
    {"a": [1]},
    np.array(["eval", "train"]),
    np.ones((2, 2)),
    np.array(1.0),
    1.5,
    object(),
    b"eval",
    lambda: None,
    float("nan"),
    (1.5,),
]


def line(p, x):
    return x @ p


def bridge(**options):
    options = {"params": np.ones(3), "backend": "autograd"} | options
    return gb.bridge(line, **options)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            lambda: gb.bridge(line, params=np.ones(3), bakend="numpy"),
            "bridge has no option 'bakend'; did you mean 'backend'",
        ),
        (
            lambda: bridge(outptus=((), "float64")),
            "'autograd' has no option 'outptus'; did you mean 'outputs'",
        ),
        (lambda: gb.primitive(gradent="numeric")(np.sin), "no option 'gradent'; did you mean 'gradient'"),
    ],
    ids=["where it says the backend", "bridge", "primitive"],
)
def test_a_misspelt_option_is_told_the_nearest_name(made, said):
    with pytest.raises(OptionError, match=said):
        made()


def test_every_option_of_bridge_may_be_the_nearest_name():
    kinds = inspect.signature(gb.bridge).parameters
    assert set(BRIDGE_OPTIONS) == {name for name, one in kinds.items() if one.kind is one.KEYWORD_ONLY}


@pytest.mark.parametrize("value", ODD, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize(
    "option",
    [
        *(
            "backend",
            "host",
            "dtype",
            "device",
            "mode",
            "seed",
            "noise",
            "check_finite",
            "reuse",
            "rows_per_chunk",
        ),
        *("audit", "registry", "no_such_option"),
    ],
)
def test_an_option_of_bridge_takes_nothing_odd(option, value):
    with pytest.raises((OptionError, BackendError), match=option):
        bridge(**{option: value})


@pytest.mark.parametrize("value", ODD, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("option", ["backend", "host", "dtype", "device", "registry"])
def test_an_option_of_primitive_takes_nothing_odd(option, value):
    with pytest.raises((OptionError, BackendError), match=option):
        gb.primitive(**{option: value})(lambda x: x)


@pytest.mark.parametrize("value", [v for v in ODD if not callable(v)], ids=lambda v: type(v).__name__)
def test_what_names_no_argument_and_no_shape_is_refused(value):
    empty = isinstance(value, list) and not value  # no argument is constant
    if not empty:
        with pytest.raises(OptionError, match="nondiff"):
            bridge(nondiff=value)
    if not hasattr(value, "shape") and value not in ([], {}):  # an array is an example of an output
        with pytest.raises(OptionError, match="outputs= of line must name shapes"):
            bridge(outputs=value)


@pytest.mark.parametrize("value", ODD, ids=lambda v: type(v).__name__)
def test_an_option_of_build_and_trace_takes_nothing_odd(value):
    for option in ("backend", "seed", "registry"):
        with pytest.raises((OptionError, BackendError), match=option):
            gb.build("linear", 2, **{"backend": "numpy", option: value})
    with pytest.raises(OptionError, match="name must be a name"):
        gb.build(value)
    with pytest.raises(OptionError, match="activation"):
        gb.build("mlp", [2, 1], activation=value)
    with pytest.raises(OptionError, match="registry"), gb.trace(value):
        pass


@pytest.mark.parametrize("value", ODD, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("method", ["jacobian", "row_gradients"])
def test_an_option_of_a_jacobian_takes_nothing_odd(method, value):
    f = bridge()
    for option in ("strategy", "max_chunk"):
        with pytest.raises(OptionError, match=option):
            getattr(f, method)(np.ones(3), np.ones((2, 3)), **{option: value})
    with pytest.raises(OptionError, match="wrt"):
        f.jacobian(np.ones(3), np.ones((2, 3)), wrt=value)


@pytest.mark.parametrize("value", ODD, ids=lambda v: type(v).__name__)
def test_names_of_load_are_compared_or_not(tmp_path, value):
    f = bridge()
    f.save(tmp_path / "p", np.ones(3))
    with pytest.raises(OptionError, match="names must be True or False"):
        f.load(tmp_path / "p", names=value)


@pytest.mark.parametrize(
    "nondiff", [np.array([1]), np.array(1), range(1, 2), {1}, np.array(["x"]), [np.int64(1)]]
)
def test_positions_in_an_array_are_positions(nondiff):
    f, x = bridge(nondiff=nondiff), np.arange(6.0).reshape(2, 3)
    assert not grad(lambda x: anp.sum(f(np.ones(3), x)))(x).any()
    assert np.array_equal(grad(lambda p: anp.sum(f(p, x)))(np.ones(3)), x.sum(0))


def test_values_of_numpy_are_as_good_as_those_of_python():
    f = bridge(seed=np.int64(3), reuse=np.int8(2), check_finite=np.bool_(True), mode=np.str_("eval"))
    assert np.array_equal(f(np.ones(3), np.ones((2, 3))), [3.0, 3.0])


def test_the_scalar_types_of_jax_are_dtypes():
    jnp = pytest.importorskip("jax.numpy")
    f = gb.bridge(lambda p, x: p * x, params=np.ones(2), backend="jax", dtype=jnp.float64)
    assert f.layout.dtypes == ("float64",)


def test_row_gradients_look_at_the_shape_before_anything_is_computed():
    f = gb.bridge(lambda p, x: p * x, params=np.ones(3), backend="autograd", audit="off")
    with gb.trace() as t, pytest.raises(OptionError, match=r"one number per row, .* returned \(2, 3\)"):
        f.row_gradients(np.ones(3), np.ones((2, 3)))
    assert t.counts["backward"] == 0
    assert np.array_equal(bridge().row_gradients(np.ones(3), np.eye(3)[:2], strategy="loop"), np.eye(3)[:2])


def test_a_copy_of_a_bridge_keeps_its_registry_and_its_noise():
    known = Registry()
    f = gb.bridge(line, params=np.ones(3), backend="autograd", registry=known, mode="train", noise="per_call")
    f(np.ones(3), np.ones((2, 3)))
    for twin in (copy.copy(f), copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        assert np.array_equal(twin(np.ones(3), np.ones((2, 3))), [3.0, 3.0])
    with gb.trace(known) as t:
        copy.deepcopy(f)(np.ones(3), np.ones((2, 3)))
    assert t.counts["forward"] == 1


@pytest.mark.parametrize("value", ODD, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize(
    ("backend", "option"),
    [
        ("numpy", "gradient"),
        ("numpy", "order"),
        ("numpy", "step"),
        *(("jax", o) for o in ("jit", "vmap", "key")),
    ],
)
def test_an_option_of_one_backend_takes_nothing_odd(backend, option, value):
    pytest.importorskip(backend)
    numeric = {"gradient": "numeric"} if option in ("order", "step") else {}
    if option == "step" and isinstance(value, float) and value > 0:
        return
    with pytest.raises(OptionError, match=f"{option} must be"):
        bridge(backend=backend, **{**numeric, option: value})


def test_a_function_of_shapes_that_asks_for_numbers_is_told_what_it_is_given():
    f = bridge(outputs=lambda x: x.T)
    with pytest.raises(
        OptionError, match=r"outputs= of line is raised AttributeError.*an ArraySpec, with shape and dtype"
    ):
        f.output_spec(np.ones(3))
