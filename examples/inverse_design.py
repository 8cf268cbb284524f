"""A network in PyTorch designs a block of glass that sends two wavelengths of light to two places.

Ceviche solves Maxwell's equations and differentiates them in HIPS autograd; the network says where there is glass.
L-BFGS of SciPy follows the gradient through both. Needs torch, scipy, matplotlib and ceviche.
"""

import autograd.numpy as np
import matplotlib.pyplot as plt
import torch
from autograd import value_and_grad
from ceviche import fdfd_ez
from scipy.optimize import minimize

import gradbridge as gb
from pictures import ORANGE, run

CELL, A, B = 50e-9, (58, 22), (58, 47)  # m; two cells of 70 x 70
WAVES = {1.55: (A, B), 1.10: (B, A)}  # µm: where it is wanted, and where it is not
SOURCE = np.pad(np.ones((1, 46), complex), ((12, 57), (12, 12)))  # a line of current
FRAME = {"origin": "lower", "extent": (0, 3.5, 0, 3.5)}  # µm


def light(glass, wave):
    """|Ez|² in every cell, (70, 70); `glass` (22, 46) is its share in the cells of the block, permittivity 1 to 4."""
    eps = 1 + np.pad(3 * glass, ((20, 28), (12, 12)), mode="constant")
    return 1e10 * np.abs(fdfd_ez(2 * np.pi * 299792458e6 / wave, CELL, eps, [10, 10]).solve(SOURCE)[2]) ** 2


def loss(glass):
    """Small where each wavelength is bright in its own place, and dark in the other's."""
    maps = [(light(glass, wave), own, other) for wave, (own, other) in WAVES.items()]
    return sum(np.log((m[own] + m[other]) / m[own] ** 2) for m, own, other in maps)


def main(quick=False):
    torch.manual_seed(0)
    hidden, last = torch.nn.Linear(32, 32), torch.nn.Linear(32, 1)
    f = gb.bridge(torch.nn.Sequential(hidden, torch.nn.Tanh(), last, torch.nn.Sigmoid(), torch.nn.Flatten(0)))
    xy = np.stack(np.meshgrid(np.linspace(0, 1, 22), np.linspace(0, 2, 46), indexing="ij"), -1).reshape(-1, 2)
    waves = xy @ np.random.default_rng(0).normal(scale=6.0, size=(2, 16))
    X = np.concatenate([np.sin(waves), np.cos(waves)], axis=1)
    objective = value_and_grad(lambda params: loss(f(params, X).reshape(22, 46)))

    with torch.no_grad():  # values alone, of ceviche and PyTorch's own module: no derivative of anyone
        step = 1e-5 * np.random.default_rng(1).normal(size=f.params.size)
        ends = [loss(f.model(f.params + s)(torch.tensor(X)).numpy().reshape(22, 46)) for s in (step, -step)]
    off = abs(2 * (objective(f.params)[1] @ step) / (ends[0] - ends[1]) - 1)
    print(f"check: slope through the bridge against differences of values: {off:.1e}")

    steps = {"maxiter": 2 if quick else 40}
    glass = f(minimize(objective, f.params, jac=True, method="L-BFGS-B", options=steps).x, X).reshape(22, 46)
    fig, axes = plt.subplots(1, 3, figsize=(9, 3.6), layout="constrained", sharey=True)
    block = np.pad(glass, ((20, 28), (12, 12)), mode="constant").T
    axes[0].imshow(block, cmap="Greys", **FRAME)
    axes[0].set(title="glass (black)", xlabel="µm", ylabel="µm")
    for ax, (wave, (own, other)) in zip(axes[1:], WAVES.items()):
        bright, before = light(glass, wave), light(0 * glass, wave)
        gain, contrast = bright[own] / before[own], bright[own] / bright[other]
        print(f"{wave} µm: {gain:.1f} times as bright as without glass, {contrast:.0f} times the other place")
        ax.imshow(bright.T, cmap="cividis", vmax=np.max(bright[43:]), **FRAME)
        ax.contour(block, [0.5], colors="white", linewidths=0.6, extent=FRAME["extent"])
        ax.plot(*(0.05 * np.array(own) + 0.025), "o", ms=13, mfc="none", mec=ORANGE, mew=3)
        ax.set(title=f"intensity, {wave:.2f} µm", xlabel="µm")
    return fig


if __name__ == "__main__":
    run(main)
