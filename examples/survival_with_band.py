"""How long does a remission of leukemia last, and how sure is that? Weibull's model, its scale a PyTorch network.

The likelihood is a program of HIPS autograd; SciPy minimizes it with gradients and Hessians through the bridge, and
the band is the delta method's, by that Hessian. The data: Freireich et al. (1963), Blood 21, 699-716, with white blood
cells from Kleinbaum and Klein (2012), Survival Analysis: A Self-Learning Text.
"""

import autograd.numpy as np
import matplotlib.pyplot as plt
import torch
from autograd import grad, hessian, jacobian
from scipy.optimize import minimize
from scipy.stats import CensoredData, ecdf

import gradbridge as gb
from pictures import BLUE, HERE, RED, run

PLACEBO, WEEKS, ENDED, CELLS = np.loadtxt(HERE / "leukemia.csv", delimiter=",", unpack=True)
X, GRID = np.stack([PLACEBO, CELLS - 3], axis=1), np.linspace(0.2, 36, 120)


def main():
    torch.manual_seed(0)
    f = gb.bridge(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)))

    def log_hazard(q, X, weeks):
        """Log of the cumulative hazard, -log S(weeks); q has the network's weights, then the log of the shape."""
        return np.exp(q[-1]) * (np.log(weeks) - f(q[:-1], X)[:, 0])

    def loss(q):
        """Minus the log of the posterior; the network's weights have a normal prior."""
        z = log_hazard(q, X, WEEKS)
        return np.sum(np.exp(z)) - np.sum(ENDED * (z + q[-1] - np.log(WEEKS))) + 0.05 * np.sum(q[:-1] ** 2)

    def group_log_hazard(q, X):
        """The same of a group, on the grid: its S is the mean over the patients."""
        return np.log(-np.log(np.mean(np.exp(-np.exp(log_hazard(q, X, GRID[:, None]))), axis=1)))

    q = minimize(loss, [*f.params, 0], jac=grad(loss), hess=hessian(loss), method="trust-exact", tol=1e-9).x
    z, covariance = log_hazard(q, X, WEEKS), np.linalg.inv(hessian(loss)(q))
    off = np.exp(q[-1]) * np.sum(np.exp(z) - ENDED) - 0.1 * q[-2], np.sum(z * np.exp(z) - ENDED * (1 + z))
    print(f"check: slopes by the last bias and by the shape, derived by hand: {np.max(np.abs(off)):.1e}")

    fig, ax = plt.subplots()
    for placebo, name, color, line in ((0, "6-MP", BLUE, "-"), (1, "placebo", RED, "--")):
        own = placebo == PLACEBO
        z, J = group_log_hazard(q, X[own]), jacobian(group_log_hazard)(q, X[own])
        error = 1.96 * np.sqrt(np.sum(J @ covariance * J, axis=1))
        low, middle, high = (np.exp(-np.exp(z + e)) for e in (error, 0, -error))
        ax.plot(GRID, middle, line, color=color, label=f"{name}: network, 95 % band")
        ax.fill_between(GRID, low, high, color=color, alpha=0.2, lw=0)
        km = ecdf(CensoredData.right_censored(WEEKS[own], ENDED[own] == 0)).sf
        ax.step([0, *km.quantiles], [1, *km.probabilities], color, where="post", label=f"{name}: observed")
    ax.set(xlabel="weeks", ylabel="share still in remission", ylim=(0, 1), xlim=(0, 36))
    ax.legend()
    return fig


if __name__ == "__main__":
    run(main)
