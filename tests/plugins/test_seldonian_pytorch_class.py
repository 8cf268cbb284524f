"""Classes written for any edition of the engine's PyTorch base class work on ours after the import is changed."""

import copy

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, make_vjp

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")
from seldonian.models.pytorch_model import SupervisedPytorchBaseModel as TheirBase  # noqa: E402
from torch import nn  # noqa: E402

from gradbridge.errors import NotDifferentiableError  # noqa: E402
from gradbridge_seldonian import SupervisedPytorchBaseModel as OurBase  # noqa: E402
from gradbridge_seldonian.steps.base import MissingStepError  # noqa: E402

X = onp.random.default_rng(0).normal(size=(6, 3))
THETA = onp.linspace(-1.0, 1.0, 11)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1), nn.Flatten(0))


def truth(t):
    return np.tanh(X @ t[:6].reshape(2, 3).T + t[6:8]) @ t[8:10] + t[10]


def create_alone(base):
    class Model(base):
        def create_model(self, **kwargs):
            return net()

    return Model("cpu")


def reads_sizes(base):
    class Model(base):
        def __init__(self, device, **kwargs):
            super().__init__(device, **kwargs)
            self.epochs = 3

        def create_model(self, input_dim, output_dim, **kwargs):
            assert (input_dim, output_dim) == (3, 1)
            return net()

        def update_model_params(self, theta, **kwargs):
            start = 0
            for size, p in zip(self.param_sizes, self.pytorch_model.parameters()):
                with torch.no_grad():
                    p.copy_(torch.from_numpy(theta[start : start + size]).view(p.shape))
                start += size

    return Model(torch.device("cpu"), input_dim=3, output_dim=1)


def forward_too(base):
    class Model(base):
        def create_model(self, **kwargs):
            return net()[:3]

        def forward_pass(self, X, **kwargs):
            return self.pytorch_model(torch.tensor(X).float().to(self.device)).view(-1)

        def get_model_params(self, *args):
            return super().get_model_params(*args).astype("float32")

    return Model("cpu")


def all_of_them(base):
    class Model(base):
        def create_model(self, **kwargs):
            return net()

        def get_param_sizes(self):
            return [p.numel() for p in self.pytorch_model.parameters()]

        def zero_gradients(self):
            for p in self.pytorch_model.parameters():
                if p.grad is not None:
                    p.grad.zero_()

        def update_model_params(self, theta, **kwargs):
            nn.utils.vector_to_parameters(torch.from_numpy(theta).float(), self.pytorch_model.parameters())

        def forward_pass(self, X, **kwargs):
            return self.pytorch_model(torch.tensor(X, requires_grad=True).float())

        def backward_pass(self, predictions, external_grad):
            self.zero_gradients()
            predictions.backward(gradient=external_grad, retain_graph=True)
            return torch.cat([p.grad.view(-1) for p in self.pytorch_model.parameters()]).numpy()

    return Model("cpu")


def swapped_afterwards(base):
    class Model(base):
        def __init__(self, device):
            super().__init__(device)
            self.pytorch_model = net()
            self.param_sizes = self.get_param_sizes()

        def create_model(self, **kwargs):
            return nn.Linear(3, 1)

    return Model("cpu")


EDITIONS = [create_alone, reads_sizes, forward_too, all_of_them, swapped_afterwards]


@pytest.mark.parametrize("made", EDITIONS)
def test_it_gives_what_it_gave_on_the_engines_own_base(made):
    for model in (made(TheirBase), made(OurBase)):
        assert list(model.param_sizes) == [6, 2, 2, 1]
        assert not model.params_updated
        start = onp.concatenate([p.detach().numpy().ravel() for p in net().parameters()])
        onp.testing.assert_array_equal(model.get_model_params("model", "X", "Y"), start)
        onp.testing.assert_allclose(model.predict(THETA, X), truth(THETA), rtol=1e-5, atol=1e-6)
        pull, _ = make_vjp(model.predict)(THETA, X)
        onp.testing.assert_allclose(pull(onp.ones(6)), make_vjp(truth)(THETA)[0](onp.ones(6)), rtol=1e-4)


@pytest.mark.parametrize("made", EDITIONS)
def test_two_calls_in_one_program_and_copies_are_right_here(made):
    model, expected = made(OurBase), grad(lambda t: np.sum(truth(t) * truth(2 * t)))(THETA)
    for m in (model, copy.deepcopy(model)):
        found = grad(lambda t: np.sum(m.predict(t, X) * m.predict(2 * t, X)))(THETA)  # noqa: B023
        onp.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    onp.testing.assert_allclose(model.initial_solution(), model.get_initial_weights())


