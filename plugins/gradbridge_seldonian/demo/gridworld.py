"""The story of a policy that must reach its goal and keep its feet dry, in the engine's gridworld.

The way through the water is the shortest. Episodes of a policy that often took it are the only data; from them, by
importance sampling, a network learns another policy. Afterwards every policy is played in the environment itself.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from autograd import value_and_grad
from matplotlib.figure import Figure
from scipy.optimize import minimize
from seldonian.dataset import RLDataSet, RLMetaData
from seldonian.RL.Agents.Parameterized_non_learning_softmax_agent import (
    Parameterized_non_learning_softmax_agent,
)
from seldonian.RL.environments.gridworld import Gridworld
from seldonian.RL.RL_runner import run_trial_given_agent_and_env

from gradbridge_seldonian.demo.story import FREE, Outcome, Setting, Story, forwards, select, weighed
from gradbridge_seldonian.engine import SeldonianAlgorithm
from gradbridge_seldonian.pictures import BLUE, GREY, ORANGE, STYLE, plot_candidate_selection, save
from gradbridge_seldonian.reinforcement.episodes import Episodes
from gradbridge_seldonian.reinforcement.policy import OneHot, SeldonianPolicy, Softmax
from gradbridge_seldonian.reinforcement.specification import rl_spec

GAMMA = 0.9
START, WATER, GOAL = 6, 7, 8
RETURN_AT_LEAST, WATER_AT_LEAST = 0.5, -0.2
CONSTRAINTS = (f"J_pi_new_PDIS >= {RETURN_AT_LEAST}", f"J_pi_new_PDIS_[1] >= {WATER_AT_LEAST}")


class Shore(Gridworld):
    """The engine's gridworld, 3 × 3, entered in the lower left corner, beside the water.

    The reward is 1 at the goal in the lower right; the alternate reward is −1 for a step in the water between them,
    which the engine's subtracts from the reward itself.
    """

    def reset(self) -> None:
        """Back to the start."""
        super().reset()
        self.state = START

    def transition(self, action: int) -> tuple[float, float]:
        """(reward, alternate reward) of a step."""
        super().transition(action)
        return float(self.is_in_goal_state()), -float(self.state == WATER)


@dataclass
class Played(Outcome):
    """An outcome that was played afterwards: fresh episodes in the environment itself.

    Attributes:
        returns: (2,) mean discounted return, of the reward and of the alternate one.
        errors: (2,) their standard errors.
    """

    returns: np.ndarray
    errors: np.ndarray


def gridworld(setting: Setting) -> Story:
    """A network's policy for the gridworld, with a guaranteed return and a guaranteed limit on wading.

    2000 episodes of the engine's softmax agent, 40 % to train on. With probability 0.95 each, the discounted return
    must be at least 0.5 and the discounted number of steps in the water at most 0.2. The network starts as a clone
    of the policy that made the data. Its predictions are (9, 4) probabilities of up, right, down and left.

    The margins with torch: the constrained policy passes by 0.12 and 0.12 from three seeds of the network's weights,
    the unconstrained one fails by 0.82.
    """
    iterations = 6 if setting.quick else 60
    state = np.random.get_state()  # the engine draws from NumPy's global numbers  # noqa: NPY002
    try:
        np.random.seed(0)  # noqa: NPY002
        agent = _behavior()
        data = RLDataSet(_play(agent, 2000), RLMetaData(["episode_index", "O", "A", "R", "pi_b", "R_alt_1"]))
        behavior = _outcome("behavior", agent, data.episodes)
        start = _clone(_policy(setting.build), data.episodes[:800])
        constrained = _run("constrained", setting, data, start, iterations, free=False)
        unconstrained = _run("unconstrained", setting, data, start, iterations, free=True)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    kept = constrained.returns[0] >= RETURN_AT_LEAST and constrained.returns[1] >= WATER_AT_LEAST
    story = Story(
        "Gridworld: to the goal with dry feet",
        CONSTRAINTS,
        (0.05, 0.05),
        [constrained, unconstrained],
        [
            (f"return as played, at least {RETURN_AT_LEAST} is asked for", lambda o: _measured(o, 0)),
            ("… its lower bound in the safety test", lambda o: f"{RETURN_AT_LEAST - o.bounds[0]:.3f}"),
            (f"steps in the water as played, at most {-WATER_AT_LEAST}", lambda o: _measured(o, 1)),
            ("… its upper bound in the safety test", lambda o: f"{o.bounds[1] - WATER_AT_LEAST:.3f}"),
            ("guest forwards per iteration", forwards),
        ],
        "1200 safety episodes, 1000 fresh ones of each policy",
        [
            f"Learnt from episodes of another policy alone, with return {behavior.returns[0]:.3f} and "
            f"{-behavior.returns[1]:.3f} steps in the water (discounted by {GAMMA} a step). What was played is given with "
            f"one standard error; each bound holds with probability 0.95, so what was played may lie beyond it."
        ],
        is_good=setting.quick or bool(constrained.passed and kept),
    )
    story.pictures["candidate_selection"] = lambda path: plot_candidate_selection(
        constrained.selection,
        path,
        title=story.title,
        objective="minus the estimated return",
        constraints=CONSTRAINTS,
    )
    story.pictures["policies"] = lambda path: plot_policies(
        story.title, (behavior, constrained, unconstrained), path
    )
    return story


def _measured(outcome: Any, which: int) -> str:
    """A cell: a mean of the fresh episodes, with its standard error."""
    return f"{abs(outcome.returns[which]):.3f} ± {outcome.errors[which]:.3f}"


def _behavior() -> Any:
    """The engine's agent, which likes to go right, up from the lower left and down on the right."""
    agent = Parameterized_non_learning_softmax_agent(Shore().get_env_description(), {})
    preferences = np.zeros((9, 4))
    for cell, actions in {6: (0, 1), 3: (0, 1), 4: (1,), 0: (1,), 1: (1,), 2: (2,), 5: (2,), 7: (1,)}.items():
        preferences[cell, actions] = 1.5
    preferences[START, 0] += 0.7
    agent.set_new_params(preferences)
    return agent


