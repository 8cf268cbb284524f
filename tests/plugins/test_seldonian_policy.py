"""Networks of any framework as policies of the engine: probabilities, draws, densities, and what they refuse."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import elementwise_grad, grad, hessian, jacobian

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")
from seldonian.RL.Agents.Bases.Fourier import Fourier  # noqa: E402
from seldonian.RL.Agents.Policies.Softmax import DiscreteSoftmax  # noqa: E402
from seldonian.RL.Agents.Policies.Softmax import Softmax as EngineSoftmax  # noqa: E402
from seldonian.RL.Env_Description.Env_Description import Env_Description  # noqa: E402
from seldonian.RL.Env_Description.Spaces import Discrete_Space  # noqa: E402
from seldonian.RL.environments.gridworld import Gridworld  # noqa: E402
from seldonian.RL.environments.mountaincar import Mountaincar  # noqa: E402
from seldonian.RL.RL_runner import run_episode  # noqa: E402
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from differences import differences  # noqa: E402
from gradbridge.errors import GradbridgeError, OptionError  # noqa: E402
from gradbridge_seldonian import Gaussian, OneHot, SeldonianPolicy, Softmax  # noqa: E402

RNG = np.random.default_rng(3)


def table_and_network(states, actions, first_state=0, first_action=0):
    """The engine's table of preferences, and a linear network of one-hot states with the same ones."""
    spaces = (
        Discrete_Space(first_state, first_state + states - 1),
        Discrete_Space(first_action, first_action + actions - 1),
    )
    description = Env_Description(*spaces)
    preferences = RNG.normal(size=(states, actions))
    table = EngineSoftmax({}, description)
    table.set_new_params(preferences)
    policy = SeldonianPolicy(
        nn.Linear(states, actions, bias=False),
        encode=OneHot(states, first_state),
        distribution=Softmax.of(description),
    )
    policy.set_new_params(preferences.T.ravel())
    return table, policy


def test_a_one_hot_linear_network_has_the_probabilities_of_the_engines_table():
    table, policy = table_and_network(5, 3, first_state=2, first_action=-1)
    for state in range(2, 7):
        for action in (-1, 0, 1):
            ours = policy.get_prob_this_action(state, action)
            np.testing.assert_allclose(ours, table.get_prob_this_action(state, action), rtol=1e-13)
    states, actions = RNG.integers(2, 7, 40), RNG.integers(-1, 2, 40)
    np.testing.assert_allclose(
        policy.get_probs_from_observations_and_actions(states, actions, None),
        table.get_probs_from_observations_and_actions(states, actions, None),
        rtol=1e-13,
    )


def test_it_draws_the_engines_actions_from_numpys_numbers():
    table, policy = table_and_network(4, 9, first_action=3)
    drawn = []
    for agent in (table, policy):
        np.random.seed(5)  # noqa: NPY002
        drawn.append([agent.choose_action(i % 4) for i in range(300)])
    assert drawn[0] == drawn[1]
    assert all(type(action) is int for action in drawn[1])


def test_it_plays_episodes_as_an_agent_of_the_engines():
    _, policy = table_and_network(9, 4)
    np.random.seed(0)  # noqa: NPY002
    episode = run_episode(policy, Gridworld())
    np.testing.assert_allclose(
        episode.action_probs,
        policy.get_probs_from_observations_and_actions(episode.observations, episode.actions),
        rtol=1e-13,
    )


def test_features_of_continuous_observations_give_the_engines_linear_policy():
    description = Mountaincar().get_env_description()
    settings = {"basis": "Fourier", "order": 2, "max_coupled_vars": -1}
    basis, theirs = Fourier(settings, description), EngineSoftmax(settings, description)
    weights = RNG.normal(size=(9, 3))
    theirs.set_new_params(weights)
    policy = SeldonianPolicy(
        nn.Linear(9, 3, bias=False),
        encode=lambda observations: np.array([basis.get_features(o) for o in observations]),
        distribution=Softmax.of(description),
    )
    policy.set_new_params(weights.T.ravel())
    observations = RNG.uniform([-1.2, -0.07], [0.5, 0.07], (30, 2))
    actions = RNG.integers(-1, 2, 30)
    np.testing.assert_allclose(
        policy.get_probs_from_observations_and_actions(observations, actions, None),
        theirs.get_probs_from_observations_and_actions(observations, actions, None),
        rtol=1e-12,
    )


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow"])
def test_gradients_of_a_deep_policy_agree_with_differences(backend):
    pytest.importorskip(backend)
    policy = SeldonianPolicy(gb.build("mlp", sizes=[2, 5, 3], backend=backend, seed=1))
    observations, actions = RNG.normal(size=(12, 2)), RNG.integers(0, 3, 12)

    def surprise(theta):
        return -anp.sum(policy.log_probs(theta, observations, actions) * np.arange(12.0))

    theta = policy.get_params()
    np.testing.assert_allclose(grad(surprise)(theta), differences(surprise, theta), rtol=1e-6, atol=1e-8)


