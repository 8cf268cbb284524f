"""Names and classes that two backends claim, and halves that are none: told, and nobody's models go elsewhere in silence."""

import importlib.metadata
import sys
import warnings

import numpy as np
import pytest
from click.testing import CliRunner

import gradbridge as gb
from gradbridge import cli
from gradbridge.errors import (
    BackendUnavailableError,
    GradbridgeWarning,
    PluginError,
    UnknownModelError,
)
from gradbridge.hookspecs import hookimpl
from gradbridge.registry import Backend, Registry

OWN = [importlib.metadata.EntryPoint(n, f"gradbridge_{n}", "gradbridge") for n in ("autograd", "numpy")]


def declares(**fields):
    return hookimpl(lambda: Backend(**fields), specname="gradbridge_backend")


class Framework: ...


Framework.__module__, Framework.__qualname__ = "made_up.base", "Model"


def subclass(name, *bases):
    return type(name, bases, {"__module__": name.rpartition(".")[0], "__qualname__": name.rpartition(".")[2]})


@pytest.mark.parametrize("first", [True, False])
def test_a_name_of_ours_stays_ours_whoever_is_found_first(plugin, first):
    thief = plugin("thief", f=declares(name="numpy", guest="thief:adapt"))
    known = Registry([thief, *OWN] if first else [*OWN, thief])
    assert known.backend("numpy").guest == "gradbridge_numpy.guest:adapt"
    assert "claims the backend name 'numpy'" in known.problems["thief"]
    assert known.infos()["thief"].package == "thief"


def test_the_loser_is_listed_even_where_its_entry_point_has_the_name_too(plugin, monkeypatch):
    plugin("thief", f=declares(name="numpy", guest="thief:adapt"))
    known = Registry([importlib.metadata.EntryPoint("numpy", "thief", "gradbridge"), *OWN])
    infos = known.infos()
    assert infos["numpy"].available
    assert "claims the backend name 'numpy'" in infos["numpy (thief)"].reason
    monkeypatch.setattr(cli.gradbridge, "backends", known.infos)
    monkeypatch.setenv("COLUMNS", "300")
    assert "it stays with" in CliRunner().invoke(cli.cli, ["backends"]).output


def test_who_is_registered_by_hand_before_anything_was_asked_takes_no_name_either():
    class Thief:
        gradbridge_backend = staticmethod(declares(name="numpy", guest="thief:adapt"))

    known = Registry(OWN)
    with pytest.raises(PluginError, match="claims the backend name 'numpy'"):
        known.register(Thief())
    assert known.backend("numpy").guest == "gradbridge_numpy.guest:adapt"


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "claimed", ["gradbridge_numpy.architectures.Network", "gradbridge_numpy.architectures.Deep"]
)
def test_models_of_ours_stay_ours_and_who_claims_them_is_told(plugin, first, claimed):
    greedy = plugin("greedy", f=declares(name="greedy", guest="greedy:adapt", models=(claimed,)))
    known = Registry([greedy, *OWN] if first else [*OWN, greedy])
    network = type(gb.build("linear", 2, backend="numpy"))
    model = subclass("gradbridge_numpy.architectures.Deep", network).__new__(network)
    model.__class__ = subclass("gradbridge_numpy.architectures.Deep", network)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert [known.match(model), known.match(model)] == ["numpy", "numpy"]
    assert len(said) == claimed.endswith(
        "Deep"
    )  # a class that we do not name shows itself with a model of it
    assert all("plugin 'greedy'" in str(one.message) for one in said)
    assert "they stay there" in known.problems["greedy"]
    assert "they stay there" in known.infos()["greedy"].note
    assert known.backend("greedy").name == "greedy"


def test_a_library_on_top_of_a_framework_of_ours_may_have_its_own_backend(plugin):
    layered = plugin("layered", f=declares(name="layered", guest="a:b", models=("layered.nn.Base",)))
    known = Registry([*OWN, layered])
    base = subclass("layered.nn.Base", type(gb.build("linear", 2, backend="numpy")))
    assert known.match(object.__new__(subclass("users.Net", base))) == "layered"
    assert known.problems == {}


def test_a_class_beside_that_of_a_framework_of_ours_takes_no_model_from_it(plugin):
    mixed = plugin("mixed", f=declares(name="mixed", guest="a:b", models=("mixed.Base",)))
    known = Registry([*OWN, mixed])
    network, base = type(gb.build("linear", 2, backend="numpy")), subclass("mixed.Base", object)
    assert known.match(base()) == "mixed"
    with pytest.warns(GradbridgeWarning, match="plugin 'mixed'.*claims mixed.Base"):
        assert known.match(object.__new__(subclass("users.Net", base, network))) == "numpy"
    assert "claims mixed.Base" in known.problems["mixed"]


