"""A neural ODE of hares and lynxes: right-hand side in JAX, solver of torchdiffeq, training loop of PyTorch.

It is fitted over five years from each of sixteen; the data are from Howard (2009), Modeling Basics: see pelts.csv.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch
from jax.experimental.ode import odeint as odeint_of_jax
from torchdiffeq import odeint

import gradbridge as gb
from pictures import HERE, run

jax.config.update("jax_enable_x64", True)
PELTS = np.loadtxt(HERE / "pelts.csv", delimiter=",")[:, 1:]  # (21, 2), in thousands
Y = np.log(np.stack([PELTS[k : k + 16] for k in range(6)]) / 20)  # (6, 16, 2): year, start, species


def growth(w, y):
    return jnp.tanh(y @ w["in"] + w["shift"]) @ w["out"]


def loss_in_jax(w):  # with JAX's own solver, whose derivative is the adjoint equation
    path = odeint_of_jax(lambda y, _: growth(w, y), Y[0], jnp.arange(6.0), rtol=1e-9, atol=1e-10)
    return jnp.mean((path - Y) ** 2)


def main(quick=False):
    normal = np.random.default_rng(0).normal
    w = {"in": normal(size=(2, 16)), "shift": normal(size=16), "out": normal(size=(16, 2)) / 10}
    model = gb.bridge(growth, params=w, backend="jax").as_module()
    y, t = torch.tensor(Y), torch.linspace(0, 30, 121, dtype=torch.float64)

    def loss(**solver):
        return (odeint(lambda _, y: model(y), y[0], t[:21:4], **solver) - y).square().mean()

    loss(method="dopri5", rtol=1e-8, atol=1e-9).backward()
    right = jax.grad(loss_in_jax)(w)
    off = [abs(p.grad.numpy() - right[k]).max() / abs(right[k]).max() for k, p in model.named_parameters()]
    print(f"check: gradient against JAX's own solver and its adjoint: {max(off):.1e}")

    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(2 if quick else 300):
        optimizer.zero_grad()
        loss(method="rk4").backward()
        optimizer.step()
    path = 20 * odeint(lambda _, y: model(y), y[0, 0], t, method="rk4").exp().detach()
    fig, ax = plt.subplots()
    ax.plot(1900 + t, path, label=["hares, neural ODE", "lynxes, neural ODE"])
    ax.plot(1900 + t[:81:4], PELTS, "o", label=["hares, pelts", "lynxes, pelts"])
    ax.set(xlabel="year", ylabel="thousands of pelts")
    fig.legend(loc="outside upper center", ncols=4, columnspacing=1)
    return fig


if __name__ == "__main__":
    run(main)
