"""Thomson's problem: how do 32 electrons arrange themselves on a sphere?

Pymanopt's trust regions on the manifold of 32 unit vectors, with its autograd backend; the energy is written in JAX.
Its gradient and products with its Hessian come through the bridge. The problem: Thomson (1904), On the structure of
the atom, Philosophical Magazine 7, 237-265.
"""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pymanopt
from scipy.spatial import ConvexHull

import gradbridge as gb
from pictures import BLUE, RED, run

COUNT, KNOWN = 32, 412.261274651  # the least energy known, from the table of Wikipedia's "Thomson problem"
FIRST, SECOND = np.triu_indices(COUNT, 1)


@gb.primitive(backend="jax")
def energy(X):
    """Of unit charges at the columns of X, (3, COUNT): the sum of 1 / distance over pairs."""
    return jnp.sum(1 / jnp.linalg.norm(X[:, FIRST] - X[:, SECOND], axis=0))


def main():
    sphere = pymanopt.manifolds.Oblique(3, COUNT)
    problem = pymanopt.Problem(sphere, pymanopt.function.autograd(sphere)(lambda X: energy(X)))
    start = np.random.default_rng(1).normal(size=(3, COUNT))
    start /= np.linalg.norm(start, axis=0)
    optimizer = pymanopt.optimizers.TrustRegions(verbosity=0, min_gradient_norm=1e-9)
    result = optimizer.run(problem, initial_point=start)
    print(f"{result.iterations} iterations, gradient {result.gradient_norm:.0e}")
    print(f"check: energy {result.cost:.9f} against the table's {KNOWN}: {abs(result.cost - KNOWN):.1e}")

    fig = plt.figure(figsize=(9, 4.3))
    for place, (points, title) in enumerate(((start, "at first"), (result.point, "of least energy"))):
        ax = fig.add_subplot(1, 2, 1 + place, projection="3d", proj_type="ortho", computed_zorder=False)
        ax.set_box_aspect((1, 1, 1), zoom=1.5)
        ax.view_init(elev=20, azim=30)
        faces = ConvexHull(points.T).simplices
        ax.plot_trisurf(*points, triangles=faces, color="#F2F2F2", edgecolor="#999999", lw=1, shade=False)
        neighbors = np.bincount(faces.ravel(), minlength=COUNT)
        front = np.array([0.81, 0.47, 0.34]) @ points > 0.05  # towards the viewer
        kind = np.clip(neighbors, 4, 7) % 7 % 4  # 1: five, 2: six, 0: any other
        for k, color, look, label in ((1, RED, "o", "5"), (2, BLUE, "^", "6"), (0, "k", "x", "other")):
            seen = points[:, front & (kind == k)]
            ax.scatter(*seen, s=90, color=color, marker=look, label=label, depthshade=False, zorder=9)
        ax.set_axis_off()
        ax.set_title(title)
    print(f"{sum(neighbors == 5)} points have five neighbors, {sum(neighbors == 6)} have six")
    fig.legend(*ax.get_legend_handles_labels(), title="neighbors", loc="center")
    return fig


if __name__ == "__main__":
    run(main)
