"""Handwritten digits with a promise: a PyTorch network that must read eights well, trained by the Seldonian Engine.

With probability 0.95 the mean probability that it gives to "8" where an 8 is written is at least 0.85 on unseen
images. They are scikit-learn's, of Alpaydin and Kaynak (1998), Cascading classifiers, Kybernetika 34, 369-374.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import t
from seldonian.seldonian_algorithm import SeldonianAlgorithm

from gradbridge_seldonian import SeldonianModel
from gradbridge_seldonian.demo.stories import digits_spec  # the data, the constraint, `supervised_spec`
from gradbridge_seldonian.demo.story import FREE  # a limit that stands in for none
from pictures import BLUE, RED, run

LEAST, DELTA, DIGITS = 0.85, 0.05, np.arange(10)


def network():
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 10)]
    return SeldonianModel(torch.nn.Sequential(*layers, torch.nn.Softmax(-1)))


def main():
    fig, (left, right) = plt.subplots(1, 2)
    for free, name, look, line in ((False, "constrained", "o", "-"), (True, "unconstrained", "^", "--")):
        model, color = network(), RED if free else BLUE
        training = SeldonianAlgorithm(digits_spec(model, free=free))
        training.set_initial_solution()
        theta = training.run_candidate_selection()
        test = SeldonianAlgorithm(digits_spec(model))
        passed, _ = test.run_safety_test(theta)
        (tree,) = test.st_result.values()
        images, labels = test.safety_dataset.features, test.safety_dataset.labels

        # PyTorch's own module, and Student's bound as textbooks have it.
        with torch.no_grad():
            sure = model.native(theta)(torch.tensor(images)).numpy()[np.arange(len(labels)), labels]
        eights = sure[labels == 8]
        bound = eights.mean() - t.ppf(1 - DELTA, len(eights) - 1) * eights.std(ddof=1) / len(eights) ** 0.5
        print(f'{name}: "8" has {eights.mean():.3f}, its lower bound is {bound:.3f}; passed: {passed}')
        print(f"check: engine's bound against Student's: {abs(LEAST - tree.root.upper - bound):.1e}")
        left.plot(DIGITS, [sure[labels == d].mean() for d in DIGITS], look, ms=8, color=color, label=name)
        predicted = (-FREE if free else LEAST) - training.cs_result["g_vals"][:, 0]
        right.plot(predicted, line, color=color, label=name)
    left.set(xlabel="digit", ylabel="mean probability of the true digit", title="On unseen images")
    left.set(xticks=DIGITS, ylim=(0.3, 1))
    right.set(xlabel="iteration", ylabel='lower bound for "8"', title="In training", ylim=(0, 1))
    for ax in (left, right):
        ax.axhline(LEAST, color="black", ls=":", label=f"promised for 8: {LEAST}")
    left.legend(loc="lower center")
    return fig


if __name__ == "__main__":
    run(main)