def test_a_function_of_a_parameter_tree_is_a_policy():
    jnp = pytest.importorskip("jax.numpy")

    def network(tree, x):
        return jnp.tanh(x @ tree["in"]) @ tree["out"]

    tree = {"in": RNG.normal(size=(2, 4)), "out": RNG.normal(size=(4, 3))}
    policy = SeldonianPolicy(network, backend="jax", params=tree)
    x = RNG.normal(size=(6, 2))
    z = np.tanh(x @ tree["in"]) @ tree["out"]
    expected = (np.exp(z) / np.exp(z).sum(1, keepdims=True))[:, 1]
    np.testing.assert_allclose(
        policy.get_probs_from_observations_and_actions(x, np.ones(6)), expected, rtol=1e-12
    )


def test_log_probabilities_stay_finite_where_probabilities_underflow_and_have_second_derivatives():
    policy = SeldonianPolicy(nn.Linear(1, 2, bias=False))
    x, theta = np.ones((1, 1)), np.array([0.0, 900.0])
    assert policy.log_probs(theta, x, [0])[0] == -900
    np.testing.assert_array_equal(jacobian(lambda t: policy.log_probs(t, x, [0]))(theta), [[1.0, -1.0]])
    theta = np.array([0.3, -0.4])
    p = 1 / (1 + np.exp(-0.7))
    expected = -p * (1 - p) * np.array([[1, -1], [-1, 1]])
    np.testing.assert_allclose(hessian(lambda t: policy.log_probs(t, x, [1])[0])(theta), expected, rtol=1e-12)


def test_actions_that_do_not_count_up_are_listed():
    for actions in ([10, 30, 20], ["stay", "left", "right"]):
        policy = SeldonianPolicy(nn.Linear(1, 3), distribution=Softmax(actions=actions))
        policy.set_new_params(np.array([0.0, 0.0, 0.0, 0.0, 0.0, np.log(2.0)]))  # weights, then biases
        probabilities = [policy.get_prob_this_action(7.0, action) for action in actions]
        np.testing.assert_allclose(probabilities, [0.25, 0.25, 0.5], rtol=1e-13)
        np.random.seed(0)  # noqa: NPY002
        assert {policy.choose_action(7.0) for _ in range(50)} == set(actions)


def test_encode_may_give_several_inputs():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, position, velocity):
            return self.layer(torch.cat([position, velocity], 1))

    policy = SeldonianPolicy(Pair(), encode=lambda o: (o[:, :1], o[:, 1:]))
    alone = SeldonianPolicy(Pair().layer)
    theta, x = policy.get_params(), RNG.normal(size=(5, 2))
    np.testing.assert_allclose(
        policy.log_probs(theta, x, [0, 1, 0, 1, 1]), alone.log_probs(theta, x, [0, 1, 0, 1, 1])
    )


def raising(observations):
    raise ValueError("no features today")


