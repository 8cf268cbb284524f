"""Episodes end to end, and sums over the steps of each."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from autograd.extend import defjvp, defvjp, primitive

from gradbridge.protocol import Array
from gradbridge_seldonian.reinforcement.distributions import PolicyError

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
        for name, found, shape in (
            ("rewards", self.rewards, (steps,)),
            ("alt_rewards", self.alt_rewards, (steps, *self.alt_rewards.shape[1:2])),
        ):
            if found.dtype.kind not in "biuf" or found.shape != shape:
                raise PolicyError(
                    f"{name} must be real numbers, {'one' if name == 'rewards' else 'a row'} for each step; got dtype "
                    f"{found.dtype}, shape {found.shape} for {steps} steps"
                )
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
