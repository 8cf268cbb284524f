"""A C function within a Keras `fit`: a planet in the wobble of a star that is active itself.

Where a planet is on its orbit is the solution of Kepler's equation, E - e sin E = M, which astronomers' C libraries solve;
C knows no gradients, but the equation's implicit derivative is two lines. The star's activity moves the spectrum, too,
nobody knows quite how: a small network learns it. Both are fitted together by Keras' own `fit`:
``python examples/orbit_in_keras.py [PICTURE.png]``.
"""

from __future__ import annotations

import ctypes
import pathlib
import shutil
import subprocess
import sys
import tempfile

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

import gradbridge as gb

SOURCE = """
#include <math.h>
void anomalies(int n, const double *mean, double e, double *eccentric) {  /* E of E - e sin E = M, by Newton's method */
    for (int i = 0; i < n; i++) {
        double E = mean[i] + e * sin(mean[i]);
        for (int k = 0; k < 50; k++) {
            double step = (E - e * sin(E) - mean[i]) / (1.0 - e * cos(E));
            E -= step;
            if (fabs(step) < 1e-14) break;
        }
        eccentric[i] = E;
    }
}
"""
TRUTH = {
    "amplitude": 55.0,
    "eccentricity": 0.45,
    "period": 17.1,
    "periastron": 0.9,
    "phase": -1.1,
}  # m/s, 1, days
NOISE = 3.0  # m/s


with tempfile.TemporaryDirectory() as folder:
    source, library = pathlib.Path(folder, "kepler.c"), pathlib.Path(folder, "kepler.so")
    source.write_text(SOURCE)
    compiler = next(filter(shutil.which, ("cc", "gcc", "clang")))
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source, "-lm"], check=True)
    c = ctypes.CDLL(str(library))
array = np.ctypeslib.ndpointer(np.float64, flags="C_CONTIGUOUS")
c.anomalies.argtypes = (ctypes.c_int, array, ctypes.c_double, array)


@gb.primitive(
    outputs=lambda mean, e: mean
)  # as many numbers as it is given: compiled programs ask before it runs
def anomaly(mean, e):
    """E of E - e sin E = M: any shape, and a number."""
    mean = np.ascontiguousarray(mean, np.float64)
    eccentric = np.empty_like(mean)
    c.anomalies(mean.size, mean, float(e), eccentric)
    return eccentric


anomaly.defvjp(  # dE = (dM + sin E de) / (1 - e cos E)
    lambda E, mean, e: lambda v: v / (1 - e * np.cos(E)),
    lambda E, mean, e: lambda v: np.sum(v * np.sin(E) / (1 - e * np.cos(E))),
)


class Orbit(keras.layers.Layer):
    """The radial velocity of a star with one planet at times (n, 1), m/s; its weight holds the orbit's elements."""

    def build(self, shape):
        self.supports_jit = False  # XLA compiles no C
        start = [np.log(30.0), -1.0, np.log(16.8), 0.3, -0.5]
        self.free = self.add_weight(
            shape=(5,), initializer=lambda *_, **__: ops.convert_to_tensor(start, "float32")
        )

    def elements(self):
        """Those of `TRUTH`, in its order."""
        amplitude, eccentricity, period, periastron, phase = ops.unstack(self.free)
        return ops.exp(amplitude), ops.sigmoid(eccentricity), ops.exp(period), periastron, phase

    def call(self, time):
        return velocity(*self.elements(), time)


def velocity(amplitude, e, period, periastron, phase, time):
    """m/s at times: Kepler's equation in C, the rest in Keras."""
    E = anomaly(2 * np.pi / period * time + phase, e)
    x, y = ops.cos(E) - e, ops.sqrt(1 - e**2) * ops.sin(E)
    moving = (ops.cos(periastron) * x - ops.sin(periastron) * y) / (1 - e * ops.cos(E))
    return amplitude * (moving + e * ops.cos(periastron))


def observed(count=120, seed=0):
    """Times (days), an index of activity, velocities, and the part of them that is the star's own activity."""
    rng = np.random.default_rng(seed)
    time, index = np.sort(rng.uniform(0, 90, (count, 1)), 0), rng.uniform(-1, 1, (count, 1))
    activity = 25 * np.tanh(3 * index) - 12 * index**2
    clean = ops.convert_to_numpy(velocity(*TRUTH.values(), ops.convert_to_tensor(time, "float32"))) + activity
    return time, index, clean + NOISE * rng.normal(size=clean.shape), activity


def main(picture="orbit_in_keras.png", epochs=100):
    """Fit, print, draw; returns what the test looks at."""
    keras.utils.set_random_seed(0)
    time, index, velocities, activity = observed()
    inputs = {"time": keras.Input((1,), name="time"), "index": keras.Input((1,), name="index")}
    orbit, network = Orbit(), keras.Sequential([keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)])
    model = keras.Model(inputs, orbit(inputs["time"]) + 30.0 * network(inputs["index"]))
    rate = keras.optimizers.schedules.CosineDecay(0.05, 5 * epochs)
    model.compile(keras.optimizers.Adam(rate), loss="mse")
    history = model.fit({"time": time, "index": index}, velocities, batch_size=24, epochs=epochs, verbose=0)
    errors = np.sqrt(history.history["loss"])
    elements = {name: float(ops.convert_to_numpy(value)) for name, value in zip(TRUTH, orbit.elements())}
    print(f"error of the fit: {errors[0]:.1f} m/s at first, {errors[-1]:.2f} in the end; noise {NOISE} m/s")
    print("; ".join(f"{name} {elements[name]:.3g} (true {value})" for name, value in TRUTH.items()))
    learnt = 30 * network.predict(index, verbose=0)
    draw(picture, orbit, elements, time, index, velocities, activity, learnt)
    return {"errors": errors, "elements": elements, "model": model}


def draw(picture, orbit, elements, time, index, velocities, activity, learnt):
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    period, order = elements["period"], np.argsort(index[:, 0])
    days = np.linspace(0, period, 300)[:, None]
    left.plot(time, velocities, "o", ms=4, color="0.45")
    left.set(title="What the spectrograph saw", xlabel="days", ylabel="radial velocity, m/s")
    middle.plot(time % period, velocities - learnt, "o", ms=4, color="0.45", label="without the activity")
    middle.plot(days, ops.convert_to_numpy(orbit(days)), color="#0072B2", lw=2, label="planet, by C")
    middle.set(title=f"Folded by {period:.2f} days", xlabel="days")
    right.plot(index[order], activity[order], color="0.75", lw=6, label="true")
    right.plot(index[order], learnt[order], color="#D55E00", lw=2, label="learnt by Keras")
    right.set(title="The star itself", xlabel="index of activity")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    middle.legend(frameon=False)
    right.legend(frameon=False)
    fig.savefig(picture, dpi=150)
    plt.close(fig)


if __name__ == "__main__":
    main(*sys.argv[1:])
