"""Episodes over the engine's gridworld, its table of preferences, and a bridged policy with the same ones."""

import numpy as np
from seldonian.dataset import Episode, RLDataSet, RLMetaData
from seldonian.RL.Agents.Policies.Softmax import Softmax as EngineSoftmax
from seldonian.RL.environments.gridworld import Gridworld
from torch import nn

from gradbridge_seldonian import OneHot, SeldonianPolicy, Softmax

COLUMNS = ["episode_index", "O", "A", "R", "pi_b", "R_alt_1", "R_alt_2"]


def episodes(count=30, longest=12, seed=0, actions=4):
    """Episodes of different lengths over the gridworld's cells and some actions, with two alternate rewards."""
    r = np.random.default_rng(seed)
    made = []
    for length in r.integers(1, longest, count):
        p, alternates = r.uniform(0.2, 0.9, length), r.normal(size=(length, 2))
        cells, taken = r.integers(0, 9, length), r.integers(0, actions, length)
        made.append(Episode(cells, taken, r.normal(0.5, 1, length), p, alternates))
    return made


def dataset(made=None, groups=None, names=("M", "F")):
    meta = RLMetaData(COLUMNS, [] if groups is None else list(names))
    return RLDataSet(episodes() if made is None else made, meta, [] if groups is None else groups)


def table_and_policy():
    description = Gridworld().get_env_description()
    preferences = np.random.default_rng(4).normal(size=(9, 4)) * 0.5
    table = EngineSoftmax({}, description)
    table.set_new_params(preferences.copy())
    policy = SeldonianPolicy(
        nn.Linear(9, 4, bias=False), encode=OneHot(9), distribution=Softmax.of(description)
    )
    policy.set_new_params(preferences.T.ravel())
    return table, policy, preferences
