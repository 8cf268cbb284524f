"""A module with large buffers that its forward only reads, as a causal mask or a table of data: no copies."""

from __future__ import annotations

import numpy as np
from autograd import value_and_grad

import gradbridge as gb
from benchmarks.figures import Report, mebibytes, ratio, seconds
from benchmarks.networks import available, sum_of_squares
from benchmarks.timing import best_of_each, clock_name

#: Most that a call may take, in native calls.
RATIO = 2.0
#: Of the buffer; 72 MB.
SHAPE = (3000, 3000)


def run(report: Report) -> None:
    """Print one call and one value-and-gradient, natively and through the bridge."""
    if "torch" not in available():
        report.say("the benchmark of buffers is left out: it needs torch")
        return
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)

    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(4)])
            self.register_buffer("table", torch.ones(SHAPE))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x) * self.table[0, 0]

    model = Scaled().double().eval()
    X = np.random.default_rng(0).normal(size=(128, 256))
    data, parameters = torch.tensor(X), list(model.parameters())
    f = gb.bridge(model, dtype="float64")
    params, through = f.params, value_and_grad(sum_of_squares(f, X))

    def value() -> object:
        with torch.no_grad():
            return model(data).numpy()

    def gradient() -> object:
        loss = (model(data) ** 2).sum()
        return loss.item(), torch.autograd.grad(loss, parameters)

    size = mebibytes(model.table.nbytes / 2**20)
    headings = ("what", "buffers", "native", "gradbridge", "ratio")
    with report.table(
        f"a torch module of one's own, its buffers only read, one thread, {clock_name()}", *headings
    ) as table:
        for what, native, ours, most in (
            ("value", value, lambda: f(params, X), RATIO),
            ("value and gradient", gradient, lambda: through(params), None),
        ):
            times = best_of_each({"native": native, "bridge": ours})
            table.row(
                what,
                size,
                seconds(times["native"]),
                seconds(times["bridge"]),
                ratio(times["bridge"] / times["native"], at_most=most),
            )