def positional(self, external_grad, **kwargs):
    return OurBase.backward_pass(self, external_grad)


def anything(self, *args):
    assert len(args) == 2  # as the engine calls it
    return OurBase.backward_pass(self, *args)


def with_defaults(self, predictions, external_grad, retain_graph=True):
    return OurBase.backward_pass(self, predictions=predictions, external_grad=external_grad)


def own_names(self, outputs, v):
    return OurBase.backward_pass(self, outputs, v)


def single_with_default(self, v, scale=1.0):
    return OurBase.backward_pass(self, v * scale)


@pytest.mark.parametrize("method", [positional, anything, with_defaults, own_names, single_with_default])
def test_a_backward_pass_is_called_as_it_is_written(method):
    cls = type("Model", (OurBase,), {"create_model": lambda self, **kwargs: net(), "backward_pass": method})
    model = cls("cpu")
    found = grad(lambda t: np.sum(model.predict(t, X) ** 2))(THETA)
    onp.testing.assert_allclose(found, grad(lambda t: np.sum(truth(t) ** 2))(THETA), rtol=1e-4, atol=1e-4)


def test_the_tutorials_sizes_may_come_by_name():
    class Line(OurBase):
        def create_model(self, bias=True, **kwargs):
            return nn.Sequential(nn.Linear(self.input_dim, self.output_dim, bias), nn.Flatten(0))

    for model in (Line(3, 1), Line(3, output_dim=1), Line(input_dim=3, output_dim=1, bias=False)):
        assert (model.input_dim, model.output_dim) == (3, 1)
        assert torch.device(model.device).type == "cpu"
    assert model.param_sizes == [3]


class Part(OurBase):
    """Theta is a part of the module's parameters: its head."""

    def create_model(self, **kwargs):
        return net().double()

    def update_model_params(self, theta, **kwargs):
        with torch.no_grad():
            self.pytorch_model[2].weight[0] = torch.from_numpy(theta[:2])
            self.pytorch_model[2].bias[0] = theta[2]

    def backward_pass(self, predictions, external_grad):
        return super().backward_pass(predictions, external_grad)[-3:]


class Remade(OurBase):
    """Makes a module for as many features as theta is for."""

    def create_model(self, **kwargs):
        return nn.Sequential(nn.Linear(1, 1), nn.Flatten(0)).double()

    def update_model_params(self, theta, **kwargs):
        if len(theta) - 1 != self.pytorch_model[0].in_features:
            self.pytorch_model = nn.Sequential(nn.Linear(len(theta) - 1, 1), nn.Flatten(0)).double()
        nn.utils.vector_to_parameters(torch.from_numpy(theta), self.pytorch_model.parameters())


def test_an_update_of_its_own_says_how_long_theta_is():
    part, remade, theta = Part("cpu"), Remade("cpu"), onp.array([0.3, -0.2, 0.5])
    hidden = torch.nn.Sequential(*part.pytorch_model[:2])(torch.tensor(X)).detach().numpy()
    onp.testing.assert_allclose(part.predict(theta, X), hidden @ theta[:2] + theta[2], rtol=1e-12)
    found = grad(lambda t: np.sum(part.predict(t, X)))(theta)
    onp.testing.assert_allclose(found, [*hidden.sum(0), 6.0], rtol=1e-12)
    found = grad(lambda t: np.sum(remade.predict(t, X) ** 2))(THETA[:4])
    expected = grad(lambda t: np.sum((X @ t[:3] + t[3]) ** 2))(THETA[:4])
    onp.testing.assert_allclose(found, expected, rtol=1e-12)


def test_an_order_of_its_own_needs_a_start_of_its_own():
    class Backwards(OurBase):
        def create_model(self, **kwargs):
            return net()

        def update_model_params(self, theta, **kwargs):
            super().update_model_params(theta[::-1].copy())

        def backward_pass(self, predictions, external_grad):
            return super().backward_pass(predictions, external_grad)[::-1]

    model = Backwards("cpu")
    before = [p.detach().clone() for p in model.pytorch_model.parameters()]
    with pytest.raises(MissingStepError, match="update_model_params does not load it in the order"):
        model.initial_solution()
    assert all(map(torch.equal, before, model.pytorch_model.parameters()))
    own = type(
        "Own", (Backwards,), {"get_model_params": lambda self, *_: Backwards.get_model_params(self)[::-1]}
    )
    theta = own("cpu").initial_solution()
    with torch.no_grad():
        onp.testing.assert_allclose(model.predict(theta, X), net()(torch.tensor(X).float()), rtol=1e-6)


