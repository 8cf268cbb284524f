"""Episodes end to end, and importance sampling estimates from one evaluation of a policy at all steps of all of them.

The engine asks the policy for each episode by itself, and multiplies the ratios of probabilities. Here they are
asked for once, and logarithms are added, so that long episodes neither overflow nor underflow on the way.

Source:
    Precup, Sutton & Singh (2000), Eligibility Traces for Off-Policy Policy Evaluation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import Box, defjvp, defvjp, primitive

from gradbridge.protocol import Array
from gradbridge_seldonian.engine import RL_model
from gradbridge_seldonian.evaluation.sweep import Sweep
from gradbridge_seldonian.reinforcement.distributions import PolicyError
from gradbridge_seldonian.reinforcement.policy import SeldonianPolicy

ARRAYS = ("observations", "actions", "rewards", "action_probs")


class Episodes(Sequence[Any]):
    """Episodes of the engine with their steps joined, N in all; a sequence of the episodes themselves, too.

    Joined anew wherever it is made, because episodes may be changed in place.

    Attributes:
        observations: (N, …).
        actions: (N, …).
        rewards: (N,).
        action_probs: (N,), of the behavior policy.
        alt_rewards: (N, k).
        lengths: (n,) steps of each episode.
        owner: (N,) number of the episode that a step belongs to.
        step: (N,) number of the step within it.
    """

    observations: Array
    actions: Array
    rewards: Array
    action_probs: Array

    def __init__(self, episodes: Sequence[Any]) -> None:
        self._episodes = list(episodes)
        if not self._episodes:
            raise PolicyError("importance sampling needs one episode at least, got none")
        lengths = [len(e.actions) for e in self._episodes]
        for name in ARRAYS:
            setattr(self, name, self._joined(name, lengths))
        self.lengths = np.array(lengths)
        steps = len(self.actions)
        has_alternates = all(e.n_alt_rewards for e in self._episodes if len(e.actions))
        self.alt_rewards = self._joined("alt_rewards", lengths) if has_alternates else np.empty((steps, 0))
        self.owner = np.repeat(np.arange(len(lengths)), self.lengths)
        self.step = np.arange(steps) - np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)

    @classmethod
    def of(cls, episodes: Sequence[Any]) -> Episodes:
        """Episodes as they are, joined if they are not yet."""
        return episodes if isinstance(episodes, cls) else cls(episodes)

    def _joined(self, name: str, lengths: list[int]) -> Array:
        parts = list(map(operator.attrgetter(name), self._episodes))
        found = list(map(len, parts))
        if found != lengths:
            number = next(i for i, (ours, theirs) in enumerate(zip(found, lengths)) if ours != theirs)
            raise PolicyError(
                f"episode {number} has {lengths[number]} actions, and {found[number]} {name}: one for each step"
            )
        if 0 in lengths:  # an empty episode's arrays have a dtype that means nothing
            parts = [part for part in parts if len(part)] or parts[:1]
        try:
            return np.concatenate(parts)
        except ValueError as error:
            shapes = sorted({part.shape[1:] for part in parts}, key=str)[:3]
            raise PolicyError(
                f"{name} must have the same shape at all steps, got {', '.join(map(str, shapes))}"
            ) from error

    def __len__(self) -> int:
        return len(self._episodes)

    def __getitem__(self, which: Any) -> Any:
        return self._episodes[which]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._episodes)

    def arrays(self) -> list[Array]:
        """All that an estimate depends on besides the policy."""
        return [*(getattr(self, name) for name in ARRAYS), self.alt_rewards, self.lengths]

    def discounted(self, gamma: float, alt: int | None = None) -> Array:
        """(N,) rewards γ^t r_t.

        Args:
            gamma: the discount factor.
            alt: the number of the alternate reward, from 1; None for the primary one.
        """
        if alt is None:
            rewards = self.rewards
        elif 1 <= alt <= self.alt_rewards.shape[1]:
            rewards = self.alt_rewards[:, alt - 1]
        else:
            raise PolicyError(
                f"alternate reward [{alt}] was asked for, and the episodes have {self.alt_rewards.shape[1]} of them"
            )
        return rewards * np.power(float(gamma), self.step)

    def returns(self, gamma: float, alt: int | None = None) -> Array:
        """(n,) discounted returns of the episodes."""
        return np.bincount(self.owner, self.discounted(gamma, alt), len(self))

    def check_behavior(self, has_densities: bool = True) -> None:
        """Refuse probabilities of the behavior policy that cannot be divided by.

        Args:
            has_densities: whether they may be above 1.

        Raises:
            PolicyError
        """
        p = self.action_probs
        if p.ndim != 1 or p.dtype.kind not in "iuf":
            raise PolicyError(
                f"action_probs must be a number for each step, got shape {p.shape}, dtype {p.dtype}"
            )
        wrong = np.flatnonzero(~(np.isfinite(p) & (p > 0) & (has_densities | (p < 1 + 1e-6))))
        if wrong.size:
            first = int(wrong[0])
            raise PolicyError(
                f"the behavior policy must have had a probability above 0 of each action that it took; episode "
                f"{self.owner[first]} has {p[first]} at step {self.step[first]} ({wrong.size} of {len(p)} steps)"
            )


def log_ratios(model: Any, theta: Any, episodes: Episodes) -> Any:
    """(N,) logarithms of the ratios of the policy's probabilities to the behavior policy's; one guest forward.

    Args:
        model: the engine's ``RL_model`` over any policy.
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
        policy.set_new_params(numbers(theta))  # the engine, too, leaves it at what it evaluated last
        log_probs = policy.log_probs(theta, e.observations, e.actions)
    else:
        probs = model.get_probs_from_observations_and_actions(
            theta, e.observations, e.actions, e.action_probs
        )
        log_probs = anp.log(probs)
    return log_probs - np.log(e.action_probs)