def _policy(build: Callable[..., Any]) -> SeldonianPolicy:
    network = build("mlp", sizes=[9, 16, 4], seed=0)
    return SeldonianPolicy(network, encode=OneHot(9), distribution=Softmax.of(Shore().get_env_description()))


def _play(agent: Any, count: int) -> list[Any]:
    episodes: list[Any] = run_trial_given_agent_and_env(agent, Shore(), count)
    return episodes


def _clone(policy: SeldonianPolicy, episodes: list[Any]) -> np.ndarray:
    """Parameters (P,) under which the actions of the episodes are most probable."""
    joined = Episodes(episodes)

    def surprise(theta: Any) -> Any:
        return -policy.log_probs(theta, joined.observations, joined.actions).sum() / len(joined.actions)

    return np.asarray(
        minimize(
            value_and_grad(surprise),
            policy.get_params(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 60},
        ).x
    )


def _run(name: str, setting: Setting, data: Any, start: np.ndarray, iterations: int, free: bool) -> Played:
    policy = _policy(setting.build)

    def spec(constraints: tuple[str, ...], free: bool) -> Any:
        return rl_spec(
            data,
            policy,
            constraints,
            [0.05, 0.05],
            gamma=GAMMA,
            primary_objective="WIS",
            initial_solution=start,
            num_iters=iterations,
            **weighed(free, 0.5, 0.2),
        )

    relaxed = tuple(f"{constraint.split(' ')[0]} >= -{FREE}" for constraint in CONSTRAINTS)
    chosen = spec(relaxed if free else CONSTRAINTS, free)
    theta, record, guest_forwards = select(name, chosen, setting.tick)
    judge = SeldonianAlgorithm(spec(CONSTRAINTS, free=False))
    passed, _ = judge.run_safety_test(theta)
    policy.set_new_params(theta)
    played = _outcome(name, policy, _play(policy, 1000))
    played.theta, played.passed, played.selection = theta, bool(passed), record
    played.bounds = [float(tree.root.upper) for tree in judge.st_result.values()]
    played.loss = float(judge.evaluate_primary_objective("safety_test", theta))
    played.forwards = guest_forwards
    return played


