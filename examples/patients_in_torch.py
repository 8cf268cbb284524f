"""A JAX ODE within a PyTorch training loop: how fast does each patient clear a drug?

Concentrations in the blood follow an ODE: absorption from the gut, and an elimination that saturates. Whoever models
drugs in JAX has it there, vmapped over patients. How the volume and the elimination of a patient depend on weight and
kidneys is nobody's formula: a network in PyTorch learns it. Both are fitted together, by Adam, from noisy blood samples
alone: ``python examples/patients_in_torch.py [PICTURE.png]``.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch

import gradbridge as gb

STEP = 0.25  # hours
SAMPLED = np.array(
    [1, 2, 4, 6, 10, 16, 24, 36, 48, 72, 88, 120]
)  # steps at which blood is taken: 15 min to 30 h
TRUTH = {"absorption": 0.9, "half_saturation": 4.0}  # of the drug: 1/h, mg/L
NOISE = 0.08  # relative


def concentrations(rates, patients, doses):
    """mg/L after each step, (n, steps): JAX, by Runge and Kutta's method, vmapped over patients.

    Args:
        rates: logarithms of what `TRUTH` holds.
        patients: volume in L and largest elimination in mg/h, (n, 2).
        doses: mg, (n,).
    """

    absorption, half_saturation = (jnp.exp(rates[name]) for name in TRUTH)

    def velocity(state, volume, elimination):
        gut, blood = state
        absorbed = absorption * gut
        cleared = elimination * blood / (half_saturation + blood)
        return jnp.stack([-absorbed, (absorbed - cleared) / volume])

    def of_one(patient, dose):
        def step(state, _):
            k1 = velocity(state, *patient)
            k2 = velocity(state + STEP / 2 * k1, *patient)
            k3 = velocity(state + STEP / 2 * k2, *patient)
            k4 = velocity(state + STEP * k3, *patient)
            state = state + STEP / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            return state, state[1]

        return jax.lax.scan(step, jnp.stack([dose, 0.0 * dose]), length=int(SAMPLED[-1]))[1]

    return jax.vmap(of_one)(patients, doses)


class Clinic(torch.nn.Module):
    """PyTorch's layers and the ODE; the drug's rates are parameters as any others."""

    def __init__(self):
        super().__init__()
        rates = {"absorption": np.log(0.5), "half_saturation": np.log(2.0)}  # a guess
        self.ode = gb.bridge(concentrations, params=rates, backend="jax")
        self.rates = torch.nn.ParameterDict(
            {name: torch.tensor(rate).float() for name, rate in rates.items()}
        )
        self.encoder = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))

    def patients(self, covariates):
        """Volume and largest elimination of each patient, (n, 2)."""
        return torch.tensor([30.0, 15.0]) * torch.exp(self.encoder(covariates))

    def forward(self, covariates, doses):
        return self.ode(dict(self.rates), self.patients(covariates), doses)


def cohort(count, seed):
    """Covariates (weight, kidney function; standardized), doses, true volumes and eliminations, and blood samples."""
    rng = np.random.default_rng(seed)
    weight, kidneys = rng.uniform(45, 110, count), rng.uniform(0.4, 1.3, count)
    doses = rng.uniform(50, 600, count)
    patients = np.stack([0.5 * weight, 24 * (weight / 70) ** 0.75 * kidneys], axis=1)
    rates = {name: np.log(rate) for name, rate in TRUTH.items()}
    clean = np.asarray(concentrations(rates, *(jnp.asarray(a, jnp.float32) for a in (patients, doses))))
    noisy = clean[:, SAMPLED - 1] * np.exp(NOISE * rng.normal(size=(count, len(SAMPLED))))
    covariates = np.stack([(weight - 77) / 19, (kidneys - 0.85) / 0.26], axis=1)
    return [torch.tensor(a, dtype=torch.float32) for a in (covariates, doses, patients, noisy)]


def error(clinic, covariates, doses, samples):
    """Of the logarithms, as the noise is: the root of the mean square."""
    return torch.log(clinic(covariates, doses)[:, SAMPLED - 1] / samples).square().mean().sqrt()


def fit(clinic, covariates, doses, samples, steps=500):
    """Train all of it; returns the errors on the way."""
    optimizer = torch.optim.Adam(clinic.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    errors = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = error(clinic, covariates, doses, samples)
        loss.backward()
        optimizer.step()
        schedule.step()
        errors.append(loss.item())
    return errors


def main(picture="patients_in_torch.png"):
    """Fit, print, draw; returns what the test looks at."""
    torch.manual_seed(0)
    clinic = Clinic()
    covariates, doses, _, samples = cohort(80, seed=1)
    errors = fit(clinic, covariates, doses, samples)
    new, new_doses, patients, unseen = cohort(30, seed=2)
    with torch.no_grad():
        found, curves = clinic.patients(new), clinic(new, new_doses)
        held_out = error(clinic, new, new_doses, unseen).item()
    rates = {name: rate.exp().item() for name, rate in clinic.rates.items()}
    off = (found / patients - 1).abs().mean(0).tolist()
    print(
        f"error of blood samples: {errors[0]:.2f} at first, {errors[-1]:.3f} fitted, {held_out:.3f} on new patients, noise {NOISE}"
    )
    print("rates of the ODE:", ", ".join(f"{k} {v:.2f} (true {TRUTH[k]})" for k, v in rates.items()))
    print(f"new patients' volume within {off[0]:.1%}, elimination within {off[1]:.1%} on average")
    draw(picture, new_doses, patients, found, curves, unseen)
    return {"errors": errors, "held_out": held_out, "rates": rates, "off": off}


def draw(picture, doses, patients, found, curves, samples):
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    hours = STEP * np.arange(1, curves.shape[1] + 1)
    for i, color in zip(np.argsort(doses.numpy())[[5, 18, 28]], ("#0072B2", "#E69F00", "#CC79A7")):
        left.plot(hours, curves[i], color=color, label=f"{doses[i]:.0f} mg")
        left.plot(STEP * SAMPLED, samples[i], "o", ms=5, color=color)
    left.set(xlabel="hours after the dose", ylabel="mg/L in the blood", title="Patients that were not fitted")
    left.legend(frameon=False)
    right.axline((20, 20), slope=1, color="0.7", lw=1)
    right.plot(patients[:, 1], found[:, 1], "o", ms=5, color="#009E73")
    right.set(xlabel="true largest elimination, mg/h", ylabel="what the network says", aspect="equal")
    right.set_title("From weight and kidneys alone")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    fig.savefig(picture, dpi=150)
    plt.close(fig)


if __name__ == "__main__":
    main(*sys.argv[1:])
