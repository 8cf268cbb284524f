"""A PyTorch force field in a JAX program: over which passes does the molecule go, and how high are they?

Networks that give energies are mostly in PyTorch; what looks for reaction paths is short in JAX, with `jit`, `vmap`,
`grad` and `hessian`. Here a network is fitted in PyTorch to the surface of Müller and Brown, the usual test of such
methods, and a path and its passes are found in JAX, through the network; the surface itself, in JAX, says what is right:
``python examples/force_field_in_jax.py [PICTURE.png]``.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch

import gradbridge as gb

HEIGHTS = np.array([-200.0, -100.0, -170.0, 15.0])
CENTERS = np.array([[1.0, 0.0], [0.0, 0.5], [-0.5, 1.5], [-1.0, 1.0]])
SHAPES = np.array([[-1.0, 0.0, -10.0], [-1.0, 0.0, -10.0], [-6.5, 11.0, -6.5], [0.7, 0.6, 0.7]])
SCALE = 100.0  # of energies, for the network


def surface(points):
    """Energies (…,) of Müller and Brown at points (…, 2); Theor. Chim. Acta 53, 75 (1979)."""
    x, y = jnp.moveaxis(points[..., None, :] - CENTERS, -1, 0)
    a, b, c = SHAPES.T
    return (HEIGHTS * jnp.exp(a * x**2 + b * x * y + c * y**2)).sum(-1)


def trained(steps=2000):
    """A network that gives the energies, (n, 2) → (n, 1), fitted in PyTorch to energies and forces below 100."""
    torch.manual_seed(0)
    points = np.random.default_rng(0).uniform([-1.7, -0.5], [1.3, 2.1], size=(20_000, 2)).astype(np.float32)
    energies, slopes = (np.asarray(a) / SCALE for a in jax.vmap(jax.value_and_grad(surface))(points))
    X, Y, dY = (torch.tensor(a[energies < 1]) for a in (points, energies, slopes))
    hidden = [torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh()]
    network = torch.nn.Sequential(*hidden, torch.nn.Linear(64, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(X), (256,))
        x = X[batch].requires_grad_()
        y = network(x)[:, 0]
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        loss = (y - Y[batch]).square().mean() + 0.05 * (slope - dY[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network


def path(energies, ends, images=40, steps=400, rate=2e-4):
    """The path of least energy between two valleys, (images, 2): the string method (E, Ren, Vanden-Eijnden, 2007)."""
    slopes = jax.grad(lambda string: energies(string).sum())

    def step(string, _):
        string = string - rate * slopes(string)
        lengths = jnp.linalg.norm(jnp.diff(string, axis=0), axis=1)
        along = jnp.concatenate([jnp.zeros(1), jnp.cumsum(lengths)])
        even = jnp.linspace(0, along[-1], images)
        return jnp.stack([jnp.interp(even, along, coordinate) for coordinate in string.T], axis=1), None

    return jax.jit(lambda string: jax.lax.scan(step, string, length=steps)[0])(jnp.linspace(*ends, images))


def level(energies, string):
    """Where the surface is level next to a path, (k, 2), and the curvatures there, (k, 2): one is negative at a pass."""
    heights = energies(string)
    turns = 1 + np.flatnonzero(np.diff(np.sign(np.diff(heights))))  # of the path: up and down, down and up
    energy = lambda point: energies(point[None])[0]  # noqa: E731

    def newton(point, _):
        return point - jnp.linalg.solve(jax.hessian(energy)(point), jax.grad(energy)(point)), None

    @jax.jit
    @jax.vmap
    def search(start):
        point = jax.lax.scan(newton, start, length=6)[0]
        return point, jnp.linalg.eigvalsh(jax.hessian(energy)(point))

    return search(string[turns])


def main(picture="force_field_in_jax.png"):
    """Fit, search, print, draw; returns what the test looks at."""
    network = trained()
    f = gb.bridge(network)
    weights = {name: jnp.asarray(p.detach().numpy()) for name, p in network.named_parameters()}

    def learnt(points):
        return SCALE * f(weights, points)[:, 0]

    ends = jnp.array([[-0.558, 1.442], [0.623, 0.028]])  # the two valleys
    results = {}
    for name, energies in {"through PyTorch's network": learnt, "on the surface itself": surface}.items():
        string = path(energies, ends)
        points, curvatures = level(energies, string)
        heights = energies(points) - energies(ends[:1])
        results[name] = {"path": string, "level": points, "heights": heights, "curvatures": curvatures}
        for point, height, curvature in zip(points, heights, curvatures):
            what = "a pass" if curvature[0] < 0 else "a valley"
            print(f"{name}: {what} at ({point[0]:.3f}, {point[1]:.3f}), {height:.1f} above the start")
    draw(picture, learnt, results)
    return {"energies": learnt, "network": network, **results}


def draw(picture, learnt, results):
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained", width_ratios=[1.15, 1])
    x, y = np.meshgrid(np.linspace(-1.6, 1.2, 90), np.linspace(-0.4, 2.0, 90))
    energies = learnt(jnp.stack([x.ravel(), y.ravel()], axis=1)).reshape(x.shape)
    drawn = left.contourf(x, y, energies, levels=np.arange(-150, 101, 12.5), cmap="cividis", extend="max")
    fig.colorbar(drawn, ax=left, label="energy", ticks=range(-150, 101, 50))
    (ours, found), (itself, exact) = results.items()
    left.plot(*exact["path"].T, color="white", lw=5, label=itself)
    left.plot(*found["path"].T, color="#D55E00", lw=2, label=ours)
    left.plot(*found["level"][found["curvatures"][:, 0] < 0].T, "*", ms=15, color="#D55E00", mec="white")
    left.legend(loc="upper right")
    left.set(title="PyTorch's energies, JAX's path", xlabel="x", ylabel="y", aspect="equal")
    along = np.linspace(0, 1, len(exact["path"]))
    right.plot(along, surface(exact["path"]), color="0.75", lw=6, label=itself)
    right.plot(along, learnt(found["path"]), color="#D55E00", lw=2, label=ours)
    right.set(title="The way over the passes", xlabel="part of the path", ylabel="energy")
    right.legend(frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    fig.savefig(picture, dpi=150)
    plt.close(fig)


if __name__ == "__main__":
    main(*sys.argv[1:])
