"""Every container that a model may return: each leaf keeps its own gradient, whatever the order of its keys."""

import collections
import collections.abc
import dataclasses
from typing import Any, NamedTuple

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, hessian

import gradbridge as gb
from gradbridge.errors import CotangentMismatchError

RNG = np.random.default_rng(0)
X, P = RNG.normal(size=(5, 3)), RNG.normal(size=3)


class Mapped(collections.abc.Mapping):
    """A mapping of its own, as the output classes of model libraries are; built in no order of its keys."""

    def __init__(self, **arrays):
        self._arrays = arrays

    def __getitem__(self, key):
        return self._arrays[key]

    def __iter__(self):
        return iter(self._arrays)

    def __len__(self):
        return len(self._arrays)


class Dict(dict):
    pass


@dataclasses.dataclass
class Record:
    z: Any
    a: Any


class Named(NamedTuple):
    z: Any
    a: Any


def default(**arrays):
    found = collections.defaultdict(list)
    found.update(arrays)
    return found


CONTAINERS = {
    "Mapping": Mapped,
    "dict subclass": Dict,
    "UserDict": lambda **arrays: collections.UserDict(arrays),
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "defaultdict": default,
    "dataclass": Record,
    "namedtuple": Named,
    "nested": lambda **arrays: Mapped(z=Mapped(z=arrays["z"])["z"], a=arrays["a"]),
}


def dot(backend, x, p):
    if backend == "autograd":
        return anp.dot(x, p)
    return __import__("tensorflow").linalg.matvec(x, p) if backend == "tensorflow" else x @ p


def get(outputs, name):
    return getattr(outputs, name) if hasattr(outputs, name) else outputs[name]


@pytest.fixture(params=["torch", "jax", "autograd", "tensorflow"])
def backend(request):
    if request.param != "autograd":
        pytest.importorskip(request.param)
    return request.param


@pytest.mark.parametrize("kind", CONTAINERS)
def test_each_leaf_has_its_own_derivatives(backend, kind):
    def model(p, x):
        y = dot(backend, x, p["w"])
        return CONTAINERS[kind](z=y, a=2 * y**2)

    f = gb.bridge(model, params={"w": P}, backend=backend, dtype="float64")
    np.testing.assert_allclose(get(f(P, X), "z"), X @ P, rtol=1e-12)
    np.testing.assert_allclose(grad(lambda p: anp.sum(get(f(p, X), "z")))(P), X.sum(0), rtol=1e-12)
    np.testing.assert_allclose(grad(lambda p: anp.sum(get(f(p, X), "a")))(P), 4 * X.T @ (X @ P), rtol=1e-12)
    np.testing.assert_allclose(
        hessian(lambda p: anp.sum(get(f(p, X), "a")))(P), 4 * X.T @ X, rtol=1e-12, atol=1e-13
    )
    np.testing.assert_allclose(get(f.jacobian(P, X), "z"), X, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["Mapping", "OrderedDict", "dict", "dataclass"])
def test_cotangents_go_by_name_and_not_by_order(kind):
    f = gb.bridge(
        lambda p, x: CONTAINERS[kind](z=anp.dot(x, p["w"]), a=10.0 * anp.dot(x, p["w"])),
        params={"w": P},
        backend="autograd",
    )
    v = np.arange(5.0)
    outputs = f(P, X)
    names = ("z", "a")
    cotangent = Record(v, 0 * v) if isinstance(outputs, Record) else dict(zip(names, (v, 0 * v)))
    backwards = Record(v, None) if isinstance(outputs, Record) else dict(zip(names[::-1], (None, v)))
    for given in (cotangent, backwards):
        np.testing.assert_allclose(f.vjp(P, X, cotangent=given), v @ X, rtol=1e-12)
    tangent = np.ones(3)

    def only_z(moved):
        z = get(moved, "z")
        return Record(z, None) if isinstance(moved, Record) else {"z": z, "a": 0 * z}

    np.testing.assert_allclose(f.ggn(P, X, vector=tangent, hessian=only_z), X.T @ (X @ tangent), rtol=1e-12)


def test_a_cotangent_of_another_structure_is_refused():
    f = gb.bridge(lambda p, x: {"z": anp.dot(x, p), "a": x[:, 0]}, params=P, backend="autograd")
    for wrong in (
        {"z": np.ones(5), "b": np.ones(5)},
        (np.ones(5), np.ones(5)),
        np.ones(5),
        {"z": np.ones(5)},
    ):
        with pytest.raises(
            CotangentMismatchError, match=r"must be a tree like its outputs, \{'z': 'array \(5,\)'"
        ):
            f.vjp(P, X, cotangent=wrong)
    single = gb.bridge(lambda p, x: anp.dot(x, p), params=P, backend="autograd")
    for wrong in ("a", {"z": np.ones(5)}, None, [[1.0], [2.0, 3.0]]):
        with pytest.raises(CotangentMismatchError, match="must be an array of numbers like it"):
            single.vjp(P, X, cotangent=wrong)
    with pytest.raises(
        CotangentMismatchError, match=r"got a dict; for a tree of params, f.layout.ravel\(tree\)"
    ):
        single.jvp(P, X, tangent={"w": P})
    with pytest.raises(gb.errors.OptionError, match="returns a tree of 2; pass a function"):
        f.ggn(P, X, vector=P, hessian=np.eye(5))


def test_integers_beside_floating_outputs_are_constants_of_the_hosts_program(backend):
    import importlib

    words = {"torch": "torch", "jax": "jax.numpy", "autograd": "autograd.numpy", "tensorflow": "tensorflow"}
    module = importlib.import_module(words[backend])

    def model(p, x):
        y = x * p["w"]
        return y, module.argmax(y, 1)

    f = gb.bridge(model, params={"w": P}, backend=backend, dtype="float64")

    def chosen(p):
        y, best = f(p, X)
        assert isinstance(best, np.ndarray)
        return anp.sum(y[np.arange(5), best]) + anp.mean(best * 1.0)

    best = np.argmax(X * P, 1)
    expected = np.zeros(3)
    np.add.at(expected, best, X[np.arange(5), best])
    np.testing.assert_allclose(grad(chosen)(P), expected, rtol=1e-12)
