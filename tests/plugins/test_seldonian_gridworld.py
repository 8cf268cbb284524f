"""The gridworld story: what it promises holds in the environment itself, solved exactly, by margins that last."""

import functools

import matplotlib.image
import numpy as np
import pytest

pytest.importorskip("seldonian")
pytest.importorskip("torch")

import gradbridge
from gradbridge_seldonian.demo.gridworld import GAMMA, START, Shore, gridworld
from gradbridge_seldonian.demo.story import Setting


def exact(table):
    """The expected discounted (return, alternate return) of a policy (9, 4), by solving Bellman's equation."""
    transitions, rewards = np.zeros((9, 9)), np.zeros((9, 2))
    environment = Shore()
    for cell in range(8):  # the goal ends the episode
        for action in range(4):
            environment.reset()
            environment.state = cell
            reward = environment.transition(action)
            transitions[cell, environment.state] += table[cell, action]
            rewards[cell] += table[cell, action] * np.array(reward)
    return np.linalg.solve(np.eye(9) - GAMMA * transitions, rewards)[START]


def test_the_constrained_policy_keeps_its_promises_and_the_unconstrained_one_wades(tmp_path):
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    ticks = []
    story = gridworld(
        Setting(functools.partial(gradbridge.build, backend="torch"), lambda: ticks.append(1), False)
    )
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    constrained, unconstrained = story.outcomes
    assert story.is_good
    assert constrained.passed
    assert not unconstrained.passed
    assert len(ticks) == 2 * 60
    assert constrained.forwards == unconstrained.forwards == 60
    assert max(constrained.bounds) < -0.08
    assert unconstrained.bounds[1] > 0.6
    for outcome in (constrained, unconstrained):
        np.testing.assert_allclose(outcome.predictions.sum(1), 1, rtol=1e-12)
        truth = exact(outcome.predictions)
        assert (np.abs(truth - outcome.returns) < 4 * outcome.errors + 1e-3).all()
    gained, wet = exact(constrained.predictions)
    assert gained > 0.6
    assert wet > -0.12
    for what, draw in story.pictures.items():
        pixels = matplotlib.image.imread(draw(tmp_path / f"{what}.png"))[..., :3].reshape(-1, 3)
        assert len(np.unique(pixels, axis=0)) > 50
