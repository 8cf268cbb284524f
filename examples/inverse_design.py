"""A network in PyTorch designs a block of glass that sends two wavelengths of light to two places.

Ceviche solves Maxwell's equations in HIPS autograd, and BFGS of SciPy follows the gradient through both.
"""

import autograd.numpy as np
import matplotlib.pyplot as plt
from autograd import grad
from ceviche import fdfd_ez
from scipy.optimize import minimize
from torch import manual_seed, nn

import gradbridge as gb
from pictures import ORANGE, run

# Cells of 50 nm: a current, where glass may be, and for each wavelength (µm) the bright cell and the dark one.
SOURCE = np.pad(np.ones((1, 46), complex), ((12, 57), (12, 12)))
BLOCK = np.pad(np.ones((22, 46)), ((20, 28), (12, 12)))
WAVES = {1.55: ((58, 22), (58, 47)), 1.10: ((58, 47), (58, 22))}
PHASES = np.indices((70, 70)).reshape(2, -1).T @ np.random.default_rng(0).normal(scale=0.25, size=(2, 16))
X = np.concatenate([np.sin(PHASES), np.cos(PHASES)], axis=1)  # Fourier features of the cells


def light(glass, wave):
    """|Ez|² in every cell, (70, 70), by the share of glass, of permittivity 4, in each."""
    solver = fdfd_ez(2 * np.pi * 299792458e6 / wave, 50e-9, 1 + 3 * glass, [10, 10])
    return 1e10 * np.abs(solver.solve(SOURCE)[2]) ** 2


def main(quick=False):
    manual_seed(0)
    f = gb.bridge(nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1), nn.Sigmoid()))

    def design(params):
        return BLOCK * f(params, X).reshape(70, 70)

    def loss(params):
        """Small where each wavelength is bright in its own place, and dark in the other's."""
        maps = [(light(design(params), wave), own, other) for wave, (own, other) in WAVES.items()]
        return sum(np.log((m[own] + m[other]) / m[own] ** 2) for m, own, other in maps)

    step = 1e-5 * np.random.default_rng(1).normal(size=f.params.size)
    ratio = 2 * grad(loss)(f.params) @ step / (loss(f.params + step) - loss(f.params - step))
    print(f"check: slope through the bridge against a difference of values: {abs(ratio - 1):.1e}")

    glass = design(minimize(loss, f.params, jac=grad(loss), options={"maxiter": 2 if quick else 40}).x)
    fig, axes = plt.subplots(1, 2, sharey=True)
    axes[0].set(ylabel="cells of 50 nm")
    for ax, (wave, (own, other)) in zip(axes, WAVES.items()):
        bright = light(glass, wave)
        print(f"{wave} µm: {bright[own] / bright[other]:.0f} times as bright as in the other's place")
        ax.imshow(bright.T, cmap="cividis", vmax=np.max(bright[43:]), origin="lower")
        ax.contour(glass.T, [0.5], colors="white", linewidths=1)  # the outline of the glass
        ax.plot(*own, "o", ms=13, mfc="none", mec=ORANGE, mew=3)
        ax.set(title=f"glass, and intensity at {wave:.2f} µm", xlabel="cells of 50 nm")
    return fig


if __name__ == "__main__":
    run(main)
