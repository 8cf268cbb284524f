"""What fairness costs: a classifier in JAX that may not miss one sex more often than the other.

Diabetes progression of 442 patients, trained by the Seldonian Engine under several limits on the gap between the sexes
in the probability of a miss. The data: Efron et al. (2004), Least angle regression, Annals of Statistics 32, 407-499.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import t
from seldonian.seldonian_algorithm import SeldonianAlgorithm

import gradbridge as gb
from gradbridge_seldonian import SeldonianModel, supervised_spec
from gradbridge_seldonian.demo.stories import GAP, fairness_spec  # the data are its
from pictures import BLUE, RED, run

DELTA, LIMITS = 0.1, (0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
WEIGHTS = {"lambda_init": 0.5, "alpha_lamb": 0.2, "beta_velocity": 0.5, "beta_rmsprop": 0.5}


def classifier(w, X):
    return jax.nn.sigmoid(X @ w["weight"] + w["bias"])


def main(quick=False):
    start = {"weight": np.random.default_rng(0).normal(scale=0.1, size=9), "bias": np.zeros(())}
    model = SeldonianModel(gb.bridge(classifier, params=start, backend="jax", reuse=4))
    data, results, limits = fairness_spec(model).dataset, [], LIMITS[-2:] if quick else LIMITS
    for limit in limits:
        spec = supervised_spec(data, model, [f"{GAP} <= {limit}"], [DELTA], num_iters=300, **WEIGHTS)
        algorithm = SeldonianAlgorithm(spec)
        passed, theta = algorithm.run()
        (tree,), unseen = algorithm.st_result.values(), algorithm.safety_dataset
        # The classifier in NumPy, and Student's bounds of both rates, above and below, which share delta.
        w = model.bridge.layout.unravel(theta)
        p, fast = 1 / (1 + np.exp(-unseen.features @ w["weight"] - w["bias"])), unseen.labels == 1
        missed = [1 - p[fast & (unseen.sensitive_attrs[:, sex] == 1)] for sex in (0, 1)]
        gap = abs(missed[0].mean() - missed[1].mean())
        bound = gap + sum(t.ppf(1 - DELTA / 4, len(m) - 1) * m.std(ddof=1) / len(m) ** 0.5 for m in missed)
        loss = -np.mean(np.log(np.where(fast, p, 1 - p)))
        results.append((gap, bound, loss))
        print(f"limit {limit}: gap {gap:.3f}, bound {bound:.3f}, loss {loss:.4f}; passed: {passed}")
        print(f"check: engine's bound against Student's: {abs(limit + tree.root.upper - bound):.1e}")

    gaps, bounds, losses = np.array(results).T
    fig, (left, right) = plt.subplots(1, 2)
    left.plot(limits, limits, ":", color="black", label="limit")
    left.vlines(limits, gaps, bounds, color=BLUE)
    left.plot(limits, bounds, "_", ms=16, mew=2, color=BLUE, label="upper bound, 90 %")
    left.plot(limits, gaps, "o", color=BLUE, label="measured")
    left.set(xlabel="limit", ylabel="gap in probability of a miss", title="What is promised", ylim=(0, 0.55))
    left.legend(loc="upper left")
    right.plot(limits, losses, "^-", color=RED)
    right.set(xlabel="limit", ylabel="logistic loss, nats", title="What it costs")
    return fig


if __name__ == "__main__":
    run(main)
