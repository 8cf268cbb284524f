"""What `rl_spec` refuses before the engine starts, and what it leaves alone."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("seldonian")
pytest.importorskip("torch")
from gridworld_episodes import dataset, episodes, table_and_policy
from seldonian.dataset import Episode
from seldonian.RL.RL_model import RL_model
from seldonian.seldonian_algorithm import SeldonianAlgorithm
from torch import nn

from gradbridge.errors import GradbridgeError
from gradbridge_seldonian import rl_spec
from gradbridge_seldonian.reinforcement.distributions import PolicyError
from gradbridge_seldonian.specification.checks import SpecError


def test_a_specification_leaves_the_policy_as_it_was():
    _, policy, preferences = table_and_policy()
    rl_spec(dataset(), policy, ["J_pi_new_IS >= 0"], [0.1], gamma=0.9, initial_solution=np.zeros(36))
    np.testing.assert_array_equal(policy.get_params(), preferences.T.ravel())


def test_a_specification_does_not_start_jax_because_experiments_fork():
    pytest.importorskip("jax")
    code = """
import numpy as np
from jax._src import xla_bridge
from seldonian.dataset import Episode, RLDataSet, RLMetaData
from gradbridge_seldonian import SeldonianPolicy, rl_spec
made = [Episode([[1.0]], [0], [1.0], [0.5])] * 12
policy = SeldonianPolicy(lambda tree, x: x @ tree["w"], backend="jax", params={"w": np.zeros((1, 2))})
data = RLDataSet(made, RLMetaData(["episode_index", "O", "A", "R", "pi_b"]))
spec = rl_spec(data, policy, ["J_pi_new_IS >= 0"], [0.1], gamma=0.9)
print(xla_bridge.backends_are_initialized(), spec.primary_objective(spec.model, np.zeros(2), made))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.split() == ["False", "1.0"], done.stderr


def changed(**arrays):
    made = episodes(12)
    for name, array in arrays.items():
        setattr(made[3], name, array(getattr(made[3], name)))
    return dataset(made)


def twelve():
    return dataset(episodes(12))


