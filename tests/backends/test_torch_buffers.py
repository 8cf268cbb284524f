"""Buffers of torch modules: lent to each forward, copied only where one is written to."""

import copy
import pickle
import threading

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, value_and_grad

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402

X = onp.random.default_rng(0).normal(size=(6, 3))


class Masked(nn.Module):
    """Reads a buffer, and notes where its memory lies."""

    def __init__(self, size=3):
        super().__init__()
        self.linear = nn.Linear(3, 3, dtype=torch.float64)
        self.register_buffer("mask", torch.ones(size, size, dtype=torch.float64).tril())
        self.seen = []

    def forward(self, x):
        SEEN.append(torch._C._data_address(self.mask))
        return self.linear(x) @ self.mask[:3, :3]


SEEN = []


def test_a_buffer_that_is_only_read_is_never_copied():
    f = gb.bridge(Masked())
    SEEN.clear()
    for scale in (1.0, 2.0):
        grad(lambda p: np.sum(f(p, X) ** 2))(scale * f.params)
    f.jacobian(f.params, X)
    assert len(SEEN) >= 3
    assert len(set(SEEN)) == 1


class Branching(nn.Module):
    """Writes to its buffer where the input says so, which the first call does not."""

    def __init__(self, replace=False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.register_buffer("shift", torch.full((3,), 0.5, dtype=torch.float64))
        self.replace = replace

    def forward(self, x):
        if x[0, 0] > 100:
            if self.replace:
                self.shift = self.shift + 1.0
            else:
                self.shift += 1.0
        return self.weight * (x + self.shift)


@pytest.mark.parametrize("replace", [False, True])
def test_a_write_in_a_branch_that_was_not_met_before_is_not_seen_by_later_calls(replace):
    net = Branching(replace)
    f = gb.bridge(net)
    far = X + 1000.0
    for _ in range(2):
        onp.testing.assert_array_equal(f(f.params, X), X + 0.5)
        value, gradient = value_and_grad(lambda p: np.sum(f(p, far)))(f.params)
        assert onp.isclose(value, (far + 1.5).sum(), rtol=1e-14)
        onp.testing.assert_allclose(gradient, (far + 1.5).sum(0), rtol=1e-14)
    assert torch.equal(net.shift, torch.full((3,), 0.5, dtype=torch.float64))
    for twin in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        onp.testing.assert_array_equal(twin(f.params, X), X + 0.5)


def test_writers_and_readers_in_eight_threads_do_not_see_each_other():
    f = gb.bridge(Branching())
    far, wrong = X + 1000.0, []

    def work(seed):
        for turn in range(60):
            x, shift = (far, 1.5) if (turn + seed) % 2 else (X, 0.5)
            gradient = grad(lambda p: np.sum(f(p, x)))(f.params)  # noqa: B023
            if not onp.allclose(gradient, (x + shift).sum(0), rtol=1e-13):
                wrong.append((seed, turn))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_gradient_reads_the_buffer_as_it_was_in_its_forward():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
            self.register_buffer("count", torch.ones((), dtype=torch.float64))

        def forward(self, x):
            y = self.weight * x * self.count.clone()
            self.count.add_(1)
            return y

    f = gb.bridge(Counting(), mode="train")
    from autograd import make_vjp

    pulls = [make_vjp(f)(f.params, X)[0] for _ in range(3)]
    for calls, pull in reversed(list(enumerate(pulls, 1))):
        onp.testing.assert_allclose(pull(onp.ones_like(X)), calls * X.sum(0), rtol=1e-14)
    assert f.model(f.params).count == 4


def test_frozen_parameters_that_a_forward_writes_to_do_not_reach_the_users_module():
    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
            self.mean = nn.Parameter(torch.zeros(3, dtype=torch.float64), requires_grad=False)
            self.register_buffer("rate", torch.tensor(0.5, dtype=torch.float64))

        def forward(self, x):
            with torch.no_grad():
                self.mean.lerp_(self.weight, self.rate)
            return self.weight * x

    net = Teacher()
    f = gb.bridge(net)
    grad(lambda p: np.sum(f(p, X)))(f.params)
    assert torch.equal(net.mean, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(f.model(f.params).mean, torch.zeros(3, dtype=torch.float64))


def test_sparse_and_strided_buffers_are_lent_too():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
            self.register_buffer("sparse", torch.eye(3, dtype=torch.float64).to_sparse())
            self.register_buffer("turned", torch.arange(9.0, dtype=torch.float64).reshape(3, 3).T)
            self.register_buffer("nothing", None)

        def forward(self, x):
            return (torch.sparse.mm(self.sparse, x.T).T @ self.turned) * self.weight

    f = gb.bridge(Odd())
    turned = onp.arange(9.0).reshape(3, 3).T
    onp.testing.assert_allclose(grad(lambda p: np.sum(f(p, X)))(f.params), (X @ turned).sum(0), rtol=1e-13)


def test_buffers_that_a_forward_writes_to_in_eval_mode_do_not_change_the_function():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("n", torch.zeros(()))

        def forward(self, x):
            self.n += 1
            return x * self.n

    net = Counting().eval()
    f = gb.bridge(net)
    assert f(onp.empty(0), 3.0) == f(onp.empty(0), 3.0) == 3.0
    assert net.n == 0
