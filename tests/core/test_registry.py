"""Plugins: taken in one by one, named when they are broken, and never in each other's way."""

import importlib.metadata
import sys
import types

import numpy as np
import pytest

import gradbridge as gb
from gradbridge.errors import (
    BackendUnavailableError,
    PluginError,
    UnknownBackendError,
    UnknownModelError,
)
from gradbridge.hookspecs import hookimpl
from gradbridge.registry import Backend, Registry


def energy(p, x):
    return p["w"] * x


class Energy:
    def __call__(self, p, x):
        return energy(p, x)


class Squares:
    """A class whose constructor is the function."""

    def __init__(self, p, x):
        self.value = energy(p, x)


def entry(name, value):
    return importlib.metadata.EntryPoint(name, value, "gradbridge")


@pytest.fixture
def module(monkeypatch):
    """Make an importable module from functions, as an installed plugin would be."""

    def make(name, **functions):
        made = types.ModuleType(name)
        for key, function in functions.items():
            setattr(made, key, function)
        monkeypatch.setitem(sys.modules, name, made)
        return name

    return make


def declaring(**fields):
    def gradbridge_backend():
        return Backend(**fields)

    return hookimpl(gradbridge_backend)


def registry(*names):
    return Registry([entry("numpy", "gradbridge_numpy"), *[entry(n, n) for n in names]])


def test_first_party_backends_come_in_by_the_entry_points():
    found = gb.backends()
    assert {"autograd", "numpy", "torch"} <= set(found)
    assert found["numpy"].roles == ("guest",)
    assert found["numpy"].available
    assert found["autograd"].version == importlib.metadata.version("autograd")


def test_a_misspelt_name_gets_the_nearest_one():
    with pytest.raises(UnknownBackendError, match="no backend 'nunpy'; did you mean 'numpy'"):
        registry().backend("nunpy")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("keras", "tensorflow"),
        ("Keras", "tensorflow"),
        ("TF", "tensorflow"),
        ("PyTorch", "torch"),
        ("JAX", "jax"),
        ("NumPy", "numpy"),
        ("autograd ", "autograd"),
    ],
)
def test_a_backend_is_known_by_its_other_names_too_in_any_case(asked, meant):
    assert gb.default_registry().backend(asked).name == meant


def test_what_is_made_under_another_name_is_the_same(module):
    x = np.linspace(-1, 1, 12).reshape(4, 3)
    ours = gb.bridge(
        gb.build("mlp", sizes=[3, 4, 2], backend="NUMPY", seed=3), backend="NumPy", host="Autograd"
    )
    plain = gb.bridge(gb.build("mlp", sizes=[3, 4, 2], backend="numpy", seed=3))
    np.testing.assert_array_equal(ours(ours.params, x), plain(plain.params, x))
    assert "host autograd" in repr(ours)
    assert gb.primitive(lambda a: 2 * a, backend="Numpy")(3.0) == 6.0


@pytest.mark.parametrize(
    "asks", [lambda: gb.build("mlp", sizes=[2, 1]), lambda: gb.bridge(energy, params={"w": np.ones(2)})]
)
def test_an_unknown_name_in_the_environment_is_told_to_be_from_there(monkeypatch, asks):
    monkeypatch.setenv("GRADBRIDGE_BACKEND", "nunpy")
    said = "environment variable GRADBRIDGE_BACKEND is 'nunpy', and there is no backend 'nunpy'; did you mean 'numpy'"
    with pytest.raises(UnknownBackendError, match=said):
        asks()


def test_another_name_works_in_the_environment(monkeypatch):
    monkeypatch.setenv("GRADBRIDGE_BACKEND", "NumPy")
    assert type(gb.build("mlp", sizes=[2, 1])).__module__.startswith("gradbridge_numpy")


def test_a_misspelt_other_name_gets_the_nearest_one():
    with pytest.raises(UnknownBackendError, match="no backend 'KERSA'; did you mean 'keras'"):
        gb.default_registry().backend("KERSA")
    with pytest.raises(UnknownBackendError, match="no backend 'pytroch'; did you mean 'pytorch'"):
        gb.default_registry().backend("pytroch")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("nunpy", r"there is no backend 'nunpy'; did you mean 'numpy'\? installed: .*numpy"),
        ("keras", "'keras' is another name of backend 'tensorflow'"),
    ],
)
def test_the_list_of_backends_answers_a_key_that_it_has_not_with_the_nearest(key, said):
    infos = gb.backends()
    with pytest.raises(KeyError, match=said) as caught:
        infos[key]
    assert isinstance(caught.value, UnknownBackendError)
    assert key not in infos
    assert infos.get(key) is None
    assert {**infos}["numpy"] is infos["numpy"]


