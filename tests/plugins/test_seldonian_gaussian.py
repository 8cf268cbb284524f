"""Gaussian policies over bridged networks: densities beside SciPy's, gradients beside closed forms."""

import autograd.numpy as anp
import numpy as np
import pytest
import scipy.stats
from autograd import grad, jacobian

pytest.importorskip("seldonian")
pytest.importorskip("torch")
from torch import nn

from differences import differences
from gradbridge_seldonian import Gaussian, SeldonianPolicy

RNG = np.random.default_rng(3)


def linear(mean_of=nn.Linear, **kwargs):
    return SeldonianPolicy(mean_of(2, 1, bias=False), **kwargs)


def test_gaussian_densities_are_scipys_and_their_gradients_closed_forms():
    policy = linear(distribution=Gaussian(0.7))
    x, actions, w = RNG.normal(size=(8, 2)), RNG.normal(size=8), np.array([0.4, -1.1])
    policy.set_new_params(w)
    expected = scipy.stats.norm.pdf(actions, x @ w, 0.7)
    np.testing.assert_allclose(
        policy.get_probs_from_observations_and_actions(x, actions), expected, rtol=1e-12
    )
    np.testing.assert_allclose(policy.get_prob_this_action(x[0], actions[0]), expected[0], rtol=1e-12)
    found = jacobian(lambda t: policy.log_probs(t, x, actions))(w)
    np.testing.assert_allclose(found, ((actions - x @ w) / 0.7**2)[:, None] * x, rtol=1e-11)


def test_a_learned_standard_deviation_is_the_last_of_the_parameters():
    policy = linear(distribution=Gaussian("parameter", initial_std=0.5))
    assert policy.get_params().shape == (3,)
    assert policy.get_params()[-1] == np.log(0.5)
    x, actions, theta = RNG.normal(size=(8, 2)), RNG.normal(size=8), np.array([0.4, -1.1, 0.2])
    error, std = actions - x @ theta[:2], np.exp(0.2)
    np.testing.assert_allclose(
        policy.log_probs(theta, x, actions), scipy.stats.norm.logpdf(error, scale=std), rtol=1e-12
    )
    found = jacobian(lambda t: policy.log_probs(t, x, actions))(theta)
    np.testing.assert_allclose(
        found, np.c_[(error / std**2)[:, None] * x, (error / std) ** 2 - 1], rtol=1e-11
    )
    np.testing.assert_allclose(policy.native(theta).weight.detach().numpy(), [[0.4, -1.1]])


def test_a_network_may_give_the_standard_deviation_of_each_coordinate():
    policy = SeldonianPolicy(nn.Linear(3, 4), distribution=Gaussian("output", dimensions=2))
    x, actions, theta = RNG.normal(size=(5, 3)), RNG.normal(size=(5, 2)), policy.get_params()
    z = x @ theta[:12].reshape(4, 3).T + theta[12:]
    expected = scipy.stats.norm.logpdf(actions, z[:, :2], np.exp(z[:, 2:])).sum(1)
    np.testing.assert_allclose(policy.log_probs(theta, x, actions), expected, rtol=1e-12)

    def total(t):
        return anp.sum(policy.log_probs(t, x, actions))

    np.testing.assert_allclose(grad(total)(theta), differences(total, theta), rtol=1e-6, atol=1e-7)
    assert policy.choose_action(x[0]).shape == (2,)


def test_gaussian_actions_are_drawn_with_their_mean_and_deviation():
    policy = linear(distribution=Gaussian(0.5))
    policy.set_new_params([1.0, 2.0])
    np.random.seed(0)  # noqa: NPY002
    drawn = [policy.choose_action(np.array([1.0, 1.0])) for _ in range(2000)]
    assert all(type(action) is float for action in drawn)
    assert scipy.stats.kstest(drawn, "norm", (3.0, 0.5)).pvalue > 0.01
    np.random.seed(0)  # noqa: NPY002
    assert drawn[0] == policy.choose_action(np.array([1.0, 1.0]))
