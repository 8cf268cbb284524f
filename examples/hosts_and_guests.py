"""Every host through every guest: how far the Hessian is from its closed form, in float64.

One function is written in each framework, bridged, and differentiated twice by each host.
"""

import autograd
import autograd.numpy as anp
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import torch

import gradbridge as gb
from pictures import run

jax.config.update("jax_enable_x64", True)
W, x = np.random.default_rng(0).normal(size=(5, 3)), np.array([0.3, -0.2, 0.5])
EXACT = W.T @ ((-2 * np.tanh(W @ x) / np.cosh(W @ x) ** 2)[:, None] * W)
GUESTS = {
    "autograd": lambda x: anp.sum(anp.tanh(anp.dot(W, x))),
    "jax": lambda x: jnp.sum(jnp.tanh(W @ x)),
    "tensorflow": lambda x: tf.reduce_sum(tf.tanh(tf.linalg.matvec(W, x))),
    "torch": lambda x: torch.tanh(torch.tensor(W) @ x).sum(),
}


def by_tensorflow(f):
    point = tf.Variable(x)
    with tf.GradientTape() as outer, tf.GradientTape() as inner:
        gradient = inner.gradient(f(point), point)
    return outer.jacobian(gradient, point)


HOSTS = {
    "autograd": lambda f: autograd.hessian(f)(x),
    "jax": lambda f: jax.jit(jax.hessian(f))(x),
    "tensorflow": by_tensorflow,
    "torch": lambda f: torch.func.hessian(f)(torch.tensor(x)),
}


def main():
    bridges = [gb.primitive(f, backend=guest, outputs=((), "float64")) for guest, f in GUESTS.items()]
    off = np.array([[abs(np.asarray(host(f)) - EXACT).max() for f in bridges] for host in HOSTS.values()])
    print(f"check: Hessians of {off.size} pairs against the closed form: {off.max():.1e}")
    fig, ax = plt.subplots()
    ax.imshow(np.log10(np.maximum(off, 1e-17)), cmap="cividis", vmin=-17, vmax=-8, aspect="auto")
    for i, j in np.ndindex(off.shape):
        ax.text(j, i, f"{off[i, j]:.0e}", color="white", ha="center", va="center")
    ax.set(xlabel="guest, which holds the function", ylabel="host, which differentiates")
    ax.set_xticks(range(len(GUESTS)), GUESTS)
    ax.set_yticks(range(len(HOSTS)), HOSTS)
    ax.set_title(f"Largest error of a Hessian (its entries: up to {abs(EXACT).max():.1f})")
    return fig


if __name__ == "__main__":
    run(main)