def test_other_names_of_ours_go_before_those_of_others_and_names_before_other_names(module):
    for name, aliases in {"mine": ("plain", "ours"), "yours": ("PLAIN",), "ours": ()}.items():
        module(name, gradbridge_backend=declaring(name=name, guest="x:y", aliases=aliases))
    known = registry("mine", "yours", "ours")
    assert known.backend("ours").name == "ours"
    with pytest.raises(
        UnknownBackendError, match="'plain' may be one of the backends mine, yours; say which"
    ):
        known.backend("plain")


def test_other_names_that_are_no_text_are_a_fault_of_the_plugin(module):
    name = module("odd", gradbridge_backend=declaring(name="odd", guest="x:y", aliases="odds"))
    assert "aliases must be a tuple of names, got 'odds'" in registry(name).problems["odd"]


def test_a_host_that_is_only_a_guest_is_refused():
    with pytest.raises(UnknownBackendError, match="'numpy' is not a host; those that are: "):
        registry().host("numpy")


def test_a_model_of_an_unknown_class_is_refused_with_what_to_do():
    with pytest.raises(
        UnknownModelError, match=r"recognises an int \(builtins\.int\); name one with backend="
    ):
        gb.bridge(3)


def test_a_function_without_a_backend_is_told_about_primitive():
    with pytest.raises(
        UnknownModelError,
        match=r"recognises the function energy, .* for a function of arrays alone use gradbridge\.primitive\(backend=…\)",
    ):
        gb.bridge(energy)


def test_a_function_with_params_and_without_a_backend_is_not_told_to_give_params():
    with pytest.raises(
        UnknownModelError, match="name that framework with backend=…, one of .*numpy"
    ) as error:
        gb.bridge(energy, params={"w": np.ones(2)})
    assert "params=" not in str(error.value)


def test_a_callable_object_without_a_backend_is_named_by_its_class():
    with pytest.raises(
        UnknownModelError, match=r"recognises an Energy \(.*Energy\), .* use gradbridge\.primitive"
    ):
        gb.bridge(Energy())


@pytest.mark.parametrize("backend", [None, "numpy"])
def test_a_class_in_place_of_a_model_is_told_so(backend):
    kind = type(gb.build("linear", 2, backend="numpy"))
    with pytest.raises(UnknownModelError, match=r"got the class (\w+); make an instance of it, \1\(…\)"):
        gb.bridge(kind, backend=backend)


def test_a_class_in_place_of_a_model_is_told_so_where_the_environment_names_the_backend(monkeypatch):
    monkeypatch.setenv("GRADBRIDGE_BACKEND", "numpy")
    with pytest.raises(UnknownModelError, match="got the class"):
        gb.bridge(type(gb.build("linear", 2, backend="numpy")))


def test_a_class_that_no_backend_claims_may_still_be_a_function():
    f = gb.bridge(Squares, backend="numpy", params={"w": np.ones(2)})
    assert f.layout.names == ("w",)
    with pytest.raises(UnknownModelError, match="recognises the class Squares"):
        gb.bridge(Squares)


def test_the_environment_names_the_backend_of_a_function(monkeypatch):
    monkeypatch.setenv("GRADBRIDGE_BACKEND", "numpy")
    f = gb.bridge(lambda p, x: p * x, params=np.ones(2))
    assert np.array_equal(f(f.params, np.array([2.0, 3.0])), [2, 3])