WRONG = {
    "behavior zero": (lambda: changed(action_probs=lambda p: p * 0), {}, "episode 3 has 0.0 at step 0"),
    "behavior nan": (lambda: changed(action_probs=lambda p: p * np.nan), {}, "episode 3 has nan"),
    "behavior in percent": (
        lambda: changed(action_probs=lambda p: 100 * p),
        {},
        "episode 3 has .* at step 0",
    ),
    "lengths": (lambda: changed(rewards=lambda r: r[:-1]), {}, "episode 3 has .* rewards"),
    "alternate lengths": (
        lambda: changed(alt_rewards=lambda r: np.r_[r, r]),
        {},
        "episode 3 has .* alt_rewards",
    ),
    "shapes": (
        lambda: changed(observations=lambda o: np.c_[o, o]),
        {},
        "observations must have the same shape",
    ),
    "actions": (lambda: changed(actions=lambda a: a + 4), {}, "actions of this policy are 0 to 3"),
    "observations": (lambda: changed(observations=lambda o: o - 9), {}, "observations are 0 to 8"),
    "rewards": (lambda: changed(rewards=lambda r: r * np.nan), {}, "rewards must be finite"),
    "no episodes": (lambda: dataset([]), {}, "got none"),
    "alternate reward": (twelve, {"constraints": ["J_pi_new_IS_[3] >= 0"]}, r"\[3\] was asked for.*have 2"),
    "box": (twelve, {"constraints": ["J_pi_new_US >= 0"]}, "J_pi_new_US is for policies.*J_pi_new_IS"),
    "table": (
        twelve,
        {
            "model": table_and_policy()[0],
            "constraints": ["J_pi_new_IS >= 0", "J_pi_new_IS <= 9"],
            "deltas": [0.1, 0.1],
        },
        r"a vector.*\(9, 4\)",
    ),
    "gamma": (twelve, {"gamma": None}, "gamma must be.*got None"),
    "gamma above": (twelve, {"gamma": 1.5}, "gamma must be.*1.5"),
    "deltas": (twelve, {"deltas": [0.1, 0.1]}, "1 constraints need as many deltas"),
    "objective": (twelve, {"primary_objective": "DR"}, "'IS', 'PDIS', 'WIS'.*'DR'"),
    "start": (twelve, {"initial_solution": np.zeros(35)}, r"\(36,\).*\(35,\)"),
    "start of no numbers": (twelve, {"initial_solution": "zeros"}, "numbers.*'zeros'"),
    "start not finite": (twelve, {"initial_solution": np.full(36, np.nan)}, "36 not finite"),
    "batches": (twelve, {"batch_size": 5}, "both batch_size and n_epochs"),
    "safety batches": (twelve, {"batch_size_safety": 5}, "rows_per_chunk"),
    "misspelt": (twelve, {"num_iter": 5}, "no argument 'num_iter'.*num_iters"),
    "gradient": (twelve, {"custom_primary_gradient_fn": len}, "reads none for episodes"),
    "optimizer": (
        twelve,
        {"optimization_technique": "barrier_function", "optimizer": "Powell"},
        "Powell.*CMA-ES",
    ),
    "fraction": (twelve, {"frac_data_in_safety": 1.5}, "frac_data_in_safety.*1.5"),
    "constraint": (twelve, {"constraints": ["J_pi_new_DR >= 0"]}, "J_pi_new_DR.*J_pi_new_"),
    "half": (twelve, {"candidate_dataset": dataset()}, "go together"),
    "data": (lambda: None, {}, "RLDataSet, got NoneType"),
    "policy": (twelve, {"model": nn.Linear(9, 4)}, "SeldonianPolicy"),
    "groups": (lambda: dataset(episodes(12), np.eye(2)), {}, "12 episodes, got 2"),
    "gamma a word": (twelve, {"gamma": "0.9"}, "gamma must be.*'0.9'"),
    "gamma a flag": (twelve, {"gamma": True}, "gamma must be.*True"),
    "gamma listed": (twelve, {"gamma": [0.9]}, "gamma must be"),
    "gamma of the model": (
        twelve,
        {"gamma": None, "model": RL_model(table_and_policy()[1], {"gamma": "0.9"})},
        "gamma must be.*'0.9'",
    ),
    "rewards of objects": (
        lambda: changed(rewards=lambda r: r.astype(object)),
        {},
        "rewards must be real.*object",
    ),
    "rewards that are missing": (
        lambda: changed(rewards=lambda r: np.full(r.shape, None)),
        {},
        "rewards must be real",
    ),
    "rewards in words": (lambda: changed(rewards=lambda r: r.astype(str)), {}, "rewards must be real"),
    "complex rewards": (lambda: changed(rewards=lambda r: r + 0j), {}, "rewards must be real.*complex"),
    "complex alternates": (
        lambda: changed(alt_rewards=lambda r: r + 0j),
        {},
        "alt_rewards must be real.*complex",
    ),
    "columns of rewards": (
        lambda: dataset(
            [Episode(e.observations, e.actions, e.rewards[:, None], e.action_probs) for e in episodes(12)]
        ),
        {},
        "rewards must be real",
    ),
    "another statistic": (twelve, {"constraints": ["PR >= 0.5"]}, "statistic of reinforcement learning"),
    "part of a name": (twelve, {"constraints": ["J_pi_new >= 0.5"]}, "did you mean 'J_pi_new_(IS|WIS|PDIS)'"),
    "an additional number": (
        twelve,
        {"additional_datasets": {"J_pi_new_IS >= 0": {"J_pi_new_IS": 3}}},
        "dictionary with 'dataset'.*got 3",
    ),
    "few additional episodes": (
        twelve,
        {"additional_datasets": {"J_pi_new_IS >= 0": {"J_pi_new_IS": {"dataset": dataset(episodes(6))}}}},
        "J_pi_new_IS looks at 2 of the 2 episodes of the candidate data",
    ),
    "one episode": (
        lambda: dataset(episodes(1)),
        {},
        "J_pi_new_IS >= 0.*0 of the 0 episodes of the candidate data",
    ),
    "a small batch": (
        twelve,
        {"batch_size": 4, "n_epochs": 1},
        "4 of the 4 episodes of the candidate data's batch 0",
    ),
}
OF_M = {"constraints": ["(J_pi_new_IS | [M]) >= 0"]}


def in_group(*chosen):
    """Thirty episodes, of which these are in the group."""
    return dataset(groups=np.isin(np.arange(30)[:, None], chosen).astype(float) * [1, 0])


