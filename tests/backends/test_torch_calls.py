"""Calls of torch modules are pure: they do not see each other, in flight or in threads, nor change the module."""

import copy
import pickle
import threading
import warnings

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, jacobian, make_vjp

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import (  # noqa: E402
    GradbridgeWarning,
)

RNG = onp.random.default_rng(0)


def test_two_models_two_params_two_inputs_in_flight_from_eight_threads_in_any_order(mlp):
    models = [mlp(seed=0), mlp(seed=1)]
    bridges = [gb.bridge(m) for m in models]
    points = [
        (b, b.params * s, RNG.normal(size=(3, 3))) for b in bridges for s in (1.0, 2.0) for _ in range(2)
    ]
    alone = [make_vjp(b)(p, X)[0](onp.ones((3, 2))) for b, p, X in points]
    wrong = []

    def work(seed):
        order = onp.random.default_rng(seed).permutation(len(points))
        for _ in range(20):
            pulls = {i: make_vjp(points[i][0])(points[i][1], points[i][2])[0] for i in order}
            wrong.extend(i for i in order[::-1] if not onp.array_equal(pulls[i](onp.ones((3, 2))), alone[i]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_one_pullback_may_be_pulled_from_eight_threads(mlp):
    f = gb.bridge(mlp())
    pull, value = make_vjp(f)(f.params, RNG.normal(size=(20, 3)))
    v = RNG.normal(size=value.shape)
    alone, found = pull(v), []
    threads = [threading.Thread(target=lambda: found.extend(pull(v) for _ in range(20))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(onp.array_equal(g, alone) for g in found)
    assert len(found) == 160


def test_the_sum_of_two_calls_has_the_sum_of_their_gradients(mlp):
    module = mlp((2, 2, 1))
    f = gb.bridge(module)
    X = RNG.normal(size=(4, 2))
    single = grad(lambda p: np.sum(f(p, X)))
    expected = single(f.params) + 2 * single(2 * f.params)
    onp.testing.assert_allclose(grad(lambda p: np.sum(f(p, X) + f(2 * p, X)))(f.params), expected, rtol=1e-13)


def test_changes_of_the_callers_arrays_after_the_call_do_not_matter(mlp):
    f = gb.bridge(mlp())
    p, X = f.params, RNG.normal(size=(4, 3))
    expected = make_vjp(f, (0, 1))(p, X)[0](onp.ones((4, 2)))
    pull, value = make_vjp(f, (0, 1))(p, X)
    p -= 1.0
    X[:] = 7.0
    value[:] = 0.0
    got = pull(onp.ones((4, 2)))
    got[0][:] = 9.0
    again = pull(onp.ones((4, 2)))
    assert onp.array_equal(again[0], expected[0])
    assert onp.array_equal(again[1], expected[1])


def test_the_module_its_gradients_and_its_mode_stay_as_they_were(snapshot):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    net(torch.ones(2, 3)).sum().backward()
    before, grads = snapshot(net), [p.grad.clone() for p in net.parameters()]
    for mode in ("eval", "train"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            f = gb.bridge(net, mode=mode, dtype="float64")
        grad(lambda p: np.sum(f(p, onp.ones((5, 3)) * 2)))(f.params + 1)  # noqa: B023
        f.model(f.params * 2)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads))
    assert net.training


def test_params_are_the_models_present_ones_and_model_makes_a_new_one(mlp):
    net = mlp()
    f = gb.bridge(net)
    with torch.no_grad():
        net[0].weight.add_(1.0)
    assert f.layout.unravel(f.params)["0.weight"][0, 0] == net[0].weight[0, 0].item()
    new = f.model(f.params * 2)
    X = RNG.normal(size=(4, 3))
    onp.testing.assert_allclose(new(torch.tensor(X)).detach().numpy(), f(f.params * 2, X), rtol=1e-14)
    assert new is not net
    assert all(p.requires_grad for p in new.parameters())


def test_bridges_copy_and_pickle(mlp):
    f = gb.bridge(mlp())
    X = RNG.normal(size=(4, 3))
    for twin in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        assert onp.array_equal(twin(f.params, X), f(f.params, X))
        assert onp.array_equal(jacobian(twin)(f.params, X), jacobian(f)(f.params, X))


def test_residuals_do_not_outlive_the_graph(mlp):
    import gc
    import weakref

    f = gb.bridge(mlp((3, 50, 2)))
    seen = []
    evaluate = f.adapter.evaluate

    def spy(*args):
        outputs, residuals = evaluate(*args)
        if residuals is not None:
            seen.append(weakref.ref(residuals.kept.outputs[0]))
        return outputs, residuals

    f.adapter.evaluate = spy
    grad(lambda p: np.sum(f(p, onp.ones((4, 3)))))(f.params)
    gc.collect()
    assert seen
    assert all(ref() is None for ref in seen)


def test_a_notice_says_once_that_a_train_mode_model_is_evaluated_in_eval_mode():
    with pytest.warns(
        GradbridgeWarning,
        match=r"in train mode and has BatchNorm1d, Dropout.*\.eval\(\) on the model to silence",
    ) as caught:
        gb.bridge(nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    assert [notice.filename for notice in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gb.bridge(nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).eval())
        gb.bridge(nn.Linear(1, 1))


def test_tied_parameters_stay_tied_in_the_model_that_comes_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    net[2].weight = net[0].weight
    f = gb.bridge(net, dtype="float64")
    new = f.model(2 * f.params)
    assert new[2].weight is new[0].weight
    X = RNG.normal(size=(3, 2))
    onp.testing.assert_allclose(new(torch.tensor(X)).detach().numpy(), f(2 * f.params, X), rtol=1e-13)


def test_a_replaced_parameter_is_the_present_one():
    net = nn.Linear(1, 1).double()
    f = gb.bridge(net)
    net.weight = nn.Parameter(torch.full((1, 1), 7.0, dtype=torch.float64))
    assert f.params[0] == 7.0


@pytest.mark.parametrize("first", ["call", "gradient", "by the input"])
def test_a_model_that_differentiates_by_its_input_is_given_one_that_it_can(first):
    class Force(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x):
            return torch.autograd.grad((torch.sin(x) * self.w).sum(), x, create_graph=True)[0]

    f, x = gb.bridge(Force()), onp.linspace(-1, 1, 12).reshape(4, 3)
    figures = {
        "call": lambda: (f(f.params, x), onp.cos(x)),
        "gradient": lambda: (
            grad(lambda p: np.sum(f(p, x) ** 2))(f.params),
            2 * (onp.cos(x) ** 2).sum(0),
        ),
        "by the input": lambda: (grad(lambda x: np.sum(f(f.params, x)))(x), -onp.sin(x)),
    }
    for name in (first, *figures):
        onp.testing.assert_allclose(*figures[name](), rtol=1e-12)