def test_a_plugin_that_raises_on_import_is_named_and_stops_nobody(tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('no luck')")
    monkeypatch.syspath_prepend(tmp_path)
    found = registry("broken_plugin")
    assert found.backend("numpy").name == "numpy"
    assert "'broken_plugin'" in found.problems["broken_plugin"]
    assert "RuntimeError: no luck" in found.problems["broken_plugin"]
    assert found.infos()["broken_plugin"].reason == found.problems["broken_plugin"]
    with pytest.raises(UnknownBackendError, match="no luck"):
        found.backend("broken_plugin")


def test_a_misspelt_hook_is_named_with_the_right_one(module):
    name = module("misspelt", gradbridge_bakend=hookimpl(lambda: None))
    assert "did you mean gradbridge_backend" in registry(name).problems[name]


def test_a_hook_with_a_wrong_argument_is_named(module):
    def gradbridge_forward(stepp): ...

    name = module("wrong_argument", gradbridge_forward=hookimpl(gradbridge_forward))
    problem = registry(name).problems[name]
    assert "gradbridge_forward" in problem
    assert "stepp" in problem


def test_a_taken_name_stays_with_its_first_owner(module):
    name = module("claims_numpy", gradbridge_backend=declaring(name="numpy", guest="x:y"))
    found = registry(name)
    assert "claims the backend name 'numpy'" in found.problems[name]
    assert found.backend("numpy").guest == "gradbridge_numpy.guest:adapt"


def test_a_plugin_that_declares_something_else_is_named(module):
    name = module("declares_int", gradbridge_backend=hookimpl(lambda: 3))
    assert "must return a gradbridge.registry.Backend, got int" in registry(name).problems[name]


def test_a_plugin_of_another_protocol_is_named(module):
    name = module("from_the_future", gradbridge_backend=declaring(name="future", protocol=99))
    assert "adapter protocol 99" in registry(name).problems[name]


def test_a_backend_whose_framework_is_missing_says_how_to_install_it(module):
    declared = declaring(
        name="nowhere", framework=("no_such_framework", "nsf"), install="pip install nsf", guest="a:b"
    )
    found = registry(module("nowhere", gradbridge_backend=declared))
    with pytest.raises(BackendUnavailableError, match="is not installed; install it with: pip install nsf"):
        found.guest("nowhere")
    info = found.infos()["nowhere"]
    assert not info.installed
    assert not info.available
    assert "pip install nsf" in info.reason


def test_a_backend_whose_framework_breaks_on_import_is_listed_with_the_reason(module, tmp_path, monkeypatch):
    (tmp_path / "breaking_framework.py").write_text("raise OSError('libfoo.so: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    declared = declaring(name="breaking", framework=("breaking_framework", "bf"), guest="a:b")
    found = registry(module("breaking", gradbridge_backend=declared))
    assert found.infos()["breaking"].installed
    assert "OSError: libfoo.so" in found.infos()["breaking"].reason
    with pytest.raises(ImportError):
        found.guest("breaking")


def test_a_plugin_registered_by_hand_serves_at_once():
    class Plugin:
        @hookimpl
        def gradbridge_backend(self):
            return Backend(name="mine", guest="gradbridge_numpy.guest:adapt")

    found = registry()
    found.register(Plugin())
    assert found.names() == ["mine", "numpy"]


def test_registering_a_broken_plugin_by_hand_raises():
    class Plugin:
        @hookimpl
        def gradbridge_bacend(self): ...

    with pytest.raises(PluginError, match="gradbridge_backend"):
        registry().register(Plugin())


def test_a_subclass_is_recognised_by_its_mro():
    class Framework: ...

    Framework.__module__ = "made_up"
    Framework.__qualname__ = "Model"

    class UsersOwn(Framework): ...

    class Plugin:
        @hookimpl
        def gradbridge_backend(self):
            return Backend(name="made_up", guest="a:b", models=("made_up.Model",))

    found = registry()
    found.register(Plugin())
    assert found.match(UsersOwn()) == "made_up"


def test_the_line_that_installs_a_framework_is_printed_whole(monkeypatch, module):
    from click.testing import CliRunner

    from gradbridge import cli

    declared = declaring(
        name="nowhere", framework=("no_such_framework", "n"), install='pip install "a[b]"', guest="x:y"
    )
    found = registry(module("nowhere_cli", gradbridge_backend=declared))
    monkeypatch.setattr(cli.gradbridge, "backends", found.infos)
    monkeypatch.setenv("COLUMNS", "400")
    assert 'pip install "a[b]"' in CliRunner().invoke(cli.cli, ["backends"]).output


@pytest.mark.parametrize("backend", ["jax", "numpy", "keras"])
def test_a_model_of_another_framework_is_refused_by_a_backend_of_ours(backend):
    torch = pytest.importorskip("torch")
    if not gb.backends()["tensorflow" if backend == "keras" else backend].available:
        pytest.skip(f"{backend} is not installed")
    with pytest.raises(UnknownModelError, match="a Linear is a model of torch, and backend="):
        gb.bridge(torch.nn.Linear(3, 1), backend=backend)
    assert gb.bridge(torch.nn.Linear(3, 1), backend="pytorch").layout.size == 4
