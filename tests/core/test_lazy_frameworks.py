"""A framework that computes only when somebody asks for the numbers fails then, and its errors are ours all the same."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad

import gradbridge as gb
from gradbridge.errors import GuestError
from gradbridge.extend import Framework, FunctionalAdapter, FunctionModel, owned
from gradbridge.protocol import GuestOptions

X = np.array([1.0, 4.0, 9.0])


class Later:
    """An array that is computed when its numbers are asked for."""

    dtype = np.dtype("float64")

    def __init__(self, shape, compute):
        self.shape, self.compute = shape, compute

    def root(self):
        return Later(self.shape, lambda: kernel("sqrt", self.compute(), 0.0))

    def slope(self, other):
        return Later(self.shape, lambda: kernel("rsqrt", self.compute(), 1e-3) * other.compute() / 2)


def kernel(name, numbers, least):
    if (numbers < least).any():
        raise ArithmeticError(f"kernel {name}: lane {int(np.argmin(numbers))} is out of range")
    return np.sqrt(numbers) if name == "sqrt" else 1 / np.sqrt(numbers)


class LaterFramework(Framework):
    def asarray(self, array, dtype):
        own = owned(array, dtype)
        return Later(own.shape, lambda: own)

    def asnumpy(self, native):
        return native.compute()

    def is_array(self, value):
        return isinstance(value, Later)

    def is_inexact(self, native):
        return True

    def cast(self, native, like):
        return native

    def vjp(self, fn, primals):
        return fn(primals), lambda cotangents: [primals[0].slope(cotangents[0])]


def root(x):
    return x.root()


@pytest.fixture
def bridged():
    framework, options = LaterFramework(), GuestOptions(None, None, None, "eval", {})
    return gb.bridge(FunctionalAdapter(framework, FunctionModel(framework, root, options)), audit="off")


def gradient(f):
    return grad(lambda x: anp.sum(f(f.params, x)))


def test_a_lazy_framework_gives_values_and_gradients(bridged):
    assert np.allclose(bridged(bridged.params, X), np.sqrt(X), rtol=1e-15)
    assert np.allclose(gradient(bridged)(X), 0.5 / np.sqrt(X), rtol=1e-15)


@pytest.mark.parametrize(
    ("first", "call", "kernel"),
    [
        (-1.0, lambda f: lambda x: f(f.params, x), "sqrt"),
        (0.0, gradient, "rsqrt"),
        (0.0, lambda f: lambda x: f.jacobian(f.params, x, wrt=1), "rsqrt"),
    ],
    ids=["value", "gradient", "jacobian"],
)
def test_what_a_lazy_framework_raises_late_names_the_model_and_keeps_its_cause(bridged, first, call, kernel):
    said = (
        f"root failed when the numbers of its result were asked for: ArithmeticError: kernel {kernel}: lane 0"
    )
    with pytest.raises(GuestError, match=said) as caught:
        call(bridged)(np.array([first, 4.0, 9.0]))
    assert isinstance(caught.value.__cause__, ArithmeticError)


def test_the_program_of_a_torch_host_meets_the_same_error(bridged):
    torch = pytest.importorskip("torch")
    with pytest.raises(GuestError, match="root failed when the numbers of its result were asked for"):
        bridged(torch.tensor([]), torch.tensor([-1.0, 4.0], requires_grad=True))
