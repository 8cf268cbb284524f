"""A policy acts one step at a time: one whose steps depend on each other in a batch is refused, and by whom is told."""

import subprocess
import sys

import numpy as np
import pytest
from autograd import grad

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")
from seldonian.dataset import Episode, RLDataSet, RLMetaData  # noqa: E402
from seldonian.models import objectives  # noqa: E402
from seldonian.RL.RL_model import RL_model  # noqa: E402
from torch import nn  # noqa: E402

from gradbridge_seldonian import Gaussian, SeldonianPolicy, rl_spec  # noqa: E402
from gradbridge_seldonian.reinforcement.distributions import PolicyError  # noqa: E402

META = RLMetaData(["episode_index", "O", "A", "R", "pi_b"])


def episodes(kind="numbers"):
    r = np.random.default_rng(1)
    made = []
    for length in r.integers(1, 6, 40):
        o = r.normal(size=(length, 3)) if kind == "numbers" else r.integers(0, 7, length)
        made.append(Episode(o, r.integers(0, 2, length), r.normal(size=length), np.full(length, 0.5)))
    return made


def specified(policy, made):
    return rl_spec(RLDataSet(made, META), policy, ["J_pi_new_PDIS >= -9"], [0.05], gamma=0.9)


class Rows(nn.Module):
    """A linear layer of what a function makes of the rows."""

    def __init__(self, of, outputs=2):
        super().__init__()
        self.of, self.linear, self.gate = of, nn.Linear(3, outputs), nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.linear(self.of(x, self.gate))


DEPENDENT = {
    "recurrent": lambda: Recurrent(),
    "deviation from the maximum": lambda: Rows(lambda x, gate: x - x.max(0).values),
    "the mean of all in each row": lambda: Rows(lambda x, gate: x.mean(0, keepdim=True).expand(len(x), -1)),
    "the next row": lambda: Rows(lambda x, gate: x + 0.1 * x.roll(-1, 0)),
    "hidden at the start": lambda: Rows(lambda x, gate: x + gate * x.sum(0)),
    "ruling actions out": lambda: Ruling(),
}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.over, self.linear = nn.GRU(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(self.over(x)[0])


class Ruling(Rows):
    """Outputs that are not finite hide nothing."""

    def __init__(self):
        super().__init__(lambda x, gate: x - x.mean(0), 3)

    def forward(self, x):
        return super().forward(x).masked_fill(torch.arange(3) == 2, -np.inf)


@pytest.mark.parametrize("case", DEPENDENT)
def test_a_network_whose_rows_depend_on_each_other_is_refused(case):
    policy = SeldonianPolicy(DEPENDENT[case]())
    with pytest.raises(PolicyError, match=r"(?s)rows of \w+ .*one step at a time"):
        specified(policy, episodes())


def test_statistics_of_the_batch_are_refused_in_training_and_taken_in_evaluation():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    specified(SeldonianPolicy(net, distribution=Gaussian(1.0)), episodes())
    with pytest.raises(PolicyError, match="one step at a time"):
        specified(SeldonianPolicy(net, distribution=Gaussian(1.0), mode="train"), episodes())


ENCODES = {
    "the previous observation": lambda o: np.eye(7)[o] + 0.5 * np.eye(7)[np.r_[0, o[:-1]]],
    "the mean": lambda o: np.eye(7)[o] - np.eye(7)[o].mean(0),
    "the time": lambda o: np.c_[np.eye(7)[o][:, :6], np.arange(len(o)) / 10],
    "one of two inputs": lambda o: [np.eye(7)[o], np.cumsum(np.eye(7)[o], axis=0)],
}


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(7, 2)

    def forward(self, x, y=0.0):
        return self.linear(x + y)


@pytest.mark.parametrize("case", ENCODES)
def test_an_encode_that_looks_at_other_steps_is_refused(case):
    policy = SeldonianPolicy(Both(), encode=ENCODES[case])
    with pytest.raises(PolicyError, match="(?s)encode gives other rows.*one step at a time"):
        specified(policy, episodes("cells"))


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_rounding_is_no_dependence(dtype):
    features = np.random.default_rng(0).normal(size=(7, 300))
    net = nn.Sequential(nn.Linear(300, 200), nn.LayerNorm(200), nn.Tanh(), nn.Linear(200, 2))
    policy = SeldonianPolicy(net, encode=lambda o: np.eye(7)[o] @ features, dtype=dtype)
    specified(policy, episodes("cells"))


def test_the_engines_own_estimates_refuse_it_too():
    policy = SeldonianPolicy(DEPENDENT["the next row"]())
    theta, made = policy.get_params(), episodes()
    for estimate in (objectives.IS_estimate, objectives.PDIS_estimate):
        with pytest.raises(PolicyError, match="one step at a time"):
            grad(lambda t, f=estimate: f(RL_model(policy, {"gamma": 0.9}), t, made))(theta)


def test_each_specification_looks_at_its_own_episodes():
    policy = SeldonianPolicy(nn.Linear(7, 2), encode=lambda o: np.eye(7)[o] * (1 + np.minimum(o.min(), 1)))
    made = episodes("cells")
    for e in made:
        e.observations = e.observations * 0 + 1
    specified(policy, made)
    with pytest.raises(PolicyError, match="encode"):
        specified(policy, episodes("cells"))


def test_the_look_is_taken_once_and_an_evaluation_is_one_forward():
    calls = []

    class Counted(nn.Linear):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    policy, made = SeldonianPolicy(Counted(3, 2)), episodes()
    spec = specified(policy, made)
    for step in range(4):
        if step == 1:
            calls.clear()  # a bridge looks at its own first gradient, too
        theta = policy.get_params() + 0.1 * step
        spec.primary_objective(spec.model, theta, made)
        grad(lambda t: spec.primary_objective(spec.model, t, made))(theta)
    assert calls == [sum(len(e.actions) for e in made)] * 3


def test_a_jax_network_is_looked_at_where_the_specification_is_used():
    pytest.importorskip("jax")
    code = """
import numpy as np
from jax._src import xla_bridge
from seldonian.dataset import Episode, RLDataSet, RLMetaData
from gradbridge_seldonian import SeldonianPolicy, rl_spec
r = np.random.default_rng(0)
made = [Episode(r.normal(size=(3, 2)), [0, 1, 0], np.ones(3), np.full(3, 0.5)) for _ in range(12)]
policy = SeldonianPolicy(lambda tree, x: (x - x.mean(0)) @ tree["w"], backend="jax", params={"w": np.ones((2, 2))})
data = RLDataSet(made, RLMetaData(["episode_index", "O", "A", "R", "pi_b"]))
spec = rl_spec(data, policy, ["J_pi_new_IS >= 0"], [0.1], gamma=0.9)
print(xla_bridge.backends_are_initialized())
try:
    spec.primary_objective(spec.model, np.zeros(4), made)
except Exception as error:
    print(type(error).__name__, "one step at a time" in str(error))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.split() == ["False", "PolicyError", "True"], done.stderr