class Statistics(OurBase):
    """Computes with the statistics of its batches, which move."""

    def create_model(self, **kwargs):
        torch.manual_seed(0)
        layers = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)
        return nn.Sequential(*layers).double()


class Iterating(OurBase):
    """Keeps an iteration of its own that its outputs depend on."""

    def create_model(self, **kwargs):
        torch.manual_seed(0)
        line = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))
        return nn.Sequential(line, nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()


@pytest.mark.parametrize("cls", [Statistics, Iterating])
@pytest.mark.filterwarnings("ignore::gradbridge.errors.GradbridgeWarning")
def test_buffers_move_once_per_evaluation_and_a_replay_starts_from_those_of_its_value(cls):
    model = cls("cpu")
    theta = model.initial_solution()
    model.pytorch_model.train()
    f = lambda t: np.sum(model.predict(t, X) ** 2)
    u = onp.random.default_rng(1).normal(size=theta.size)
    grad(f)(theta)
    start = [b.clone() for b in model.pytorch_model.buffers()]
    pull, _ = make_vjp(f)(theta)
    f(1.5 * theta)
    moved = [b.clone() for b in model.pytorch_model.buffers()]
    gradient, again = pull(1.0), pull(1.0)
    assert not all(map(torch.equal, start, moved))
    assert all(map(torch.equal, model.pytorch_model.buffers(), moved))
    onp.testing.assert_allclose(gradient, again, rtol=1e-12)

    def at(t):
        for buffer, value in zip(model.pytorch_model.buffers(), start):
            buffer.copy_(value)
        return f(t)

    assert onp.isclose(gradient @ u, (at(theta + 1e-6 * u) - at(theta - 1e-6 * u)) / 2e-6, rtol=1e-5)


def test_what_a_run_leaves_on_the_object_does_not_stand_in_the_way_of_copies():
    class Keeps(OurBase):
        def __init__(self, device):
            self.hidden, self.calls = None, 0
            super().__init__(device)

        def create_model(self, **kwargs):
            return net()

        def forward_pass(self, X, **kwargs):
            self.hidden, self.calls = self.pytorch_model[:2](torch.tensor(X).float()), self.calls + 1
            self.twice = [self.hidden * 2]
            return self.pytorch_model[2:](self.hidden)

    model = Keeps("cpu")
    grad(lambda t: np.sum(model.predict(t, X)))(THETA)
    twin = copy.deepcopy(model)
    assert (twin.hidden, twin.calls) == (None, model.calls)
    onp.testing.assert_array_equal(twin.predict(THETA, X), model.predict(THETA, X))


def test_features_keep_their_layout_by_which_kernels_round():
    seen = []

    class Looks(OurBase):
        def create_model(self, **kwargs):
            return net()

        def forward_pass(self, X, **kwargs):
            seen.append(X.flags.f_contiguous)
            return super().forward_pass(X)

    Looks("cpu").predict(THETA, onp.asfortranarray(X))
    assert set(seen) == {True}


def test_the_callers_autocast_is_not_the_models():
    model = create_alone(OurBase)
    expected = model.predict(THETA, X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        onp.testing.assert_array_equal(model.predict(THETA, X), expected)


def test_keyword_arguments_arrive_as_they_are_given():
    seen = {}

    class Tempered(OurBase):
        def create_model(self, **kwargs):
            return net().double()

        def forward_pass(self, X, temperature=1.0, **kwargs):
            seen.update(kwargs, temperature=temperature)
            return self.pytorch_model(torch.tensor(X)) / temperature

    model, given = Tempered("cpu"), {"scale": onp.float64(3.0), "k": 3, "on": True, "name": "a"}
    found = grad(lambda t: np.sum(model.predict(t, X, temperature=2.0, **given)))(THETA)
    onp.testing.assert_allclose(found, grad(lambda t: np.sum(truth(t) / 2.0))(THETA), rtol=1e-10)
    assert seen == {"temperature": 2.0, **given}
    assert [type(seen[k]) for k in ("temperature", *given)] == [float, onp.float64, int, bool, str]
    with pytest.raises(NotDifferentiableError):
        grad(lambda s: np.sum(model.predict(THETA, X, temperature=s)))(2.0)
