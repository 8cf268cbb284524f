"""The cases that two checkouts are compared on, by public names alone: both must be able to build them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import autograd.numpy as anp
import numpy as np
from autograd import hessian_vector_product, value_and_grad

import gradbridge as gb
from benchmarks.jacobians import bridged
from benchmarks.networks import FRAMEWORKS, SIZES, in_autograd, native, sum_of_squares

Case = Callable[[], object]


def _step(framework: str, name: str) -> Case:
    """Value and gradient, float32."""
    own, X = native(framework, name)
    through, params = value_and_grad(sum_of_squares(own.bridge, X)), own.bridge.params
    return lambda: through(params)


def _product(framework: str) -> Case:
    """Hessian-vector product on the large network, float64."""
    own, X = native(framework, "large", "float64")
    through, params = hessian_vector_product(sum_of_squares(own.bridge, X)), own.bridge.params
    direction = np.random.default_rng(1).normal(size=params.shape)
    return lambda: through(params, direction)


def _jacobian(framework: str) -> Case:
    """Jacobian by the params of 256 rows, float64."""
    f, X = bridged(framework, 256, 64)
    params = f.params
    return lambda: f.jacobian(params, X)


def _rule(size: int) -> Case:
    """Value and gradient through a function without a framework, its gradient written down."""
    cube = gb.primitive(lambda x: x**3)
    cube.defvjp(lambda ans, x: lambda v: 3 * x**2 * v)
    through, x = value_and_grad(lambda x: anp.sum(cube(x) ** 2)), np.linspace(-1, 1, size)
    return lambda: through(x)


def _autograd(name: str) -> Case:
    """Value and gradient of a function of autograd.numpy as a guest."""
    sizes, rows = SIZES[name]
    X = np.random.default_rng(0).normal(size=(rows, sizes[0]))
    weights = np.random.default_rng(1).normal(size=sum((a + 1) * b for a, b in itertools.pairwise(sizes))) / 8
    f = gb.bridge(in_autograd(sizes), params=weights, backend="autograd")
    through, params = value_and_grad(sum_of_squares(f, X)), f.params
    return lambda: through(params)


#: {name: makes the case}
CASES: dict[str, Callable[[], Case]] = {
    **{f"{framework}/{name}": partial(_step, framework, name) for framework in FRAMEWORKS for name in SIZES},
    **{f"{framework}/product": partial(_product, framework) for framework in FRAMEWORKS},
    **{f"{framework}/jacobian": partial(_jacobian, framework) for framework in FRAMEWORKS},
    "rule/tiny": partial(_rule, 12),
    "rule/large": partial(_rule, 1_000_000),
    "autograd/tiny": partial(_autograd, "tiny"),
    "autograd/small": partial(_autograd, "small"),
}
