"""What a program has switched on in torch around a bridge: transforms, modes, tracers. Its numbers are the same."""

from contextlib import contextmanager, nullcontext

import autograd.numpy as np
import numpy as onp
import pytest
from autograd import grad, hessian_vector_product, make_vjp

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.errors import GuestError  # noqa: E402

X = onp.random.default_rng(0).normal(size=(5, 3))


class Net(nn.Module):
    """Parameters, one of them unused, a buffer, and a tensor that is made in the forward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.register_buffer("shift", torch.ones(2, dtype=torch.float64))

    def forward(self, x):
        return self.net(x) * (1 + torch.arange(2)) + self.shift


def figures(f):
    p, v = f.params, onp.ones(f.params.size)
    loss = lambda q: np.sum(f(q, X) ** 2)
    return (
        f(p, X),
        grad(loss)(p),
        hessian_vector_product(loss)(p, v),
        f.jacobian(p, X),
        f.jvp(p, X, tangent=v),
        f.output_spec(X).shape,
    )


class Doubling(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_sum = func in (torch.nn.functional.linear, torch.tanh, torch.Tensor.add)
        return 2 * result if is_sum else result


class Refusing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise ZeroDivisionError


@contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


def within(context):
    def run(work):
        with context():
            work()

    return run


def constant(work):
    return lambda z: (work(), (z**2).sum())[1]


SURROUNDINGS = {
    "grad": lambda work: torch.func.grad(constant(work))(torch.ones(3)),
    "vmap": lambda work: torch.func.vmap(constant(work))(torch.ones(3)),
    "jvp": lambda work: torch.func.jvp(constant(work), (torch.ones(3),), (torch.ones(3),)),
    "hessian": lambda work: torch.func.hessian(constant(work))(torch.ones(3)),
    "make_fx": lambda work: make_fx(constant(work))(torch.ones(3)),
    "jit.trace": lambda work: torch.jit.trace(constant(work), (torch.ones(3),)),
    "fake tensors": within(FakeTensorMode),
    "dispatch mode": within(Refusing),
    "function mode": within(Doubling),
    "dual level": within(torch.autograd.forward_ad.dual_level),
    "anomaly": within(torch.autograd.detect_anomaly),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bridged", ["before", "inside"])
@pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_a_host_program_within_has_the_numbers_that_it_has_without(surroundings, bridged):
    net = Net()
    f, found = gb.bridge(net), []
    expected = figures(f)
    surroundings(lambda: found.append(figures(f if bridged == "before" else gb.bridge(net))))
    for ours, truth in zip(found[0], expected):
        onp.testing.assert_allclose(ours, truth, rtol=1e-12)


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STEPS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "lossy hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: 0 * t, lambda t: t),
    "default dtype": lambda: default_dtype(torch.float16),
    "default device": lambda: default_device("meta"),
    "deterministic": deterministic,
    "anomaly": torch.autograd.detect_anomaly,
    "fake tensors": FakeTensorMode,
    "dispatch mode": Refusing,
    "function mode": Doubling,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", ["evaluation", "first pull", "second evaluation", "second pull"])
@pytest.mark.parametrize("surroundings", STEPS.values(), ids=STEPS)
def test_each_step_alone_has_the_numbers_that_it_has_without(surroundings, step):
    f = gb.bridge(Net())
    p, v = f.params, onp.ones(f.params.size)

    def steps(within):
        with surroundings() if within == "evaluation" else nullcontext():
            pull, value = make_vjp(f)(p, X)
        with surroundings() if within == "first pull" else nullcontext():
            gradient = pull(onp.cos(value))
        with surroundings() if within == "second evaluation" else nullcontext():
            again, slope = make_vjp(grad(lambda q: np.sum(np.sin(f(q, X)))))(p)
        with surroundings() if within == "second pull" else nullcontext():
            return value, gradient, slope, again(v)

    for ours, truth in zip(steps(step), steps(None)):
        onp.testing.assert_allclose(ours, truth, rtol=1e-12)


def test_the_default_device_is_that_of_when_it_was_bridged():
    class Where(nn.Module):
        def forward(self, x):
            return x + float(torch.zeros(1).device.type == "meta")

    here = gb.bridge(Where())
    with default_device("meta"):
        there = gb.bridge(Where())
        assert here(onp.empty(0), onp.zeros(1)) == 0
        assert there(onp.empty(0), onp.zeros(1)) == 1
    assert here(onp.empty(0), onp.zeros(1)) == 0
    assert there(onp.empty(0), onp.zeros(1)) == 1
    assert torch.get_default_device() == torch.device("cpu")


def test_transforms_and_modes_are_there_again_afterwards():
    f = gb.bridge(Net())

    def inside(z):
        f(f.params, X)
        with Doubling():
            f(f.params, X)
            return torch.tanh(z).sum()

    onp.testing.assert_allclose(torch.func.grad(inside)(torch.zeros(3)), 2 * onp.ones(3))


@pytest.mark.filterwarnings("ignore")
def test_a_call_within_a_compiled_function_has_its_numbers():
    f, found = gb.bridge(Net(), audit="off"), []
    expected = f(f.params, X)
    torch.compile(constant(lambda: found.append(f(f.params, X))), backend="eager")(torch.ones(3))
    onp.testing.assert_allclose(found[0], expected, rtol=1e-12)


def test_what_a_transform_differentiates_is_followed():
    f = gb.bridge(Net())
    z = torch.tensor(X)
    found = torch.func.grad(lambda z: f(f.params, z).sin().sum())(z)
    onp.testing.assert_allclose(found, grad(lambda x: np.sum(np.sin(f(f.params, x))))(X), rtol=1e-12)


def test_a_call_within_a_symbolic_trace_is_refused_in_its_words():
    f = gb.bridge(Net())
    with pytest.raises(GuestError, match=r"while torch\.fx traces the program around it.*compute it before"):
        torch.fx.symbolic_trace(constant(lambda: f(f.params, X)))


def test_what_steers_a_checkpoint_around_a_call_goes_on_as_it_came():
    from torch.utils.checkpoint import _StopRecomputationError

    class Stopping(nn.Module):
        def forward(self, x):
            raise _StopRecomputationError

    f = gb.bridge(Stopping())
    for call in (lambda p: f(p, X), grad(lambda p: np.sum(f(p, X)))):
        with pytest.raises(_StopRecomputationError):
            call(f.params)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, SystemExit])
def test_interrupts_go_on_as_they_came_and_leave_the_bridge_whole(kind):
    class Fussy(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x):
            if x[0, 0] > 5:
                raise kind
            return (x * self.w) ** 2

    f = gb.bridge(Fussy())
    with pytest.raises(kind):
        grad(lambda p: np.sum(f(p, X + 9)))(f.params)
    onp.testing.assert_allclose(grad(lambda p: np.sum(f(p, X)))(f.params), 2 * (X**2).sum(0))
    assert torch.is_grad_enabled()


@torch.library.custom_op("gradbridge_tests::gradient", mutates_args=())
def gradient_within(params: torch.Tensor) -> torch.Tensor:
    f = gb.bridge(Net(), audit="off")
    return torch.from_numpy(grad(lambda p: np.sum(np.sin(f(p, X))))(params.numpy()))


def test_a_gradient_within_an_operation_of_torchs_library_is_no_zero():
    f = gb.bridge(Net())
    expected = grad(lambda p: np.sum(np.sin(f(p, X))))(f.params)
    assert onp.abs(expected).max() > 0.1
    onp.testing.assert_allclose(gradient_within(torch.tensor(f.params)), expected, rtol=1e-12)
    assert torch.ones(1, requires_grad=True).mul(2).requires_grad


@pytest.mark.parametrize("options", [{}, {"rows_per_chunk": 2}, {"reuse": 2}], ids=str)
def test_the_very_first_call_of_a_torch_guest_may_be_one_that_torch_compiles(options):
    f = gb.bridge(Net(), **options)
    expected = grad(lambda p: np.sum(np.sin(gb.bridge(Net())(p, X))))(f.params)
    p = torch.tensor(f.params, requires_grad=True)
    program = torch.compile(lambda p, x: torch.sin(f(p, x)).sum(), fullgraph=True, backend="aot_eager")
    program(p, torch.tensor(X)).backward()
    onp.testing.assert_allclose(p.grad, expected, rtol=1e-12)
