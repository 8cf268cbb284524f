"""What is wrong with a plugin is told with its name and package; everything else goes on."""

import copy
import functools
import importlib.metadata
import pickle
import signal
import sys
import types

import click
import pytest

from gradbridge import cli
from gradbridge.errors import (
    PluginError,
    UnknownBackendError,
    UnknownModelError,
)
from gradbridge.hookspecs import hookimpl
from gradbridge.registry import Backend, Registry, default_registry

OWN = [importlib.metadata.EntryPoint(n, f"gradbridge_{n}", "gradbridge") for n in ("autograd", "numpy")]


def declares(**fields):
    return hookimpl(lambda: Backend(**fields), specname="gradbridge_backend")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
        ("raise KeyboardInterrupt('mine')", "KeyboardInterrupt: mine"),
        ("class Stop(BaseException): ...\nraise Stop('here')", "Stop: here"),
        ("def broken(:", "SyntaxError"),
        ("import no_such_module_at_all", "ModuleNotFoundError"),
    ],
)
def test_whatever_an_import_raises_is_a_problem_of_that_plugin_alone(imported, code, said):
    known = Registry([imported("leaving", code), *OWN])
    assert known.names() == ["autograd", "numpy"]
    assert said in known.problems["leaving"]
    assert "plugin 'leaving' of package 'leaving'" in known.infos()["leaving"].reason


def test_the_users_interrupt_passes_and_loading_goes_on_with_the_same_plugin(imported, monkeypatch):
    code = "import signal, sys\nif not hasattr(sys, '_asked'):\n    sys._asked = 1\n    signal.raise_signal(signal.SIGINT)\n"
    declared = "from gradbridge.extend import *\n@hookimpl\ndef gradbridge_backend(): return Backend(name='slow', guest='a:b')"
    monkeypatch.delattr(sys, "_asked", raising=False)
    known = Registry([*OWN, imported("slow_plugin", code + declared)])
    own = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            known.names()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, own)
    assert known.names() == ["autograd", "numpy", "slow"]
    assert known.problems == {}
    del sys._asked


def test_a_plugin_that_asks_for_the_others_while_it_is_imported_gets_them(imported):
    code = "import gradbridge_test_registry as r\nr.seen = r.known.names()\n"
    known = Registry([*OWN, imported("asking", code)])
    sys.modules["gradbridge_test_registry"] = holder = types.ModuleType("holder")
    holder.known = known
    try:
        known.names()
    finally:
        del sys.modules["gradbridge_test_registry"]
    assert holder.seen == ["autograd", "numpy"]


def test_entry_points_that_cannot_be_read_are_named_and_the_others_are_there(tmp_path, monkeypatch):
    folder = tmp_path / "damaged-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: damaged\nVersion: 1\n")
    (folder / "entry_points.txt").write_text("[gradbridge]\nneither a name nor a value\n")
    monkeypatch.syspath_prepend(tmp_path)
    known = Registry()
    assert {"autograd", "numpy"} <= set(known.names())
    assert any("damaged-1.dist-info" in text for text in known.problems.values())


def forward(step): ...


class Forward:
    @hookimpl
    def gradbridge_forward(self, step): ...


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        ({"gradbridge_forward": forward}, "gradbridge_forward without the mark of a hook"),
        ({"gradbridge_forward": hookimpl(functools.partial(forward))}, "by a partial, not a function"),
        (
            {"gradbridge_forward": hookimpl(lambda step: (yield), wrapper=True)},
            "hooks of gradbridge are not wrapped",
        ),
        ({"gradbridge_forward": hookimpl(lambda steps: None)}, "steps"),
        (
            {"other": hookimpl(lambda: None, specname="gradbridge_forwards")},
            "did you mean gradbridge_forward",
        ),
        ({"unrelated": forward}, "implements no hook"),
        (
            {"gradbridge_backend": hookimpl(lambda: None)},
            "must return a gradbridge.registry.Backend, got NoneType",
        ),
        ({"gradbridge_backend": hookimpl(lambda: sys.exit("no"))}, "SystemExit: no"),
    ],
)
def test_a_hook_that_cannot_be_called_as_one_is_named(plugin, functions, said):
    known = Registry([*OWN, plugin("unhooked", **functions)])
    assert known.names() == ["autograd", "numpy"]
    assert "plugin 'unhooked' of package 'unhooked'" in known.problems["unhooked"]
    assert said in known.problems["unhooked"]