def _method(thing: Any) -> Any:
    found = getattr(thing, "get_probs_from_observations_and_actions")  # noqa: B009
    return getattr(found, "__func__", found)


def numbers(theta: Any) -> Any:
    """What a traced array holds."""
    while isinstance(theta, Box):
        theta = theta._value
    return theta


def is_samples(log_ratios: Any, episodes: Episodes, gamma: float, alt: int | None = None) -> Any:
    """(n,) ordinary importance sampling: ρ G, ρ the product of an episode's ratios, G its return."""
    return anp.exp(segment_sum(log_ratios, episodes.owner, len(episodes))) * episodes.returns(gamma, alt)


def pdis_samples(log_ratios: Any, episodes: Episodes, gamma: float, alt: int | None = None) -> Any:
    """(n,) per-decision importance sampling: Σ γ^t r_t ρ_t, ρ_t the product of the ratios up to step t."""
    weights = anp.exp(segment_cumsum(log_ratios, episodes.lengths))
    return segment_sum(weights * episodes.discounted(gamma, alt), episodes.owner, len(episodes))


def wis_samples(log_ratios: Any, episodes: Episodes, gamma: float, alt: int | None = None) -> Any:
    """(n,) weighted importance sampling: n ρ G / Σ ρ."""
    total = segment_sum(log_ratios, episodes.owner, len(episodes))
    weights = anp.exp(total - np.max(numbers(total)))  # a common factor cancels
    return len(episodes) * weights / anp.sum(weights) * episodes.returns(gamma, alt)


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
        return self._sweep(theta, data, lambda t: self._objective(model, t, joined, **kwargs))


class Estimate:
    """An estimate of the return of a policy from episodes of another, e.g. ``Estimate("PDIS")``."""

    def __init__(self, kind: str) -> None:
        self.__name__ = f"{kind}_estimate"
        self._samples = ESTIMATES[kind]

    def __call__(self, model: Any, theta: Any, episodes: Sequence[Any], **kwargs: Any) -> Any:
        """The engine's function of this name: the mean over episodes."""
        joined = Episodes.of(episodes)
        return anp.mean(self._samples(log_ratios(model, theta, joined), joined, gamma_of(model)))


@primitive
def segment_sum(x: Any, owner: Array, count: int) -> Any:
    """(count,) sums of x (N,) over the steps of each owner."""
    return np.bincount(owner, x, count)


@primitive
def _spread(v: Any, owner: Array, count: int) -> Any:
    """The pullback of `segment_sum`: v[owner], (N,)."""
    return v[owner]


@primitive
def segment_cumsum(x: Any, lengths: Array, backwards: bool = False) -> Any:
    """(N,) running sums of x (N,) within each segment, forwards or backwards.

    Each by itself: differences of one running sum over all would lose digits.
    """
    sums, most = np.empty(len(x)), int(lengths.max(initial=0))
    starts = np.cumsum(lengths) - lengths
    if most > len(lengths):
        for start, length in zip(starts, lengths):
            part = slice(start, start + length)
            order = slice(None, None, -1 if backwards else 1)
            np.cumsum(x[part][order], out=sums[part][order])
        return sums
    # A step of all segments at once, the longest first, so that those that last are always the first ones.
    order = np.argsort(-lengths, kind="stable")
    first = (starts + lengths - 1 if backwards else starts)[order]
    lasting = len(lengths) - np.searchsorted(np.sort(lengths), np.arange(most), side="right")
    running = np.zeros(len(lengths))
    for step, count in enumerate(lasting):
        at = first[:count] - step if backwards else first[:count] + step
        running[:count] += x[at]
        sums[at] = running[:count]
    return sums


defvjp(segment_sum, lambda answer, x, owner, count: lambda v: _spread(v, owner, count), None, None)
defvjp(_spread, lambda answer, v, owner, count: lambda w: segment_sum(w, owner, count), None, None)
defvjp(
    segment_cumsum,
    lambda answer, x, lengths, backwards=False: lambda v: segment_cumsum(v, lengths, not backwards),
    None,
    None,
)
for linear in (segment_sum, _spread, segment_cumsum):
    defjvp(linear, lambda t, answer, x, *rest, linear=linear: linear(t, *rest), None, None)
