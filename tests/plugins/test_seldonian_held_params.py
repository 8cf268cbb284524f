"""What a policy holds: parameters that are traced as long as their trace lasts, and numbers to anybody else."""

import copy
import pickle
import threading

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, hessian, jacobian

pytest.importorskip("seldonian")
pytest.importorskip("torch")
from torch import nn

from differences import differences
from gradbridge_seldonian import OneHot, SeldonianPolicy


def test_it_copies_and_pickles_after_a_gradient_and_holds_numbers_then():
    policy = SeldonianPolicy(nn.Linear(4, 3), encode=OneHot(4))
    theta = policy.get_params() + 0.1

    def probability(t):
        policy.set_new_params(t)  # as the engine does, traced
        return policy.get_prob_this_action(2, 1) + 0.0 * anp.sum(policy.get_params())

    np.testing.assert_allclose(
        grad(probability)(theta), differences(probability, theta), rtol=1e-6, atol=1e-9
    )
    grad(probability)(theta)
    np.testing.assert_array_equal(policy.get_params(), theta)
    for other in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        np.testing.assert_array_equal(other.get_params(), theta)
        assert other.get_prob_this_action(2, 1) == policy.get_prob_this_action(2, 1)
        other.set_new_params(theta * 2)
        np.testing.assert_array_equal(policy.get_params(), theta)


def test_parameters_set_and_asked_for_inside_a_trace_are_traced():
    policy = SeldonianPolicy(nn.Linear(1, 2))

    def norm(t):
        policy.set_new_params(t)
        return anp.sum(policy.get_params() ** 2)

    np.testing.assert_array_equal(grad(norm)(np.arange(4.0)), 2 * np.arange(4.0))


def test_after_an_error_within_a_trace_a_policy_holds_numbers():
    policy = SeldonianPolicy(nn.Linear(1, 2))
    theta = np.arange(4.0)

    def fails(t):
        policy.set_new_params(2.0 * t)
        raise KeyError("x")

    for derivative in (grad(fails), hessian(fails), jacobian(fails)):
        with pytest.raises(KeyError):
            derivative(theta)
        assert type(policy.get_params()) is np.ndarray
        np.testing.assert_array_equal(policy.get_params(), 2.0 * theta)
        assert type(policy.get_prob_this_action(1.0, 1)) is float


def test_an_error_of_an_inner_trace_leaves_the_outer_one():
    policy = SeldonianPolicy(nn.Linear(1, 2))

    def fails(t):
        policy.set_new_params(t**2)
        raise KeyError("x")

    def outer(t):
        with pytest.raises(KeyError):
            grad(fails)(t)
        held = policy.get_params()  # of the inner trace's parameters, what the outer one traces
        return anp.sum(grad(lambda s: anp.sum(s**3))(t) + held)

    theta = np.arange(1.0, 5.0)
    np.testing.assert_allclose(grad(outer)(theta), 6 * theta + 2 * theta)
    assert type(policy.get_params()) is np.ndarray


def test_nobody_can_write_into_a_policys_parameters():
    policy = SeldonianPolicy(nn.Linear(1, 2))
    theta = np.arange(4.0)
    policy.set_new_params(theta)
    theta += 1
    policy.get_params()[:] = 9
    np.testing.assert_array_equal(policy.get_params(), np.arange(4.0))


def test_parameters_are_traced_for_another_thread_of_the_same_trace():
    policy = SeldonianPolicy(nn.Linear(1, 2))

    def norm(t):
        policy.set_new_params(t)
        found = []
        worker = threading.Thread(target=lambda: found.append(policy.get_params()))
        worker.start()
        worker.join(60)
        return anp.sum(found[0] ** 2)

    np.testing.assert_array_equal(grad(norm)(np.arange(4.0)), 2 * np.arange(4.0))
