"""Bridges over Keras models beside the same in autograd, in float64."""

import autograd
import autograd.numpy as anp
import numpy as np
from keras import ops

X = np.random.default_rng(0).normal(size=(4, 3))


def arrays(*variables):
    return [np.asarray(ops.convert_to_numpy(v), "float64") for v in variables]


def tensor(x):
    return ops.convert_to_tensor(x.astype("float32"))


def held(model, *inputs):
    """What a model gives by itself."""
    return ops.convert_to_numpy(model(*map(tensor, inputs)))


def summed(f, *inputs):
    return lambda p, *xs: anp.sum(anp.sin(f(p, *(xs or inputs))))


def is_closed_form(f, closed, *inputs, rtol=1e-10):
    """Value, gradients and a Hessian product of a bridge are those of a function of autograd, in float64."""
    p = 1.1 * f.params
    np.testing.assert_allclose(f(p, *inputs), closed(p, *inputs), rtol=rtol, atol=rtol)
    every = tuple(range(1 + len(inputs)))
    found = autograd.grad(summed(f, *inputs), every)(p, *inputs)
    for one, other in zip(found, autograd.grad(summed(closed, *inputs), every)(p, *inputs)):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)
    u = np.random.default_rng(1).normal(size=p.size)
    found = autograd.hessian_vector_product(summed(f, *inputs))(p, u)
    np.testing.assert_allclose(
        found, autograd.hessian_vector_product(summed(closed, *inputs))(p, u), rtol=1e-7, atol=1e-9
    )
