"""Importance sampling estimates of bridged policies beside the engine's own functions, and where those have no gradient."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, hessian, jacobian

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")
from gridworld_episodes import COLUMNS, dataset, episodes, table_and_policy  # noqa: E402
from seldonian.dataset import Episode, RLDataSet, RLMetaData  # noqa: E402
from seldonian.models import objectives as engine_objectives  # noqa: E402
from seldonian.parse_tree import zhat_funcs  # noqa: E402
from seldonian.RL.RL_model import RL_model  # noqa: E402
from torch import nn  # noqa: E402

from gradbridge_seldonian import OneHot, SeldonianPolicy, rl_spec  # noqa: E402
from gradbridge_seldonian.reinforcement.episodes import Episodes, segment_cumsum  # noqa: E402
from gradbridge_seldonian.reinforcement.estimates import ESTIMATES, Estimate, ratios  # noqa: E402

RNG = np.random.default_rng(4)
KINDS = list(ESTIMATES)


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_and_their_gradients_are_the_engines(kind):
    table, policy, preferences = table_and_policy()
    made = episodes()
    theirs, ours = getattr(engine_objectives, f"{kind}_estimate"), Estimate(kind)
    models = [RL_model(p, {"gamma": 0.8}) for p in (table, policy)]
    expected = theirs(models[0], preferences, made)
    slope = grad(lambda t: theirs(models[0], t, made))(preferences).T.ravel()
    theta = preferences.T.ravel()
    for estimate in (ours, theirs):  # the engine's own loops over a bridged policy are right, too
        np.testing.assert_allclose(estimate(models[1], theta, made), expected, rtol=1e-12)
        found = grad(lambda t, estimate=estimate: estimate(models[1], t, made))(theta)
        np.testing.assert_allclose(found, slope, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ours(models[0], preferences, made), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_a_constraint_are_the_engines(kind):
    table, policy, preferences = table_and_policy()
    made = episodes()
    returns = Episodes(made).returns(0.7, alt=2)
    np.testing.assert_allclose(
        returns, [e.alt_rewards[:, 1] @ 0.7 ** np.arange(len(e.rewards)) for e in made], rtol=1e-12
    )
    model = RL_model(policy, {"gamma": 0.7})
    joined = Episodes(made)
    found = ratios(model, preferences.T.ravel(), joined)
    vector = zhat_funcs.measure_function_vector_mapper[f"J_pi_new_{kind}"]
    of_engine = vector(RL_model(table, {"gamma": 0.7}), preferences, made, joined.returns(0.7))
    np.testing.assert_allclose(ESTIMATES[kind](found, joined, 0.7), of_engine, rtol=1e-12)
    if kind != "PDIS":  # where the engine takes the primary reward, whichever was asked for
        of_engine = vector(RL_model(table, {"gamma": 0.7}), preferences, made, returns)
        np.testing.assert_allclose(ESTIMATES[kind](found, joined, 0.7, 2), of_engine, rtol=1e-12)


def test_pdis_of_an_alternate_reward_is_of_that_reward():
    _, policy, preferences = table_and_policy()
    made, theta = episodes(), preferences.T.ravel()
    spec = rl_spec(dataset(made), policy, ["J_pi_new_PDIS_[2] >= -9.0"], [0.1], gamma=0.9)
    tree, model = spec.parse_trees[0], spec.model
    data = dataset(made)
    tree.evaluate_constraint(
        theta=theta,
        tree_dataset_dict={"all": data},
        model=model,
        regime="reinforcement_learning",
        branch="safety_test",
        sub_regime="all",
    )
    expected = []
    for e in made:
        ratios = policy.get_probs_from_observations_and_actions(e.observations, e.actions) / e.action_probs
        expected.append(np.sum(np.cumprod(ratios) * 0.9 ** np.arange(len(e.rewards)) * e.alt_rewards[:, 1]))
    np.testing.assert_allclose(tree.root.value, -9.0 - np.mean(expected), rtol=1e-12)


def test_long_episodes_do_not_overflow_on_the_way():
    # Ratios of 2 and then of 1/2: partial products reach 2^1500, the whole is 1.
    length = 3000
    actions = np.r_[np.zeros(length // 2, int), np.ones(length // 2, int)]
    probs = np.where(actions == 0, 0.4, 0.4)
    policy = SeldonianPolicy(nn.Linear(1, 3, bias=False))
    theta = np.log([0.8, 0.2, 1e-9])
    made = [Episode(np.ones((length, 1)), actions, np.r_[1.0, np.zeros(length - 1)], probs)] * 2
    model = RL_model(policy, {"gamma": 1.0})
    np.testing.assert_allclose(Estimate("IS")(model, theta, made), 1.0, rtol=1e-5)
    np.testing.assert_allclose(Estimate("WIS")(model, theta, made), 1.0, rtol=1e-12)
    assert np.isfinite(grad(lambda t: Estimate("WIS")(model, t, made))(theta)).all()


@pytest.mark.parametrize("lengths", [[3, 0, 1, 5], [2] * 9, [40], [0, 0]])
def test_running_sums_of_segments_and_their_derivatives_of_two_orders(lengths):
    lengths = np.array(lengths)
    x, start = RNG.normal(size=lengths.sum()), np.cumsum(lengths) - lengths
    for backwards in (False, True):
        order = slice(None, None, -1 if backwards else 1)
        parts = [np.cumsum(x[a : a + n][order])[order] for a, n in zip(start, lengths)]
        np.testing.assert_allclose(
            segment_cumsum(x, lengths, backwards), np.concatenate(parts), rtol=1e-13, atol=1e-14
        )
    if len(x):
        matrix = jacobian(lambda v: segment_cumsum(v, lengths))(x)
        np.testing.assert_allclose(matrix @ x, segment_cumsum(x, lengths), rtol=1e-12, atol=1e-13)
        squares = hessian(lambda v: (segment_cumsum(v, lengths) ** 2).sum())(x)
        np.testing.assert_allclose(squares, 2 * matrix.T @ matrix, rtol=1e-12, atol=1e-13)


def test_episodes_without_steps_count_as_returns_of_zero():
    _, policy, preferences = table_and_policy()
    made = episodes(4)
    model, theta = RL_model(policy, {"gamma": 0.9}), preferences.T.ravel()
    empty = Episode([], [], [], [])
    for kind in ("IS", "PDIS"):
        alone = Estimate(kind)(model, theta, made)
        np.testing.assert_allclose(Estimate(kind)(model, theta, [*made, empty]), alone * 4 / 5, rtol=1e-12)


class Shares:
    """A policy of the engine's kind, the same at all observations: shares of the actions, by a function of θ."""

    def __init__(self, shares, theta):
        self.shares, self.theta = shares, theta

    def get_params(self):
        return self.theta

    def set_new_params(self, theta):
        self.theta = theta

    def get_probs_from_observations_and_actions(self, observations, actions, behavior):
        shares = self.shares(self.theta)
        return (shares / anp.sum(shares))[actions]


