"""Second order: Hessian-vector products against the frameworks' own, and what JVP and Gauss-Newton products cost.

Native is what each framework's documentation recommends: in PyTorch the gradient of the gradient
("double backward"), in JAX one jitted JVP of the gradient, in TensorFlow nested tapes in a `tf.function`.
The column "autograd" is the same network written in autograd.numpy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from autograd import hessian_vector_product, make_jvp

import gradbridge as gb
from benchmarks.figures import Report, count, ratio, seconds
from benchmarks.networks import SIZES, available, in_autograd, native, sum_of_squares
from benchmarks.timing import best_of_each, clock_name

NAME = "large"
#: Largest ratio to native; and from how many seconds on it may not be slower than autograd.numpy.
RATIOS = {"torch": 1.2, "jax": 1.45, "tensorflow": 1.7}
FROM = 5e-3
#: How far from the reference a product may be, relative to its largest entry.
TOLERANCE = 1e-9


def run(report: Report) -> None:
    """Print a table of Hessian-vector products, and one of the other products."""
    title = f"Hessian-vector product of a sum of squares, {NAME} MLP, float64, one thread, {clock_name()}"
    headings = ("guest", "native", "autograd", "gradbridge", "ratio", "÷ autograd", "forwards")
    others: list[tuple[str, str, int, float]] = []
    with report.table(title, *headings) as table:
        for framework in available():
            own, X = native(framework, NAME, "float64")
            f, params = own.bridge, own.bridge.params
            direction = np.random.default_rng(1).normal(size=params.shape)
            ours = hessian_vector_product(sum_of_squares(f, X))
            network = in_autograd(SIZES[NAME][0], outputs_first=framework == "torch")
            plain = hessian_vector_product(sum_of_squares(network, X))
            theirs = own.product(direction)
            with gb.trace() as t:
                product = ours(params, direction)
            expected = plain(params, direction)
            for found in (product, np.concatenate([np.ravel(piece) for piece in theirs()])):
                largest = np.abs(expected).max()
                np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * largest)
            times = best_of_each(
                {
                    "native": theirs,
                    "plain": lambda h=plain, p=params, v=direction: h(p, v),
                    "ours": lambda h=ours, p=params, v=direction: h(p, v),
                },
                4.0,
            )
            against = ratio(times["ours"] / times["plain"], at_most=1.0 if times["plain"] >= FROM else None)
            table.row(
                framework,
                seconds(times["native"]),
                seconds(times["plain"]),
                seconds(times["ours"]),
                ratio(times["ours"] / times["native"], at_most=RATIOS[framework]),
                against,
                count(t.counts["forward"], "forwards", at_most=1),
            )
            others += [
                (framework, *_counted("make_jvp", lambda f=f, p=params, v=direction, X=X: _jvp(f, p, v, X))),
                (
                    framework,
                    *_counted("f.ggn", lambda f=f, p=params, v=direction, X=X: f.ggn(p, X, vector=v)),
                ),
            ]
    with report.table("other products, the same networks", "guest", "product", "time", "forwards") as table:
        for framework, what, forwards, time in others:
            table.row(framework, what, seconds(time), count(forwards, "forwards", at_most=1))


def _jvp(f: gb.Bridge, params: np.ndarray, direction: np.ndarray, X: np.ndarray) -> object:
    return make_jvp(lambda p: f(p, X))(params)(direction)


def _counted(what: str, function: Callable[[], object]) -> tuple[str, int, float]:
    function()  # the first time, forward mode is compared with reverse mode
    with gb.trace() as t:
        function()
    return what, t.counts["forward"], best_of_each({what: function}, 0.5)[what]