WRONG.update(
    {
        "groups listed": (
            lambda: dataset(groups=np.ones((30, 2)).tolist()),
            OF_M,
            r"array of shape \(30, 2\).*got list",
        ),
        "groups of one axis": (lambda: dataset(groups=np.ones(30)), OF_M, r"\(30, 2\).*got shape \(30,\)"),
        "groups without a column": (lambda: dataset(groups=np.ones((30, 1))), OF_M, r"got shape \(30, 1\)"),
        "groups by halves": (
            lambda: dataset(groups=np.full((30, 2), 0.5)),
            OF_M,
            r"J_pi_new_IS \| \[M\] looks at 0 of the 12 episodes of the candidate data .*a 1 in the column",
        ),
        "a small group": (
            lambda: in_group(0, 1, 2, 3, *range(12, 30)),
            OF_M,
            "4 of the 12 episodes of the candidate",
        ),
        "a small group kept": (
            lambda: in_group(*range(12), 20),
            OF_M,
            "1 of the 18 episodes of the safety data",
        ),
        "nobody kept": (lambda: in_group(*range(12)), OF_M, "0 of the 18 episodes of the safety data"),
        "few of a group in a batch": (
            lambda: in_group(*range(0, 30, 2)),
            {**OF_M, "batch_size": 6, "n_epochs": 1},
            "3 of the 6 episodes of the candidate data's batch 0",
        ),
    }
)


@pytest.mark.parametrize("case", WRONG)
def test_a_specification_that_does_not_fit_is_refused_before_the_engine_starts(case):
    data, options, words = WRONG[case]
    _, policy, _ = table_and_policy()
    arguments = {
        "model": policy,
        "constraints": ["J_pi_new_IS >= 0"],
        "deltas": [0.1],
        "gamma": 0.9,
        **options,
    }
    with pytest.raises((SpecError, PolicyError), match=f"(?s){words}"):
        rl_spec(data(), **arguments)


def test_what_goes_wrong_within_the_engine_is_no_trial_that_failed():
    _, policy, _ = table_and_policy()
    spec = rl_spec(twelve(), policy, ["J_pi_new_IS >= 0"], [0.1], gamma=0.9, num_iters=2)
    spec.dataset.episodes[2].actions[:] = 7
    with pytest.raises(GradbridgeError, match="0 to 3") as caught:
        SeldonianAlgorithm(spec).run()
    assert not isinstance(caught.value, (ValueError, ZeroDivisionError))


def test_groups_that_are_large_enough_are_taken():
    _, policy, _ = table_and_policy()
    spec = rl_spec(
        in_group(*range(5, 20)), policy, ["(J_pi_new_IS | [M]) >= 0"], [0.1], gamma=0.9, num_iters=2
    )
    algorithm = SeldonianAlgorithm(spec)
    algorithm.run()
    assert np.isfinite(algorithm.cs_result["g_vals"]).all()  # a bound, whether or not the safety test passes
    assert len(algorithm.cs_result["candidate_solution"]) == 36


@pytest.mark.parametrize("objective", ["PDIS", "of the user"])
@pytest.mark.parametrize("limit", [-9, 900])
def test_the_same_lines_twice_give_the_same_and_leave_the_policy_where_it_was(objective, limit):
    _, policy, preferences = table_and_policy()

    def first_episodes_weight(model, theta, episodes, **kwargs):
        e = episodes[0]
        return model.get_probs_from_observations_and_actions(theta, e.observations, e.actions, None).sum()

    found = []
    for _ in range(2):
        spec = rl_spec(
            dataset(),
            policy,
            [f"J_pi_new_IS >= {limit}"],
            [0.1],
            gamma=0.9,
            num_iters=3,
            primary_objective=objective if objective == "PDIS" else first_episodes_weight,
        )
        algorithm = SeldonianAlgorithm(spec)
        algorithm.run()
        found.append(algorithm.cs_result["f_vals"])
        np.testing.assert_array_equal(policy.get_params(), preferences.T.ravel())
    np.testing.assert_array_equal(*found)


def test_an_objective_that_fails_leaves_a_policy_that_plays_and_is_taken_again():
    _, policy, preferences = table_and_policy()

    def fails(model, theta, episodes, **kwargs):
        e = episodes[0]
        probs = model.get_probs_from_observations_and_actions(theta, e.observations, e.actions, None)
        return probs.sum() * {}["weight"]

    spec = rl_spec(
        twelve(), policy, ["J_pi_new_IS >= 0"], [0.1], gamma=0.9, num_iters=2, primary_objective=fails
    )
    with pytest.raises(KeyError):
        SeldonianAlgorithm(spec).run()
    np.testing.assert_array_equal(policy.get_params(), preferences.T.ravel())
    assert type(policy.get_prob_this_action(2, 1)) is float