class Subclass(Backend):
    @property
    def protocol(self):
        raise RuntimeError("no version")


class Unequal(str):
    def __hash__(self):
        raise RuntimeError("no hash")


@pytest.mark.parametrize("made", [lambda: object.__new__(Subclass), lambda: Backend(name=Unequal("x"))])
def test_a_declaration_that_raises_when_it_is_looked_at_stops_nobody(plugin, made):
    known = Registry([*OWN, plugin("raising", f=hookimpl(made, specname="gradbridge_backend"))])
    assert known.names() == ["autograd", "numpy"]
    assert "plugin 'raising' of package 'raising'" in known.problems["raising"]


def test_a_class_in_place_of_its_object_is_refused():
    with pytest.raises(PluginError, match="is a class.*register one of these"):
        Registry(OWN).register(Forward)


def test_a_hook_may_have_another_name(plugin):
    known = Registry([*OWN, plugin("renamed", declare=declares(name="renamed", guest="a:b"))])
    assert "renamed" in known.names()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": 3}, "name must be a string"),
        ({"name": ""}, "name must be a string"),
        ({"name": None}, "name must be a string"),
        ({"name": ["x"]}, "name must be a string"),
        ({"framework": "torch"}, "framework is not the names"),
        ({"framework": ("torch",)}, "framework is not the names"),
        ({"install": None}, "install must be a string, got"),
        ({"guest": "module_alone"}, "guest is not written 'module:name'"),
        ({"host": 3}, "host is not written 'module:name'"),
        ({"models": "torch.nn.Module"}, "models must be a tuple of qualified names of classes, got"),
        ({"models": (int,)}, "models must be a tuple of qualified names of classes, got"),
        ({"models": ("builtins.object",)}, "no class of a framework"),
        ({"models": ("typing.Generic",)}, "no class of a framework"),
    ],
)
def test_a_declaration_whose_fields_are_no_such_thing_is_named(plugin, fields, said):
    known = Registry([*OWN, plugin("declaring", f=declares(**{"name": "mine", "guest": "a:b", **fields}))])
    assert said in known.problems["declaring"]
    assert known.names() == ["autograd", "numpy"]
    with pytest.raises(UnknownBackendError, match="no backend 'nunpy'; did you mean 'numpy'"):
        known.backend("nunpy")
    with pytest.raises(UnknownModelError):
        known.match(3)


def adds(*names):
    @hookimpl
    def gradbridge_commands(cli):
        for name in names:
            cli.add_command(click.Command(f"{name} of a plugin"), name)

    return gradbridge_commands


def test_commands_that_there_are_stay_and_the_plugin_is_named(plugin, capsys):
    def clears(cli):
        cli.commands.clear()
        raise SystemExit("no")

    points = [
        plugin("taking", gradbridge_commands=adds("backends", "new")),
        plugin("taking_too", gradbridge_commands=adds("new")),
        plugin("exiting", gradbridge_commands=hookimpl(clears)),
        plugin("numbering", gradbridge_commands=adds(3)),
    ]
    known = Registry([*OWN, *points])
    commands = cli._plugin_commands(known)
    assert list(commands) == ["new"]
    told = capsys.readouterr().err
    assert "plugin 'taking' of package 'taking' adds a command 'backends', which there is already" in told
    assert "adds a command 'new'" in told
    assert "SystemExit: no" in known.problems["exiting"]
    assert "adds 3, which is not a command with a name" in known.problems["numbering"]
    assert known.infos()["taking"].reason == known.problems["taking"]


def test_a_copy_of_a_registry_is_itself_and_a_pickled_one_the_process_s():
    known = Registry(OWN)
    assert copy.copy(known) is copy.deepcopy(known) is known
    assert pickle.loads(pickle.dumps(known)) is default_registry()
