"""Episodes in the real engine: estimates, bounds and candidate selection of bridged policies beside the engine's table."""

import copy
import pickle

import numpy as np
import pytest
import scipy.stats
from autograd import grad

pytest.importorskip("seldonian")
torch = pytest.importorskip("torch")
from gridworld_episodes import COLUMNS, dataset, episodes, table_and_policy  # noqa: E402
from seldonian.dataset import Episode, RLDataSet, RLMetaData  # noqa: E402
from seldonian.models import objectives as engine_objectives  # noqa: E402
from seldonian.parse_tree.parse_tree import make_parse_trees_from_constraints  # noqa: E402
from seldonian.RL.Agents.Discrete_Random_Agent import Discrete_Random_Agent  # noqa: E402
from seldonian.RL.Agents.Policies.Softmax import Softmax as EngineSoftmax  # noqa: E402
from seldonian.RL.environments.gridworld import Gridworld  # noqa: E402
from seldonian.RL.environments.n_step_mountaincar import N_step_mountaincar  # noqa: E402
from seldonian.RL.RL_model import RL_model  # noqa: E402
from seldonian.RL.RL_runner import run_trial_given_agent_and_env  # noqa: E402
from seldonian.seldonian_algorithm import SeldonianAlgorithm  # noqa: E402
from seldonian.spec import RLSpec  # noqa: E402
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge_seldonian import Gaussian, SeldonianPolicy, Softmax, rl_spec  # noqa: E402
from gradbridge_seldonian.reinforcement.estimates import ESTIMATES, Estimate  # noqa: E402

RNG = np.random.default_rng(4)
KINDS = list(ESTIMATES)


class FlatTable(EngineSoftmax):
    """The engine's table with a vector of parameters: its optimizer takes no matrix under two constraints."""

    def set_new_params(self, new_params):
        super().set_new_params(new_params.reshape(9, 4))

    def get_params(self):
        return super().get_params().ravel()


def plain_spec(data, policy, constraints, deltas, objective, **hyperparams):
    """The engine's own specification."""
    return RLSpec(
        data,
        RL_model(policy, {"gamma": 0.9}),
        make_parse_trees_from_constraints(
            constraints,
            deltas,
            regime="reinforcement_learning",
            sub_regime="all",
            columns=data.meta.sensitive_col_names,
        ),
        primary_objective=objective,
        use_builtin_primary_gradient_fn=False,
        optimization_hyperparams={
            "lambda_init": np.full(len(deltas), 0.5),
            "alpha_theta": 0.005,
            "alpha_lamb": 0.005,
            "beta_velocity": 0.9,
            "beta_rmsprop": 0.95,
            "use_batches": False,
            "num_iters": 5,
            "gradient_library": "autograd",
            "hyper_search": None,
            "verbose": False,
            **hyperparams,
        },
    )


def run(spec):
    """(course of the bounds, candidate solution, bounds of the safety test) of the engine's algorithm."""
    algorithm = SeldonianAlgorithm(spec)
    algorithm.set_initial_solution()
    theta = algorithm.run_candidate_selection()
    algorithm.run_safety_test(theta)
    return algorithm.cs_result["g_vals"], theta, [tree.root.upper for tree in algorithm.st_result.values()]


@pytest.mark.parametrize("kind", KINDS)
def test_candidate_selection_and_safety_test_are_those_of_the_engines_table(kind):
    _, policy, preferences = table_and_policy()
    table = FlatTable({}, Gridworld().get_env_description())
    table.set_new_params(preferences)
    constraints, deltas = [f"J_pi_new_{kind} >= 0.2", "J_pi_new_IS_[1] <= 0.4"], [0.1, 0.2]
    theirs = run(
        plain_spec(dataset(), table, constraints, deltas, getattr(engine_objectives, f"{kind}_estimate"))
    )
    with gb.trace() as t:
        ours = run(
            rl_spec(dataset(), policy, constraints, deltas, gamma=0.9, primary_objective=kind, num_iters=5)
        )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(ours[1].reshape(4, 9).T.ravel(), theirs[1], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-10, atol=1e-12)
    # One forward for each iteration, for the trial before and in the safety test; three pulls in an iteration.
    assert t.counts["forward"] <= 5 + 2
    assert t.counts["backward"] == 15


def test_the_engines_own_specification_takes_a_bridged_policy():
    table, policy, _ = table_and_policy()
    args = ["J_pi_new_IS >= 0.2"], [0.1], engine_objectives.IS_estimate
    theirs, ours = (run(plain_spec(dataset(), p, *args, num_iters=3)) for p in (table, policy))
    np.testing.assert_allclose(ours[1].reshape(4, 9).T, theirs[1], rtol=1e-11, atol=1e-12)


