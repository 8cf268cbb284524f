"""Fixtures of several files: pytest imports each on its own, so none can import from another."""

import numpy as np
import pytest

from gradbridge import trees
from gradbridge.call_spec import CallSpec


class _Point:
    """One call of an adapter, and derivatives of it: recorded ones, or computed anew."""

    def __init__(self, adapter, inputs, wrt=None):
        self.adapter, self.inputs = adapter, list(inputs)
        self.weights = list(adapter.weights())
        self.wrt = tuple(range(len(self.weights) + len(inputs))) if wrt is None else wrt
        self.spec = CallSpec.of_arrays(len(inputs), 3)
        output, self.residuals = adapter.forward(adapter.update(self.weights), inputs, self.spec, self.wrt)
        self.outputs = trees.flatten(output)[0]

    def pull(self, cotangents, wrt=None):
        return self.adapter.backward(self.residuals, cotangents, self.wrt if wrt is None else wrt)

    def derivative(self, cotangents, recorded, wrt=None):
        """The point of the gradient by `wrt`, as a function of all arguments and the cotangents."""
        wrt = self.wrt if wrt is None else wrt
        twin = self.adapter.pullback(self.spec, wrt, self.residuals if recorded else None)
        return _Point(twin, [*self.inputs, *cotangents], _floating(twin, [*self.inputs, *cotangents]))


def _floating(adapter, inputs):
    count = len(adapter.layout)
    every = [*range(count), *(count + i for i, x in enumerate(inputs) if np.asarray(x).dtype.kind in "fc")]
    return tuple(every)


@pytest.fixture(scope="session", name="Point")
def _point():
    return _Point


@pytest.fixture(scope="session")
def random_like():
    def arrays_like(arrays, seed):
        draw = np.random.default_rng(seed)

        def one(x):
            x = np.asarray(x)
            noise = draw.normal(size=x.shape)
            return noise + 1j * draw.normal(size=x.shape) if x.dtype.kind == "c" else noise

        return [one(x) for x in arrays]

    return arrays_like


@pytest.fixture(scope="session")
def close():
    def arrays_are_close(ours, theirs, rtol=1e-10):
        assert len(ours) == len(theirs)
        for a, b in zip(map(np.asarray, ours), map(np.asarray, theirs)):
            assert a.shape == b.shape
            assert a.dtype.kind == b.dtype.kind
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1e-300, np.abs(b).max(initial=0)))

    return arrays_are_close


@pytest.fixture(scope="session")
def mlp():
    torch = pytest.importorskip("torch")

    def torch_network(sizes=(3, 4, 2), dtype=torch.float64, seed=0):
        torch.manual_seed(seed)
        layers = []
        for a, b in zip(sizes, sizes[1:]):
            layers += [torch.nn.Linear(a, b, dtype=dtype), torch.nn.Tanh()]
        return torch.nn.Sequential(*layers[:-1])

    return torch_network


@pytest.fixture(scope="session")
def snapshot():
    def torch_state(module):
        return {k: v.clone() for k, v in module.state_dict().items()}

    return torch_state