RULED_OUT = {
    "by a limit": (lambda t: anp.maximum(t, 0.0), np.array([0.5, 0.2, -0.3])),
    "at its edge": (lambda t: t, np.array([0.5, 0.2, 0.0])),
    "by a square": (lambda t: t**2, np.array([0.5, 0.0, 0.3])),
}


def straight(kind, policy, theta, made, gamma):
    """The estimate by products alone, whose derivative autograd takes factor by factor."""
    found, weights = [], []
    policy.set_new_params(theta)
    for e in made:
        probs = policy.get_probs_from_observations_and_actions(e.observations, e.actions, None)
        running, product = [], 1.0
        for i in range(len(e.actions)):
            product = product * probs[i] / e.action_probs[i]
            running.append(product)
        rewards = e.rewards * gamma ** np.arange(len(e.rewards))
        found.append(
            sum(w * r for w, r in zip(running, rewards)) if kind == "PDIS" else product * rewards.sum()
        )
        weights.append(product)
    return sum(found) / (sum(weights) if kind == "WIS" else len(made))


@pytest.mark.parametrize("how", RULED_OUT)
@pytest.mark.parametrize("kind", KINDS)
def test_an_action_that_is_ruled_out_cuts_the_product_and_leaves_a_gradient(kind, how):
    shares, theta = RULED_OUT[how]
    policy, made = Shares(shares, theta), episodes(40, 5, actions=3)
    spec = rl_spec(dataset(made), policy, ["J_pi_new_PDIS >= -9"], [0.05], gamma=0.9, primary_objective=kind)

    def ours(t):
        return spec.primary_objective(spec.model, t, made)

    def expected(t):
        return straight(kind, policy, t, made, 0.9)

    np.testing.assert_allclose(ours(theta), expected(theta), rtol=1e-12)
    slope = grad(expected)(theta)
    assert np.isfinite(slope).all()
    np.testing.assert_allclose(grad(ours)(theta), slope, rtol=1e-11, atol=1e-13)


def test_a_ruled_out_action_at_the_end_of_a_long_episode_does_not_overflow():
    actions = np.r_[np.zeros(2000, int), 1]
    made = [Episode(np.zeros(2001), actions, np.r_[1.0, np.zeros(2000)], np.full(2001, 0.25))] * 12
    policy = Shares(lambda t: anp.maximum(t, 0.0), np.array([0.5, -1.0]))
    spec = rl_spec(dataset_of(made), policy, ["J_pi_new_IS >= -9"], [0.05], gamma=0.9)
    assert spec.primary_objective(spec.model, policy.get_params(), made) == 0.0


def dataset_of(made):
    return RLDataSet(made, RLMetaData(COLUMNS[:5]))


def test_logits_of_minus_infinity_rule_actions_out_too():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.free = nn.Linear(9, 3)

        def forward(self, x):
            return self.free(x) + torch.log(1 - x[:, :3])  # action i is ruled out in cell i

    policy, made = SeldonianPolicy(Masked(), encode=OneHot(9)), episodes(40, 4, actions=3)
    theta = policy.get_params()
    spec = rl_spec(
        dataset(made), policy, ["J_pi_new_PDIS >= -9"], [0.05], gamma=0.9, primary_objective="PDIS"
    )

    def ours(t):
        return spec.primary_objective(spec.model, t, made)

    differences = [(ours(theta + h) - ours(theta - h)) / 2e-6 for h in 1e-6 * np.eye(theta.size)]
    np.testing.assert_allclose(grad(ours)(theta), differences, rtol=1e-5, atol=1e-8)