def test_mini_batches_groups_and_the_engines_own_policies_work_as_in_the_engine():
    groups = np.eye(2, dtype=int)[np.arange(60) % 2]
    data = dataset(episodes(60), groups)
    constraints, deltas = ["(J_pi_new_PDIS | [M]) - (J_pi_new_PDIS | [F]) <= 0.5"], [0.2]
    table, policy, preferences = table_and_policy()
    batches = {"batch_size": 12, "n_epochs": 2}
    theirs = run(
        plain_spec(
            data, table, constraints, deltas, engine_objectives.PDIS_estimate, **batches, use_batches=True
        )
    )
    table.set_new_params(preferences.copy())
    for ours, shape in ((policy, (4, 9)), (table, (4, 9))):
        made = rl_spec(data, ours, constraints, deltas, gamma=0.9, primary_objective="PDIS", **batches)
        bounds, theta, safe = run(made)
        np.testing.assert_allclose(bounds, theirs[0], rtol=1e-10, atol=1e-12)
        theta = theta.reshape(shape).T if theta.ndim == 1 else theta
        np.testing.assert_allclose(theta, theirs[1], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(safe, theirs[2], rtol=1e-10, atol=1e-12)


def test_cma_es_finds_what_it_finds_in_the_engines_own_specification(monkeypatch, tmp_path):
    pytest.importorskip("cma")
    monkeypatch.chdir(tmp_path)  # it writes a folder of its own
    options = {"maxiter": 2, "seed": 3, "sigma0": 0.1, "verbose": False}
    _, policy, preferences = table_and_policy()
    plain = plain_spec(dataset(), policy, ["J_pi_new_IS >= 0.1"], [0.2], engine_objectives.IS_estimate)
    plain.optimization_technique, plain.optimizer, plain.optimization_hyperparams = (
        "barrier_function",
        "CMA-ES",
        options,
    )
    found = []
    for spec in (
        plain,
        rl_spec(
            dataset(),
            policy,
            ["J_pi_new_IS >= 0.1"],
            [0.2],
            gamma=0.9,
            initial_solution=preferences.T.ravel(),
            optimization_technique="barrier_function",
            optimizer="CMA-ES",
            optimization_hyperparams=options,
        ),
    ):
        policy.set_new_params(preferences.T.ravel())
        algorithm = SeldonianAlgorithm(spec)
        algorithm.set_initial_solution()
        found.append(algorithm.run_candidate_selection())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-10)


def test_mountain_car_with_continuous_observations_runs_and_its_gradient_is_right():
    np.random.seed(0)  # noqa: NPY002
    environment = N_step_mountaincar()
    description = environment.get_env_description()
    made = run_trial_given_agent_and_env(Discrete_Random_Agent(description), environment, 15)
    policy = SeldonianPolicy(
        gb.build("mlp", sizes=[2, 4, 3], backend="torch"),
        encode=lambda o: (o + np.array([0.35, 0.0])) / [0.85, 0.07],
        distribution=Softmax.of(description),
    )
    data = RLDataSet(made, RLMetaData(COLUMNS[:5]))
    spec = rl_spec(
        data, policy, ["J_pi_new_PDIS >= -1000.0"], [0.1], gamma=1.0, primary_objective="PDIS", num_iters=2
    )
    theta = policy.get_params()

    def value(t):
        return Estimate("PDIS")(spec.model, t, made)

    h = 1e-6 * np.eye(theta.size)
    differences = [(value(theta + d) - value(theta - d)) / 2e-6 for d in h]
    np.testing.assert_allclose(grad(value)(theta), differences, rtol=1e-5, atol=1e-5)
    bounds, solution, _ = run(spec)
    assert np.isfinite(bounds).all()
    assert not np.array_equal(solution, theta)


def test_a_gaussian_policy_learns_a_continuous_action_by_ratios_of_densities():
    actions = RNG.normal(size=200)
    behavior = scipy.stats.norm.pdf(actions)
    made = [Episode([[1.0]], [a], [-((a - 0.5) ** 2)], [p]) for a, p in zip(actions, behavior)]
    policy = SeldonianPolicy(nn.Linear(1, 1, bias=False), distribution=Gaussian("parameter"))
    policy.set_new_params([0.0, 0.0])
    spec = rl_spec(dataset(made), policy, ["J_pi_new_IS >= -2.0"], [0.1], gamma=1.0, num_iters=40)
    for mean, log_std in ((0.0, 0.0), (0.3, -0.2)):
        ratios = scipy.stats.norm.pdf(actions, mean, np.exp(log_std)) / behavior
        expected = np.mean(ratios * -((actions - 0.5) ** 2))
        found = spec.primary_objective(spec.model, np.array([mean, log_std]), made)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    bounds, theta, _ = run(spec)
    assert np.isfinite(bounds).all()
    assert 0.05 < theta[0] < 1.0  # towards the best action
    assert theta[1] < -0.05  # and surer of it


def test_episodes_that_change_in_place_are_seen():
    _, policy, preferences = table_and_policy()
    made, theta = episodes(12), preferences.T.ravel()
    spec = rl_spec(dataset(made), policy, ["J_pi_new_IS >= 0.0"], [0.1], gamma=0.9)
    first = spec.primary_objective(spec.model, theta, made)
    made[0].rewards[:] += 1.0
    made[1].action_probs = made[1].action_probs / 2
    expected = engine_objectives.IS_estimate(spec.model, theta, made)
    assert expected != first
    np.testing.assert_allclose(spec.primary_objective(spec.model, theta, made), expected, rtol=1e-12)
    slope = grad(lambda t: spec.primary_objective(spec.model, t, made))(theta)
    of_engine = grad(lambda t: engine_objectives.IS_estimate(spec.model, t, made))(theta)
    np.testing.assert_allclose(slope, of_engine, rtol=1e-11, atol=1e-13)


def test_a_specification_copies_and_pickles_after_a_run_and_leaves_the_start_as_it_was():
    _, policy, preferences = table_and_policy()
    spec = rl_spec(dataset(), policy, ["J_pi_new_WIS >= 0.2"], [0.1], gamma=0.9, num_iters=2)
    _, theta, _ = run(spec)
    for other in (copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
        np.testing.assert_array_equal(other.initial_solution_fn(None), preferences.T.ravel())
        np.testing.assert_array_equal(run(other)[1], theta)
