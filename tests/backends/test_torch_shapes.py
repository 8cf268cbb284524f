"""Shapes and dtypes of torch models before anything is computed."""

import numpy as onp
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge.call_spec import CallSpec  # noqa: E402
from gradbridge.errors import GradbridgeError, Unsupported  # noqa: E402
from gradbridge.protocol import ArraySpec  # noqa: E402


def spec(*shape, dtype="float64"):
    return ArraySpec(shape, onp.dtype(dtype))


class Memory(nn.Module):
    """Keeps what it computed; has a buffer, and more than one output."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2, dtype=torch.float64)
        self.register_buffer("shift", torch.ones(2, dtype=torch.float64))
        self.norm = nn.BatchNorm1d(2, dtype=torch.float64)
        self.last = None

    def forward(self, x):
        if self.last is not None:
            assert type(self.last) is torch.Tensor
        y = self.norm(self.linear(x)) + self.shift
        self.shift += 1.0
        self.last = y.detach()
        return {"y": y, "label": y.argmax(-1)}


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_shapes_and_dtypes_of_all_outputs_and_nothing_moves(mode):
    net = Memory().train(mode == "train")
    f = gb.bridge(net, mode=mode, audit="off")  # it counts its calls, so it is no function in train mode
    out = f.adapter.output_spec([spec(7, 3)], CallSpec.of_arrays(1))
    assert out == {"y": spec(7, 2), "label": spec(7, dtype="int64")}
    x = onp.ones((4, 3))
    assert f(f.params, x)["y"].shape == (4, 2)
    f.adapter.output_spec([spec(7, 3)], CallSpec.of_arrays(1))
    assert f.model(f.params).norm.num_batches_tracked == (1 if mode == "train" else 0)
    assert onp.isfinite(f(f.params, x)["y"]).all()


@pytest.mark.parametrize(
    ("dtype", "found"), [("float32", "float32"), ("bfloat16", "float32"), (None, "float64")]
)
def test_dtypes_are_those_that_the_bridge_gives(dtype, found):
    net = nn.Linear(3, 2, dtype=torch.float64)
    adapter = gb.bridge(net, dtype=dtype).adapter
    assert adapter.output_spec([spec(5, 3)], CallSpec.of_arrays(1)) == spec(5, 2, dtype=found)


def test_functions_with_and_without_parameters():
    for dtype, found in ((None, "float64"), ("model", "float32")):
        f = gb.bridge(
            lambda p, x: (x @ p["w"]).sum(0), params={"w": torch.ones(3, 4)}, backend="torch", dtype=dtype
        )
        assert f.adapter.output_spec([spec(5, 3)], CallSpec.of_arrays(1)) == spec(4, dtype=found)
    g = gb.bridge(lambda x: torch.fft.rfft(x), backend="torch")
    assert g.adapter.output_spec([spec(8)], CallSpec.of_arrays(1)) == spec(5, dtype="complex128")


def test_noise_draws_nothing():
    f = gb.bridge(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)).double(), mode="train")
    before = torch.get_rng_state()
    assert f.adapter.output_spec([spec(2, 3)], CallSpec.of_arrays(1)) == spec(2, 4)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x if x.sum() > 0 else x[:1],
        lambda x: x[x > 0],
        lambda x: x * x.sum().item(),
        lambda x: x * float(x.detach().numpy().sum()),
        lambda x: x * torch.from_numpy(onp.asarray(x.detach())),
    ],
)
def test_what_depends_on_the_numbers_says_so(body):
    adapter = gb.bridge(body, backend="torch").adapter
    with pytest.raises(Unsupported, match="decides by the numbers"):
        adapter.output_spec([spec(5)], CallSpec.of_arrays(1))


def test_inputs_that_do_not_fit_are_named_before_anything_is_computed():
    adapter = gb.bridge(nn.Linear(3, 2)).adapter
    with pytest.raises(GradbridgeError, match="Linear"):
        adapter.output_spec([spec(5, 4)], CallSpec.of_arrays(1))