@pytest.mark.parametrize("first", [True, False])
def test_two_others_that_claim_one_class_are_named_and_nobody_gets_it_unasked(plugin, monkeypatch, first):
    points = [plugin(n, f=declares(name=n, guest=f"{n}:adapt", models=("made_up.base.Model",))) for n in "ab"]
    known = Registry([*OWN, *(points if first else reversed(points))])
    with pytest.raises(
        UnknownModelError, match="'a' of package 'a' and 'b' of package 'b' both claim.*backend="
    ):
        gb.bridge(Framework(), registry=known)
    assert set(known.problems) == {"a", "b"}
    monkeypatch.setenv("GRADBRIDGE_BACKEND", "b")
    with pytest.raises(BackendUnavailableError, match="backend 'b' of package 'b'"):
        gb.bridge(Framework(), registry=known)


@pytest.mark.parametrize(
    ("half", "said"),
    [
        (lambda: 3, "is not a gradbridge.host.Host: calling it gives an int"),
        (dict, "is not a gradbridge.host.Host"),
        ("text", "cannot be called: it is a str"),
        (gb.registry.Host, "cannot be made: TypeError"),
        (lambda: sys.exit("bye"), "cannot be made: SystemExit: bye"),
    ],
)
def test_a_host_half_that_is_none_is_named_with_its_package(plugin, half, said):
    point = plugin("hosting", f=declares(name="hosting", host="hosting:half"), half=half)
    known = Registry([*OWN, point])
    with pytest.raises(PluginError, match="of package 'hosting', hosting:half") as caught:
        gb.bridge(lambda p: p, params=np.ones(1), backend="numpy", host="hosting", registry=known)
    assert said in str(caught.value)
    assert known.infos()["hosting"].reason == str(caught.value)


class Half(gb.Adapter):
    label = "Half"
    layout = ((2,),)
    weights = model = update = forward = backward = None


@pytest.mark.parametrize(
    ("adapt", "said"),
    [
        (
            lambda model, options: None,
            "returned None for a Framework, and should return a gradbridge.Adapter",
        ),
        (lambda model, options: gb.Adapter, "returned the class Adapter"),
        (lambda model, options: sys.exit("no licence"), "asked to exit: no licence"),
        (
            lambda model, options: Half(),
            "an Adapter whose layout is a tuple, and should be a ParameterLayout",
        ),
    ],
)
def test_a_guest_half_that_returns_no_adapter_is_named_with_its_package(plugin, adapt, said):
    point = plugin("guesting", f=declares(name="guesting", guest="guesting:adapt"), adapt=adapt)
    known = Registry([*OWN, point])
    with pytest.raises(PluginError, match="of package 'guesting'") as caught:
        gb.bridge(Framework(), backend="guesting", registry=known)
    assert said in str(caught.value)
    with pytest.raises(PluginError):
        gb.primitive(backend="guesting", registry=known)(lambda x: x)


def test_a_builder_that_returns_nothing_is_named(plugin):
    point = plugin("building", f=declares(name="building", builder="building:b"), b=lambda *a: None)
    with pytest.raises(PluginError, match="of package 'building'.*returned None for 'linear'"):
        gb.build("linear", 2, backend="building", registry=Registry([*OWN, point]))


@pytest.mark.parametrize("where", ["half", "framework"])
def test_a_half_or_a_framework_that_exits_when_it_is_imported_is_unavailable(plugin, imported, where):
    imported("exiting", "raise SystemExit('not here')")
    fields = (
        {"guest": "exiting:a"} if where == "half" else {"guest": "math:sin", "framework": ("exiting", "e")}
    )
    known = Registry([*OWN, plugin("lazy", f=declares(name="lazy", install="pip install e", **fields))])
    assert "does not import: SystemExit: not here" in known.infos()["lazy"].reason
    with pytest.raises(BackendUnavailableError):
        known.guest("lazy")


@pytest.mark.parametrize("carrier", ["made_up_framework_cpu", "made_up_framework_nightly"])
def test_the_version_of_a_framework_is_that_of_whatever_brings_it(plugin, imported, tmp_path, carrier):
    imported("made_up_framework", "")
    folder = tmp_path / f"{carrier}-1.5.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {carrier}\nVersion: 1.5\n")
    (folder / "top_level.txt").write_text("made_up_framework\n")
    framework = ("made_up_framework", "made_up_framework")
    known = Registry([*OWN, plugin("framed", f=declares(name="framed", guest="a:b", framework=framework))])
    assert known.infos()["framed"].version == "1.5"


def test_a_framework_without_a_distribution_is_of_unknown_version(plugin, imported):
    imported("bare_framework", "")
    framework = ("bare_framework", "bare_framework")
    known = Registry([*OWN, plugin("framed", f=declares(name="framed", guest="a:b", framework=framework))])
    assert known.infos()["framed"].version == "unknown"
    assert known.infos()["numpy"].version is None
