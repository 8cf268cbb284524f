"""Guests of torch that are parts of what torch compiles: what they read from outside, their own tensors, modules of bridges."""

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_programs import assert_same  # noqa: E402

import gradbridge as gb  # noqa: E402

FLOAT64 = torch.float64
SCALE, ARRAY, TENSOR = 1.0, np.ones(2), torch.ones(2, dtype=FLOAT64)


@pytest.fixture(autouse=True)
def fresh():
    global SCALE
    SCALE = Scaled.factor = 1.0
    ARRAY[:], TENSOR[:] = 1.0, 1.0
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def by_number(x):
    return SCALE * torch.sin(x)


def by_array(x):
    return torch.as_tensor(ARRAY)[0] * torch.sin(x)


def by_tensor(x):
    return TENSOR[0] * torch.sin(x)


class Scaled(torch.nn.Module):
    """It has a weight, a buffer, a frozen parameter, and reads a global and an attribute of its class."""

    factor = 1.0

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=FLOAT64))
        self.register_buffer("twice", torch.full((1,), 2.0, dtype=FLOAT64))
        self.halved = torch.nn.Parameter(torch.full((1,), 0.5, dtype=FLOAT64), requires_grad=False)

    def scaled(self, x):
        return SCALE * self.factor * x

    def forward(self, x):
        return self.scaled(torch.sin(x)) * self.weight * self.twice * self.halved


def change(where, value):
    global SCALE
    if where == "number":
        SCALE = value
    elif where == "array":
        ARRAY[:] = value
    elif where == "tensor":
        TENSOR.fill_(value)
    else:
        Scaled.factor = value


READERS = {"number": by_number, "array": by_array, "tensor": by_tensor}


def bridged(where):
    return (
        gb.primitive(READERS[where], backend="torch") if where in READERS else gb.bridge(Scaled()).as_module()
    )


@pytest.mark.parametrize("where", ["number", "array", "tensor", "module"])
def test_a_compiled_program_computes_with_what_its_guest_reads_from_outside_now(where):
    f = bridged(where)
    program = compiled(lambda x: f(x))
    x = torch.linspace(0.1, 1.0, 4, dtype=FLOAT64, requires_grad=True)
    f(x).sum().backward()  # looked at: from now on it is a part of the program
    for value in (1.0, 1.0, 2.0, 3.0, 2.0, *range(4, 12)):  # more often than torch compiles a function anew
        change(where, value)
        y = program(x)
        assert_same([y, *torch.autograd.grad(y.sum(), x)], [value * x.sin(), value * x.cos()])


def test_a_guest_that_reads_from_outside_is_compiled_in_until_that_has_changed_often():
    f, x = bridged("number"), torch.ones(3, dtype=FLOAT64, requires_grad=True)
    f(x).sum().backward()
    tangents = compiled(lambda x: torch.func.jvp(f, (x,), (x,))[1])
    for value in (1.0, 2.0, 3.0):
        change("number", value)
        assert_same(tangents(x.detach()), (value * x * x.cos()).detach())
    change("number", 4.0)
    with pytest.raises(Exception, match="reverse mode alone"):
        tangents(x.detach())


def of_batch_norm():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).double().eval()
    net[1].running_mean.copy_(torch.linspace(-1, 1, 4))
    net[1].running_var.copy_(torch.linspace(1, 2, 4))
    return net


def of_frozen_bias():
    net = torch.nn.Linear(3, 2, dtype=FLOAT64)
    net.bias.requires_grad_(False)
    return net


@pytest.mark.parametrize("make", [of_batch_norm, of_frozen_bias, Scaled])
def test_a_guest_of_torch_has_its_buffers_and_frozen_parameters_in_a_compiled_program(make):
    torch.manual_seed(0)
    net = make()
    f = gb.bridge(net)
    p = torch.tensor(f.params, requires_grad=True)
    weights = [w for w in net.parameters() if w.requires_grad]
    f(p, torch.ones(2, 3, dtype=FLOAT64)).sum().backward()
    program = compiled(lambda p, x: f(p, x))
    for rows in (8, 8, 5):
        x = torch.randn(rows, 3, dtype=FLOAT64)
        y, expected = program(p, x), net(x)
        (found,) = torch.autograd.grad((y**2).sum(), p)
        own = torch.autograd.grad((expected**2).sum(), weights)
        assert_same([y, found], [expected, torch.cat([g.flatten() for g in own])])
    # It is a part, not called back: forward mode works.
    tangents = compiled(lambda p: torch.func.jvp(lambda q: f(q, x), (p,), (p,))[1])(p.detach())
    assert_same(tangents, torch.func.jvp(lambda q: f(q, x), (p.detach(),), (p.detach(),))[1])


FRESH = """
import torch, gradbridge as gb
linear = torch.nn.Linear(3, 2, dtype=torch.float64)
module = gb.bridge(linear).as_module()
program = torch.compile(module, fullgraph=True, backend="aot_eager")
x = torch.ones(8, 3, dtype=torch.float64)
program(x).sum().backward()
with torch.no_grad():
    assert torch.allclose(program(x), linear(x))
assert torch.allclose(program(x[:5]), linear(x[:5]))
module.eval()
assert torch.allclose(program(x[:5]), linear(x[:5]))
assert torch.equal(dict(module.named_parameters())["weight"].grad, torch.full((2, 3), 8.0, dtype=torch.float64))
"""


def test_a_module_of_a_bridge_that_is_compiled_by_itself_is_compiled_anew():
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
