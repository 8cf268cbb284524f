"""A neural ODE of hares and lynxes: right-hand side in JAX, solver of torchdiffeq, training loop of PyTorch.

Pelts that the Hudson's Bay Company took in each year. The network says how fast both numbers grow; it is fitted over
five years from each of sixteen, then over all twenty. Needs torch, jax, matplotlib and torchdiffeq.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch
from jax.experimental.ode import odeint as odeint_of_jax
from torchdiffeq import odeint

import gradbridge as gb
from pictures import BLUE, RED, run

jax.config.update("jax_enable_x64", True)

# Thousands of pelts, 1900 to 1920 (Howard, 2009, after Elton and Nicholson, 1942).
HARES = "30 47.2 70.2 77.4 36.3 20.6 18.1 21.4 22 25.4 27.1 40.3 57 76.6 52.3 19.5 11.2 7.6 14.6 16.2 24.7"
LYNXES = "4 6.1 9.8 35.2 59.4 41.7 19 13 8.3 9.1 7.4 8 12.3 19.5 45.7 51.1 29.7 15.8 9.7 10.1 8.6"
PELTS = torch.tensor([[float(n) for n in row.split()] for row in (HARES, LYNXES)]).double().T  # (21, 2)


def growth(w, y):
    """Of the logarithms of both numbers, per year; (..., 2)."""
    return jnp.tanh(y @ w["in"] + w["shift"]) @ w["out"]


def loss_in_jax(w, data):
    """Over five years, by JAX's own solver, which is differentiated by the adjoint equation."""
    found = odeint_of_jax(lambda y, _: growth(w, y), data[0], jnp.arange(6.0), rtol=1e-9, atol=1e-10)
    return jnp.mean((found - data) ** 2)


def main(quick=False):
    rng, middle = np.random.default_rng(0), PELTS.log().mean(0)
    w = {"in": rng.normal(size=(2, 16)), "shift": rng.normal(size=16), "out": rng.normal(size=(16, 2)) / 10}
    model = gb.bridge(growth, params=w, backend="jax").as_module()
    y, years = PELTS.log() - middle, torch.arange(21.0, dtype=torch.float64)
    pieces = torch.stack([y[k : k + 16] for k in range(6)])  # (6, 16, 2)

    def gradient(data, **how):
        model.zero_grad()
        loss = (odeint(lambda _, y: model(y), data[0], years[: len(data)], **how) - data).square().mean()
        loss.backward()
        return loss.item()

    for data, steps, rate in ((pieces, 250, 0.03), (y, 80, 0.01)):
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        for _ in range(2 if quick else steps):
            error = gradient(data, method="rk4")
            optimizer.step()
    print(f"the logarithms are off by {error**0.5:.2f} over the twenty years")

    gradient(pieces[:, 0], method="dopri5", rtol=1e-8, atol=1e-9)
    w = {name: jnp.asarray(p.detach()) for name, p in model.named_parameters()}
    right = jax.grad(loss_in_jax)(w, jnp.asarray(pieces[:, 0]))
    off = [abs(p.grad.numpy() - right[k]).max() / abs(right[k]).max() for k, p in model.named_parameters()]
    print(f"check: gradient against JAX's own solver and its adjoint: {max(off):.1e}")

    fig, ax = plt.subplots(figsize=(9, 3.8), layout="constrained")
    t = torch.linspace(0, 30, 121, dtype=torch.float64)
    with torch.no_grad():
        path = torch.exp(odeint(lambda _, y: model(y), y[0], t, method="rk4") + middle)
    for name, i, color, look, line in (("hares", 0, BLUE, "o", "-"), ("lynxes", 1, RED, "^", "--")):
        ax.plot(1900 + t, path[:, i], line, color=color, label=f"{name}, neural ODE")
        ax.plot(1900 + years, PELTS[:, i], look, color=color, label=f"{name}, pelts")
    ax.set(xlabel="year", ylabel="thousands of pelts", yscale="log")
    ax.set_yticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
    fig.legend(loc="outside upper center", ncols=4, fontsize=11, columnspacing=1, frameon=False)
    return fig


if __name__ == "__main__":
    run(main)
