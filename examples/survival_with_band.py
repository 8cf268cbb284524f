"""How long does a remission of leukemia last, and how sure is that? Weibull's model, its scale a PyTorch network.

The likelihood is a program of HIPS autograd; SciPy minimizes it with gradients and Hessians through the bridge, and
the band is the delta method's, by that Hessian. Needs torch, scipy and matplotlib.
"""

import autograd.numpy as np
import matplotlib.pyplot as plt
import torch
from autograd import hessian, jacobian, value_and_grad
from scipy.optimize import minimize

import gradbridge as gb
from pictures import BLUE, RED, run

# Freireich et al. (1963), Blood 21, 699. Weeks in remission, negative where it went on; log10 of white blood cells.
DRUG = "6 6 6 -6 7 -9 10 -10 -11 13 16 -17 -19 -20 22 23 -25 -32 -32 -34 -35 "
PLACEBO = "1 1 2 2 3 4 4 5 5 8 8 8 8 11 11 12 12 15 17 22 23"
CELLS = """2.31 4.06 3.28 3.2 4.43 2.8 2.96 2.7 2.6 2.88 3.6 2.16 2.05 2.01 2.32 2.57 1.78 2.2 2.53 1.47 1.45 2.8 5
4.91 4.48 4.01 4.36 2.42 3.49 3.97 3.52 3.05 2.32 3.26 3.49 2.12 1.5 3.06 2.3 2.95 2.73 1.97"""
TIMES = np.array((DRUG + PLACEBO).split(), float)
WEEKS, ENDED, GRID = abs(TIMES), TIMES > 0, np.linspace(0.2, 36, 120)
X = np.stack([np.arange(42) >= 21, np.array(CELLS.split(), float) - 3], axis=1)  # on placebo; cells
# Venables and Ripley, Modern Applied Statistics with S, 13.2: effect of the placebo, intercept, log(1 / shape).
BOOK = [-1.267, 3.516, -0.312]


def fit(f, X, prior=0.0):
    """Parameters of f, the logarithm of the scale in weeks, and Weibull's log(shape); their covariance."""

    def minus_log_posterior(q):
        z = np.exp(q[-1]) * (np.log(WEEKS) - f(q[:-1], X)[:, 0])  # S(t) = exp(-exp(z))
        return np.sum(np.exp(z)) - np.sum((z + q[-1] - np.log(WEEKS))[ENDED]) + prior * np.sum(q[:-1] ** 2)

    objective, curvature = value_and_grad(minus_log_posterior), hessian(minus_log_posterior)
    q = minimize(objective, np.append(f.params, 0.0), jac=True, hess=curvature, method="trust-exact").x
    return q, np.linalg.inv(curvature(q))


def main():
    torch.manual_seed(0)
    q, _ = fit(gb.bridge(torch.nn.Linear(1, 1)), X[:, :1])
    print(f"check: a linear layer against the book's three digits: {max(abs(q * [1, 1, -1] - BOOK)):.1e}")
    f = gb.bridge(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)))
    q, covariance = fit(f, X, prior=0.05)

    def curve(q, X):  # log(-log S) of a group, S the mean over its patients
        z = np.exp(q[-1]) * (np.log(GRID)[:, None] - f(q[:-1], X)[:, 0])
        return np.log(-np.log(np.mean(np.exp(-np.exp(z)), axis=1)))

    fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    for placebo, name, color, line in ((0, "6-MP", BLUE, "-"), (1, "placebo", RED, "--")):
        own = X[:, 0] == placebo
        z, J = curve(q, X[own]), jacobian(curve)(q, X[own])
        error = 1.96 * np.sqrt(np.sum(J @ covariance * J, axis=1))
        low, middle, high = (np.exp(-np.exp(z + e)) for e in (error, 0, -error))
        ax.plot(GRID, middle, line, color=color, label=f"{name}: network, 95 % band")
        ax.fill_between(GRID, low, high, color=color, alpha=0.2, lw=0)
        ends = np.unique(WEEKS[own & ENDED])  # Kaplan and Meier's estimate, which knows of no model
        shares = [1 - sum(own & ENDED & (w == WEEKS)) / sum(own & (w <= WEEKS)) for w in ends]
        steps = {"where": "post", "color": color, "lw": 1, "label": f"{name}: Kaplan–Meier"}
        ax.step([0, *ends], [1, *np.cumprod(shares)], **steps)
    ax.set(xlabel="weeks", ylabel="share still in remission", ylim=(0, 1), xlim=(0, 36))
    ax.legend(fontsize=11, frameon=False)
    return fig


if __name__ == "__main__":
    run(main)