NET = nn.Linear(2, 3)
X = np.zeros((4, 2))
WRONG = {
    "action above": (lambda: SeldonianPolicy(NET).log_probs(np.zeros(9), X, [0, 1, 3, 0]), "0 to 2.*step 2"),
    "action below": (lambda: SeldonianPolicy(NET).get_prob_this_action(X[0], -1), "0 to 2.*-1"),
    "action between": (lambda: SeldonianPolicy(NET).get_prob_this_action(X[0], 0.5), r"0 to 2.*0\.5"),
    "action unlisted": (
        lambda: SeldonianPolicy(NET, distribution=Softmax(actions=["a", "b", "c"])).get_prob_this_action(
            X[0], "d"
        ),
        "a, b, c.*'d'",
    ),
    "rows": (
        lambda: SeldonianPolicy(NET, encode=lambda o: o[:2]).log_probs(np.zeros(9), X, [0] * 4),
        r"row for each.*4",
    ),
    "no rows": (
        lambda: SeldonianPolicy(NET, encode=len).choose_action(X[0]),
        "row for each observation.*int",
    ),
    "encode fails": (
        lambda: SeldonianPolicy(NET, encode=raising).choose_action(X[0]),
        "encode failed.*no features today",
    ),
    "features": (lambda: SeldonianPolicy(NET, encode=lambda o: o[:, :1]).choose_action(X[0]), "1"),
    "outputs": (
        lambda: SeldonianPolicy(NET, distribution=Softmax(actions=4)).choose_action(X[0]),
        r"\(n, 4\).*\(1, 3\)",
    ),
    "one axis": (
        lambda: SeldonianPolicy(nn.Flatten(0)).choose_action(X[0]),
        r"\(n, number of actions\).*\(2,\)",
    ),
    "Gaussian outputs": (
        lambda: SeldonianPolicy(NET, distribution=Gaussian(1.0)).choose_action(X[0]),
        r"\(n, 1\).*\(1, 3\)",
    ),
    "Gaussian actions": (
        lambda: SeldonianPolicy(NET, distribution=Gaussian(1.0, 3)).log_probs(
            np.zeros(9), X, np.zeros((4, 2))
        ),
        r"\(n, 3\).*\(4, 2\)",
    ),
    "actions not finite": (
        lambda: SeldonianPolicy(NET, distribution=Gaussian(1.0, 3)).log_probs(
            np.zeros(9), X, np.full((4, 3), np.nan)
        ),
        "finite",
    ),
    "params": (lambda: SeldonianPolicy(NET).set_new_params(np.zeros(8)), r"\(9,\).*\(8,\)"),
    "own params": (
        lambda: SeldonianPolicy(NET, distribution=Gaussian("parameter", 3)).set_new_params(np.zeros(9)),
        r"\(12,\), 3 of them the distribution's own.*\(9,\)",
    ),
    "params of no number": (lambda: SeldonianPolicy(NET).set_new_params("weights"), "numbers.*str"),
    "counts": (lambda: SeldonianPolicy(NET).log_probs(np.zeros(9), X, [0, 1]), "4 observations.*2"),
    "words": (lambda: SeldonianPolicy(NET).choose_action("north"), "encode="),
    "unknown observation": (lambda: SeldonianPolicy(NET, encode=OneHot(2, 5)).choose_action(4), "5 to 6.*4"),
    "diverged": (lambda: _diverged().choose_action(X[0]), "no action.*nan"),
}


def _diverged():
    policy = SeldonianPolicy(NET)
    policy.set_new_params(np.full(9, np.nan))
    return policy


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_with_an_error_that_no_experiment_swallows(case):
    call, words = WRONG[case]
    with pytest.raises(GradbridgeError, match=f"(?s){words}") as caught:
        call()
    assert not isinstance(caught.value, (ValueError, ZeroDivisionError))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Softmax(0.5),
        lambda: Softmax(actions=0),
        lambda: Softmax(actions=[1, 1]),
        lambda: Softmax(1, actions=["a", "b"]),
        lambda: Gaussian(0.0),
        lambda: Gaussian("learned"),
        lambda: Gaussian([1.0, 2.0], dimensions=3),
        lambda: Gaussian(1.0, dimensions=0),
        lambda: Softmax(actions=[[1], [2, 3]]),
        lambda: OneHot(0),
        lambda: OneHot(3, "a"),
        lambda: OneHot(3, 1.7),
        lambda: OneHot(3, True),
        lambda: SeldonianPolicy(NET, encode=5),
        lambda: SeldonianPolicy(NET, distribution="softmax"),
        lambda: SeldonianPolicy(gb.bridge(NET), backend="torch"),
    ],
)
def test_options_that_make_no_policy_are_refused(make):
    with pytest.raises(OptionError):
        make()


def test_the_engines_cached_table_and_ours_agree_as_functions_of_the_parameters():
    table = DiscreteSoftmax({}, Gridworld().get_env_description())
    _, policy = table_and_network(9, 4)
    states, actions = RNG.integers(0, 9, 20), RNG.integers(0, 4, 20)

    def theirs(weights):
        table.set_new_params(weights)
        return anp.sum(table.get_probs_from_observations_and_actions(states, actions, None) ** 2)

    def ours(theta):
        return anp.sum(anp.exp(policy.log_probs(theta, states, actions)) ** 2)

    weights = RNG.normal(size=(9, 4))
    expected = elementwise_grad(theirs)(weights).T.ravel()
    np.testing.assert_allclose(grad(ours)(weights.T.ravel()), expected, rtol=1e-12, atol=1e-15)