def _outcome(name: str, agent: Any, episodes: list[Any]) -> Played:
    joined = Episodes(episodes)
    returns = np.stack([joined.returns(GAMMA), joined.returns(GAMMA, 1)])
    table = np.array([[agent.get_prob_this_action(cell, action) for action in range(4)] for cell in range(9)])
    errors = returns.std(1, ddof=1) / np.sqrt(len(episodes))
    return Played(name, np.empty(0), False, [], {}, float("nan"), 0, table, returns.mean(1), errors)


def plot_policies(title: str, outcomes: tuple[Played, Played, Played], path: Any) -> pathlib.Path:
    """Draw what each policy does in each cell, and its return and steps in the water, as played.

    Args:
        title: of the picture.
        outcomes: of the policy that made the data, the constrained and the unconstrained one.
        path: the PNG to write.

    Returns:
        The path written.
    """
    shown = list(zip(outcomes, (GREY, BLUE, ORANGE)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 9), layout="constrained")
        figure.suptitle(title, fontsize=17, fontweight="bold")
        grids, bars = figure.subfigures(2, 1, height_ratios=[1.1, 1])
        for axes, (outcome, color) in zip(grids.subplots(1, 3), shown):
            _draw_policy(axes, outcome, color)
        measures = (
            ("discounted return", 1, RETURN_AT_LEAST, "at least"),
            ("discounted steps in the water", -1, -WATER_AT_LEAST, "at most"),
        )
        for i, (axes, (label, sign, limit, word)) in enumerate(zip(bars.subplots(1, 2), measures)):
            names, values = [o.name for o, _ in shown], [sign * o.returns[i] for o, _ in shown]
            axes.bar(names, values, yerr=[2 * o.errors[i] for o, _ in shown], capsize=5, width=0.6,
                     color=[color for _, color in shown])  # fmt: skip
            axes.axhline(limit, color="black", linestyle="--", linewidth=1.5)
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}  # over the dashed line
            for x, (value, (outcome, _)) in enumerate(zip(values, shown)):
                top = value + 2 * outcome.errors[i] + 0.03
                axes.text(x, top, f"{value:.2f}", ha="center", va="bottom", bbox=paper)
            axes.set_ylim(0, 1.2 * max(*values, limit))
            axes.set_title(f"{label}\n(dashed: {word} {limit:g} is asked for)")
        tests = ", ".join(f"{o.name} {'passed' if o.passed else 'FAILED'}" for o in outcomes[1:])
        figure.supxlabel(
            f"as played: 1000 fresh episodes, bars of 2 standard errors. Safety test: {tests}",
            fontsize=12,
            color=GREY,
        )
        return save(figure, path)


def _draw_policy(axes: Any, outcome: Any, color: str) -> None:
    """Arrows as long as the probabilities of the actions."""
    axes.set_title(outcome.name)
    axes.set(xlim=(-0.5, 2.5), ylim=(2.5, -0.5), xticks=[], yticks=[], aspect="equal")
    for side in axes.spines.values():
        side.set_visible(True)
    for line in (0.5, 1.5):
        axes.axhline(line, color=GREY, linewidth=0.8)
        axes.axvline(line, color=GREY, linewidth=0.8)
    for cell, fill, word in (
        (START, "white", "start"),
        (WATER, "#BFE3F7", "water"),
        (GOAL, "#FFF2CC", "goal"),
    ):
        x, y = cell % 3, cell // 3
        axes.add_patch(matplotlib.patches.Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=fill, zorder=0))
        axes.text(x - 0.45, y + 0.45, word, ha="left", va="bottom", fontsize=11, color=GREY)
    for cell, probabilities in enumerate(outcome.predictions):
        if cell == GOAL:
            continue
        for probability, (dx, dy) in zip(probabilities, ((0, -1), (1, 0), (0, 1), (-1, 0))):
            if probability > 0.05:
                axes.annotate(
                    "",
                    xy=(cell % 3 + 0.45 * probability * dx, cell // 3 + 0.45 * probability * dy),
                    xytext=(cell % 3, cell // 3),
                    arrowprops={
                        "arrowstyle": "-|>",
                        "color": color,
                        "linewidth": 2.5,
                        "mutation_scale": 6 + 14 * probability,
                        "shrinkA": 0,
                        "shrinkB": 0,
                    },
                )
