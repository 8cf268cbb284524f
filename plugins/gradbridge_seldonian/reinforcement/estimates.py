"""Importance sampling estimates from one evaluation of a policy at all steps of all episodes.

The engine asks the policy for each episode by itself, and multiplies the ratios of probabilities. Here they are
asked for once, and logarithms are added, so that long episodes neither overflow nor underflow on the way.

Source:
    Precup, Sutton & Singh (2000), Eligibility Traces for Off-Policy Policy Evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import Box

from gradbridge.protocol import Array
from gradbridge_seldonian.engine import RL_model
from gradbridge_seldonian.evaluation.sweep import Sweep
from gradbridge_seldonian.reinforcement.episodes import Episodes, segment_cumsum, segment_sum
from gradbridge_seldonian.reinforcement.policy import SeldonianPolicy
from gradbridge_seldonian.reinforcement.traced import numbers

# The exponential of more is not finite.
_STEEPEST = 700.0


class Ratios:
    """Ratios of a policy's probabilities to the behavior policy's, for N steps.

    Attributes:
        logs: (N,) their logarithms; 0 where a ratio is.
        zeros: (N,) the ratios where they are 0, and 0 elsewhere; None if none is. A logarithm has no derivative
            there, and a product does.
        is_zero: (N,) where they are.
    """

    def __init__(self, logs: Any, zeros: Any = None, is_zero: Array | None = None) -> None:
        self.logs, self.zeros, self.is_zero = logs, zeros, is_zero

    def products(self, over: Callable[[Any], Any], scale: bool = False) -> Any:
        """Products of ratios.

        Args:
            over: sums of steps, for a product of each; a linear function of (N,).
            scale: divide all products by the same number, so that the largest is 1.
        """
        sums = over(self.logs)
        if self.zeros is None:
            return anp.exp(sums - (np.max(numbers(sums)) if scale else 0.0))
        count = over(self.is_zero.astype(np.float64))  # type: ignore[union-attr]
        if scale:
            sums = sums - np.max(numbers(sums), initial=-np.inf, where=count == 0)
        # With one ratio of 0, a product is 0 and its derivative that of the ratio times the others; with more, none.
        sums = anp.where(
            count > 1, 0.0, anp.where((count == 1) & (numbers(sums) > _STEEPEST), _STEEPEST, sums)
        )
        return anp.exp(sums) * ((count == 0) + (count == 1) * over(self.zeros))


def ratios(model: Any, theta: Any, episodes: Episodes) -> Ratios:
    """The ratios of the policy's probabilities to the behavior policy's; one guest forward.

    Args:
        model: the engine's ``RL_model`` over any policy, which is left as it was.
        theta: its parameters, perhaps traced.
        episodes: n of them, N steps.
    """
    episodes.check_behavior()
    policy, e = model.policy, episodes
    if (
        isinstance(policy, SeldonianPolicy)
        and _method(model) is RL_model.get_probs_from_observations_and_actions
        and _method(policy) is SeldonianPolicy.get_probs_from_observations_and_actions
    ):
        return Ratios(policy.log_probs(theta, e.observations, e.actions) - np.log(e.action_probs))
    with unmoved(policy):
        probs = model.get_probs_from_observations_and_actions(
            theta, e.observations, e.actions, e.action_probs
        )
    is_zero = np.asarray(numbers(probs)) == 0
    if not is_zero.any():
        return Ratios(anp.log(probs) - np.log(e.action_probs))
    logs = anp.log(anp.where(is_zero, 1.0, probs)) - np.where(is_zero, 0.0, np.log(e.action_probs))
    return Ratios(logs, anp.where(is_zero, probs / e.action_probs, 0.0), is_zero)


@contextmanager
def unmoved(policy: Any) -> Iterator[None]:
    """Evaluate a policy, and leave it with the parameters that it has: the engine leaves those of its last try."""
    before = policy.get_params()
    before = before if isinstance(before, Box) else np.array(before)
    try:
        yield
    finally:
        policy.set_new_params(before)


def _method(thing: Any) -> Any:
    found = getattr(thing, "get_probs_from_observations_and_actions")  # noqa: B009
    return getattr(found, "__func__", found)


def is_samples(ratios: Ratios, episodes: Episodes, gamma: float, alt: int | None = None) -> Any:
    """(n,) ordinary importance sampling: ρ G, ρ the product of an episode's ratios, G its return."""
    return ratios.products(_whole(episodes)) * episodes.returns(gamma, alt)


def pdis_samples(ratios: Ratios, episodes: Episodes, gamma: float, alt: int | None = None) -> Any:
    """(n,) per-decision importance sampling: Σ γ^t r_t ρ_t, ρ_t the product of the ratios up to step t."""
    weights = ratios.products(lambda x: segment_cumsum(x, episodes.lengths))
    return segment_sum(weights * episodes.discounted(gamma, alt), episodes.owner, len(episodes))


def wis_samples(ratios: Ratios, episodes: Episodes, gamma: float, alt: int | None = None) -> Any:
    """(n,) weighted importance sampling: n ρ G / Σ ρ."""
    weights = ratios.products(_whole(episodes), scale=True)  # a common factor cancels
    return len(episodes) * weights / anp.sum(weights) * episodes.returns(gamma, alt)


def _whole(episodes: Episodes) -> Callable[[Any], Any]:
    return lambda x: segment_sum(x, episodes.owner, len(episodes))


#: {the engine's name: samples of an estimate, one for each episode, whose mean it is}.
ESTIMATES: dict[str, Callable[..., Any]] = {"IS": is_samples, "PDIS": pdis_samples, "WIS": wis_samples}


def gamma_of(model: Any) -> float:
    """The discount factor of the engine's RL model."""
    return float(model.env_kwargs.get("gamma", 1.0))


class SweptEstimate:
    """A primary objective over episodes whose value and gradient come from one evaluation.

    Args:
        objective: ``f(model, theta, episodes, **kwargs)``, a number that the engine maximizes.
        look: called before the first evaluation in each process.
    """

    def __init__(self, objective: Callable[..., Any], look: Callable[[], Any]) -> None:
        self.__name__ = getattr(objective, "__name__", type(objective).__name__)
        self._objective, self._look = objective, look
        self._sweep = Sweep()

    def __call__(self, model: Any, theta: Any, episodes: Sequence[Any], **kwargs: Any) -> Any:
        """The objective, an estimate of the return under the policy with parameters `theta`."""
        self._look()
        joined = Episodes(episodes)
        data = [model, gamma_of(model), *joined.arrays(), *kwargs.values()]
        with unmoved(model.policy):
            return self._sweep(theta, data, lambda t: self._objective(model, t, joined, **kwargs))


class Estimate:
    """An estimate of the return of a policy from episodes of another, e.g. ``Estimate("PDIS")``."""

    def __init__(self, kind: str) -> None:
        self.__name__ = f"{kind}_estimate"
        self._samples = ESTIMATES[kind]

    def __call__(self, model: Any, theta: Any, episodes: Sequence[Any], **kwargs: Any) -> Any:
        """The engine's function of this name: the mean over episodes."""
        joined = Episodes.of(episodes)
        return anp.mean(self._samples(ratios(model, theta, joined), joined, gamma_of(model)))
