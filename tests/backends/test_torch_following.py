"""Parameters that a module reaches by other ways than its own attributes are those of the call, or refused by name."""

import collections
import copy
import functools
import threading
import weakref

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import value_and_grad

torch = pytest.importorskip("torch")
from threads import at_once  # noqa: E402
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.call_spec import CallSpec  # noqa: E402
from gradbridge.errors import AuditError, GradbridgeWarning  # noqa: E402

X = onp.random.default_rng(0).normal(size=(4, 3))


class Net(nn.Module):
    """A layer, and a gain that is reached by way of something else."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.gain = nn.Parameter(torch.tensor([1.5]))
        self.tie()

    def forward(self, x):
        return torch.tanh(self.scaled(self.layer(x)))


class ByDefault(Net):
    def tie(self):
        self.scaled = lambda z, me=self: z * me.gain


class ByCell(Net):
    def tie(self):
        gain = self.gain

        def scaled(z, times=2):
            return z * gain if times == 0 else scaled(z, times - 1)

        self.scaled = scaled


class ByPartial(Net):
    def tie(self):
        self.scaled = functools.partial(torch.mul, self.gain)


class ByBoundMethodOfATensor(Net):
    def tie(self):
        self.scaled = self.gain.mul


class Frozen(collections.namedtuple("Frozen", "gain rest")):
    pass


class ByNamedTuple(Net):
    def tie(self):
        self.kept = {"in": [Frozen(self.gain, None)]}

    def scaled(self, z):
        return z * self.kept["in"][0].gain


class BySet(Net):
    def tie(self):
        self.kept = {self.gain}

    def scaled(self, z):
        return z * next(iter(self.kept))


class Slotted:
    __slots__ = ("gain", "solve")


class BySolver(Net):
    """An object with slots that was built around a closure."""

    def tie(self):
        self.solver = Slotted()
        self.solver.gain = self.gain
        self.solver.solve = lambda z: z * self.solver.gain
        self.scaled = self.solver.solve


class Weak(nn.Module):
    def __init__(self, reference):
        super().__init__()
        self.reference = [reference]

    def forward(self, z):
        owner = self.reference[0]
        return z * (owner().gain if isinstance(owner, weakref.ref) else owner.gain)


class ByProxy(Net):
    def tie(self):
        self.scaled = Weak(weakref.proxy(self))


class ByWeakMethod(Net):
    def tie(self):
        self.method = weakref.WeakMethod(self.times)
        self.scaled = lambda z: self.method()(z)

    def times(self, z):
        return z * self.gain


class ByCompiledForward(Net):
    def tie(self):
        self.scaled = self.times
        self.forward = torch.compile(self.forward, backend="eager")

    def times(self, z):
        return z * self.gain


class ByHookAndStore(Net):
    """A hook that leads to nothing but a list, and a forward that reads it."""

    def tie(self):
        store, inner = [], self.times
        self.layer.register_forward_hook(lambda part, given, out: store.append(out * 1))

        def scaled(z):
            return inner(store.pop())

        self.scaled = scaled

    def times(self, z):
        return z * self.gain


class ByTrace(Net):
    def tie(self):
        self.scaled = torch.jit.trace(nn.Sequential(nn.Linear(3, 3), nn.Sigmoid()), torch.ones(1, 3))


class ByList(Net):
    def tie(self):
        self.parts = [self.layer, self.layer]
        self.scaled = lambda z: self.parts[1](z) * self.gain


class Listed(list):
    """A list that has attributes, too."""


class Paired(tuple):
    """Likewise."""


class ByAttributeOfAList(Net):
    def tie(self):
        self.parts = Listed([self.layer])
        self.parts.gain = self.gain

    def scaled(self, z):
        return self.parts[0](z) * self.parts.gain


class ByAttributeOfATuple(Net):
    def tie(self):
        self.parts = Paired((self.layer.bias, self.gain))
        self.parts.gain = self.gain

    def scaled(self, z):
        return z * self.parts[1] * self.parts.gain + self.parts[0]


WAYS = [ByDefault, ByCell, ByPartial, ByBoundMethodOfATensor, ByNamedTuple, BySet, BySolver, ByProxy]
WAYS += [
    ByWeakMethod,
    ByCompiledForward,
    ByHookAndStore,
    ByTrace,
    ByList,
    ByAttributeOfAList,
    ByAttributeOfATuple,
]


def made(way):
    torch.manual_seed(0)
    return way().double().eval()


def native(way, p):
    net = made(way)
    torch.nn.utils.vector_to_parameters(torch.as_tensor(p), net.parameters())
    y = net(torch.as_tensor(X))
    gradients = torch.autograd.grad((y**2).sum(), list(net.parameters()), allow_unused=True)
    flat = [(torch.zeros_like(q) if g is None else g).ravel() for g, q in zip(gradients, net.parameters())]
    return y.detach().numpy(), torch.cat(flat).numpy()


@pytest.mark.parametrize("way", WAYS)
def test_the_params_of_the_call_are_used_however_they_are_reached(way):
    net = made(way)
    before = copy.copy(net.state_dict())
    f = gb.bridge(net)
    loss = value_and_grad(lambda p: np.sum(f(p, X) ** 2))
    for p in (1.7 * f.params, -0.3 * f.params):
        value, gradient = native(way, p)
        onp.testing.assert_allclose(f(p, X), value, rtol=1e-12)
        onp.testing.assert_allclose(loss(p)[0], onp.sum(value**2), rtol=1e-12)
        onp.testing.assert_allclose(loss(p)[1], gradient, rtol=1e-11, atol=1e-13)
        onp.testing.assert_allclose(f.model(p)(torch.as_tensor(X)).detach().numpy(), value, rtol=1e-12)
        twin = copy.deepcopy(f)
        onp.testing.assert_allclose(twin(p, X), value, rtol=1e-12)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("way", [ByDefault, BySolver, ByTrace, ByProxy])
def test_they_are_computed_with_in_the_precision_of_the_host(way):
    torch.manual_seed(0)
    f = gb.bridge(way().eval())
    gradient = native(way, f.params)[1]
    loss = value_and_grad(lambda p: np.sum(f(p, X) ** 2))
    onp.testing.assert_allclose(loss(f.params)[1], gradient, rtol=1e-11, atol=1e-13)


def test_eight_threads_do_not_see_each_others_params():
    f, wrong = gb.bridge(made(BySolver)), []
    truth = {scale: native(BySolver, scale * f.params) for scale in (0.5, 1.0, 2.0)}

    def work(seed):
        for turn in range(20):
            scale = (0.5, 1.0, 2.0)[(seed + turn) % 3]
            got = value_and_grad(lambda p: np.sum(f(p, X) ** 2))(scale * f.params)[1]
            if not onp.allclose(got, truth[scale][1], rtol=1e-10):
                wrong.append((seed, turn))

    at_once(work, 8)
    assert not wrong


class Uncopied:
    """Knows the module, and cannot be copied."""

    def __init__(self, net):
        self.net, self.lock = net, threading.Lock()


def by_uncopied():
    net = made(ByDefault)
    trainer = Uncopied(net)
    net.scaled = lambda z: z * trainer.net.gain
    return net


def by_derived():
    net = made(ByDefault)
    net.turned = net.layer.weight.T
    net.scaled = lambda z: z @ net.turned
    return net


class ByGlobal(Net):
    def tie(self):
        pass

    def scaled(self, z):
        return z * HOME[0].gain


HOME = []


def by_global():
    HOME[:] = [made(ByGlobal)]
    return HOME[0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (by_uncopied, "parameter 'gain', reached through the lambda in attribute 'scaled'"),
        (by_derived, "parameter 'layer.weight', from which 'turned' was computed before and kept"),
        (by_global, "parameter 'gain'"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(make, words):
    f = gb.bridge(make())
    with pytest.raises(AuditError, match="computes with a parameter of its own") as refusal:
        value_and_grad(lambda p: np.sum(f(p, X) ** 2))(f.params)
    assert words in str(refusal.value)


OUTSIDE = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))


class ByConstants(Net):
    """Parameters that it does not register, and one that belongs to nobody, are constants."""

    def tie(self):
        self.hidden = [nn.Linear(3, 3).double()]

    def scaled(self, z):
        return self.hidden[0](z) * OUTSIDE * self.gain


def test_parameters_that_are_none_of_the_modules_are_constants_and_named():
    f = gb.bridge(made(ByConstants))
    with pytest.warns(GradbridgeWarning, match="held constant") as told:
        got = value_and_grad(lambda p: np.sum(f(p, X) ** 2))(2 * f.params)
    words = " ".join(str(w.message) for w in told)
    assert "OUTSIDE" in words
    assert "hidden[0].weight" in words
    gradient = native(ByConstants, 2 * f.params)[1]
    onp.testing.assert_allclose(got[1], gradient, rtol=1e-11)


def test_the_leaves_of_a_plain_call_are_its_own():
    adapter = gb.bridge(made(ByList)).adapter
    places = tuple(range(len(adapter.layout)))
    for wrt in (places, (len(places),)):  # by the params; by the input alone
        _, residuals = adapter.forward(adapter.update(adapter.weights()), [X], CallSpec.of_arrays(1), wrt)
        assert not adapter.strangers(residuals)


def test_a_hook_that_appends_to_a_list_of_the_users_goes_on_doing_so():
    seen, net = [], made(ByPartial)
    net.layer.register_forward_hook(lambda part, given, out: seen.append(out.detach().numpy()))
    f = gb.bridge(net, audit="off")
    f(f.params, X)
    assert len(seen) == 1


def test_functions_that_can_be_imported_stay_themselves():
    net = made(ByPartial)
    net.scaled = torch.relu
    net.other = nn.functional.relu
    net.odd = lambda z: nn.functional.relu(z)
    twin = gb.bridge(net).model(gb.bridge(net).params)
    assert twin.other is nn.functional.relu
    assert twin.odd is net.odd  # leads to nothing of the module
