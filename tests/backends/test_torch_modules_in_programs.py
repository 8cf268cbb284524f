"""Modules of bridges within programs of torch: hosts, inputs, recordings, several processes."""

import copy
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import gradbridge as gb
from gradbridge.errors import HostError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch_modules import B, Guest, W, X, assert_equal, gradients, layer, of_p, of_x, x64  # noqa: E402


@pytest.fixture
def written():
    """The guest that torch alone is enough for."""
    return Guest("numpy").bridge


def test_without_parameters_it_has_none_and_still_gives_tensors():
    f = gb.primitive(lambda x: {"y": x**2, "n": np.array(3)})
    f.defvjp(lambda ans, x: lambda v: 2 * x * v["y"])
    module = f.as_module()
    assert list(module.parameters()) == []
    assert module.state_dict() == {}
    x = x64.clone().requires_grad_()
    assert_equal(torch.autograd.grad(module(x)["y"].sum(), x), [2 * x64])
    assert_equal([*module(X).values()], [*module(x64).values()])
    assert torch.equal(copy.deepcopy(module)(x64)["y"], x64**2)


def test_a_bridge_for_another_host_makes_a_module_of_tensors():
    f = gb.bridge(layer, params={"b": B, "w": W}, backend="numpy", vjp=(of_p, of_x), host="torch")
    assert_equal([f.as_module()(x64)], [torch.from_numpy(np.tanh(X @ W + B))])
    g = gb.bridge(layer, params={"b": B, "w": W}, backend="numpy", vjp=(of_p, of_x), host="autograd")
    module = g.as_module()
    assert_equal([module(x64)], [torch.from_numpy(np.tanh(X @ W + B))])
    assert_equal([module(X)], [module(x64)])  # NumPy's inputs are data


def test_inputs_that_another_system_differentiates_are_refused(written):
    autograd = pytest.importorskip("autograd")
    module = written.as_module()
    with pytest.raises(HostError, match="two systems that both differentiate"):
        autograd.grad(lambda x: module(x).sum())(X)


@pytest.mark.filterwarnings("ignore")
def test_a_trace_that_would_hold_the_outputs_as_constants_is_refused(written):
    module = nn.Sequential(nn.Identity(), written.as_module())
    with pytest.raises(HostError, match="torch.jit.trace was asked"):
        torch.jit.trace(module, (x64,))
    assert module(x64).shape == (5, 2)


def test_integers_of_a_layout_are_parameters_without_a_gradient():
    def of_p(ans, p, x):
        return lambda v: {"a": (v * x * p["n"]).sum(), "n": np.array(0)}

    tree = {"a": np.array(2.0), "n": np.array(3)}
    f = gb.bridge(lambda p, x: x * p["a"] * p["n"], params=tree, backend="numpy", vjp=(of_p,))
    module = f.as_module(dtype="float32")
    assert (module.a.dtype, module.n.dtype, module.n.requires_grad) == (torch.float32, torch.int64, False)
    module.double()(x64).sum().backward()
    torch.testing.assert_close(module.a.grad, 3 * x64.sum(), rtol=1e-12, atol=0)
    assert module.n.grad is None


def scaled(p, x, shift=0.0, table=None):
    return {"y": p["a"] * x + shift, "more": (p["a"] * table["k"],)}


def test_keywords_trees_of_inputs_and_of_outputs_go_through():
    f = gb.bridge(
        scaled, params={"a": np.array(2.0)}, backend="numpy", vjp=(
            lambda ans, p, x, shift, table: lambda v: {"a": (v["y"] * x).sum() + (v["more"][0] * table["k"]).sum()},
        )
    )  # fmt: skip
    module = f.as_module()
    out = module(x64, shift=1.0, table={"k": torch.arange(3)})
    assert_equal([out["y"], out["more"][0]], [2 * x64 + 1, 2.0 * torch.arange(3).double()])
    (slope,) = gradients(out["y"].sum() + out["more"][0].sum(), module)
    torch.testing.assert_close(slope, x64.sum() + 3)


# Two processes.

DATA_PARALLEL = """
import os, sys
import numpy as np, torch
import torch.distributed as dist
import gradbridge as gb

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)

def of_p(ans, p, x):
    return lambda v: {"b": (v * (1 - ans**2)).sum(0), "w": x.T @ (v * (1 - ans**2))}

def of_x(ans, p, x):
    return lambda v: (v * (1 - ans**2)) @ p["w"].T

r = np.random.RandomState(rank)  # other weights in each: the first one's are sent to all
params = {"b": r.normal(size=2), "w": r.normal(size=(3, 2))}
f = gb.bridge(lambda p, x: np.tanh(x @ p["w"] + p["b"]), params=params, backend="numpy", vjp=(of_p, of_x))
torch.manual_seed(0)
ours = f.as_module()
model = torch.nn.Sequential(torch.nn.Linear(4, 3).double(), ours)
whole = torch.randn(8, 4, dtype=torch.float64)
parallel = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(parallel.parameters(), 0.3)
for step in range(2):
    w = {k: v.detach().clone().requires_grad_() for k, v in model.state_dict().items()}
    native = torch.tanh((whole @ w["0.weight"].T + w["0.bias"]) @ w["1.w"] + w["1.b"])
    expected = dict(zip(w, torch.autograd.grad(native.square().mean(), list(w.values()))))
    optimizer.zero_grad()
    parallel(whole[4 * rank : 4 * rank + 4]).square().mean().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=0, atol=1e-12)
    optimizer.step()
assert float(ours.w.detach().sum()) != params["w"].sum()
print("equal", f"{float(ours.w.detach().sum()):.12f}")
dist.destroy_process_group()
"""


def test_two_data_parallel_processes_have_the_gradients_of_the_whole_batch(tmp_path):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    script = tmp_path / "parallel.py"
    script.write_text(textwrap.dedent(DATA_PARALLEL))
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {"GLOO_SOCKET_IFNAME": loopback, **os.environ}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(err for _, err in said)
    results = [out.split()[-2:] for out, _ in said]
    assert results[0][0] == "equal"
    assert results[0] == results[1]
