"""`SeldonianPolicy`: any bridge as a policy of the Seldonian Engine's reinforcement learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import Box

import gradbridge
from gradbridge.errors import GradbridgeError, NonFiniteParamsError, OptionError
from gradbridge.protocol import Array
from gradbridge_seldonian.engine import Policy
from gradbridge_seldonian.model import REUSE
from gradbridge_seldonian.reinforcement.distributions import Gaussian, PolicyError, Softmax
from gradbridge_seldonian.reinforcement.one_step import check_steps
from gradbridge_seldonian.reinforcement.traced import TracedArray, numbers

__all__ = ["Gaussian", "OneHot", "PolicyError", "SeldonianPolicy", "Softmax"]


class OneHot:
    """An `encode` for discrete observations: row i is zero but for a one in column ``observation − first``.

    Args:
        count: how many observations there are.
        first: the smallest.
    """

    def __init__(self, count: int, first: int = 0) -> None:
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            raise OptionError(f"count must be a number of observations, 1 or more, got {count!r}")
        if isinstance(first, bool) or not isinstance(first, (int, np.integer)):
            raise OptionError(f"first must be the smallest observation, an integer, got {first!r}")
        self._count, self._first = int(count), int(first)

    def __call__(self, observations: Any) -> Array:
        """(n, count) from n observations.

        Raises:
            PolicyError: an observation that is none of them.
        """
        observations = np.asarray(observations)
        columns = np.arange(self._first, self._first + self._count)
        hot = observations[:, None] == columns if observations.ndim == 1 else np.zeros((1, 0), bool)
        known = hot.any(1)
        if not known.all():
            got = (
                observations[~known][0]
                if observations.ndim == 1
                else f"an array of shape {observations.shape}"
            )
            raise PolicyError(f"observations are {columns[0]} to {columns[-1]}, one number each; got {got}")
        return hot.astype(np.float64)


class SeldonianPolicy(Policy):
    """A policy over a network of any framework, in the engine's interface.

    ::

        policy = SeldonianPolicy(torch.nn.Linear(9, 4), encode=OneHot(9))

    The engine's runner takes it as an agent, too: ``run_episode(policy, environment)``. It copies and pickles; then
    `encode` must, which a lambda does not.

    A policy is asked for one step at a time when it acts, and for many at once in an estimate. That both are the same
    is looked at where many are asked for: an `encode` or a network whose rows depend on each other is refused.

    Args:
        model: a native model, or a `gradbridge.Bridge`. It maps n encoded observations to n rows of outputs.
        encode: n observations, (n,) or (n, …) as the episodes have them, → the model's input with n rows, or a list
            of inputs. A function of the observations alone. None hands on numbers as (n, …) float64, (n, 1) where
            an observation is one number.
        backend: the guest's backend; None finds it from the model's class.
        params: a function's parameters, as in `gradbridge.bridge`.
        distribution: what the outputs mean: `Softmax` by default, or `Gaussian`.
        dtype: the dtype to compute in; None is the engine's float64.
        reuse: how many evaluations to remember; see `gradbridge.bridge`. Random models get 0.
        **bridge_options: of `gradbridge.bridge`.

    Attributes:
        bridge: the bridge underneath.
        distribution: as given.
    """

    def __init__(
        self,
        model: Any,
        encode: Callable[[Any], Any] | None = None,
        backend: str | None = None,
        params: Any = None,
        *,
        distribution: Any = None,
        dtype: Any = None,
        reuse: int | None = None,
        **bridge_options: Any,
    ) -> None:
        super().__init__()
        if encode is not None and not callable(encode):
            raise OptionError(f"encode must be a function of observations, got {encode!r}")
        self.distribution = Softmax() if distribution is None else distribution
        if not hasattr(self.distribution, "log_probs"):
            raise OptionError(f"distribution must be a Softmax(…) or a Gaussian(…), got {distribution!r}")
        if isinstance(model, gradbridge.Bridge):
            if bridge_options or any(option is not None for option in (backend, params, dtype, reuse)):
                raise OptionError("a Bridge is complete: give its options where it is made")
            self.bridge = model
        else:
            if reuse is None:
                reuse = 0 if bridge_options.get("mode") == "train" else REUSE
            self.bridge = gradbridge.bridge(
                model, backend=backend, params=params, dtype=dtype, reuse=reuse, **bridge_options
            )
        self._encode = encode
        self._held = TracedArray(np.concatenate([self.bridge.params, self.distribution.start()]))
        self._seen = 0  # rows that were looked at together and one by one

    def set_new_params(self, new_params: Any) -> None:
        """Hold these parameters, (P,), perhaps traced: those of the network, then the distribution's own.

        Raises:
            PolicyError: not (P,).
        """
        self._held = TracedArray(self._checked(new_params))

    def get_params(self) -> Any:
        """The parameters that it holds, (P,) float64, a new array: the engine's optimizer writes into it.

        Traced while the trace lasts in which they were set, and numbers afterwards, also where it ended by an error.
        """
        return self._held.get()

    def choose_action(self, obs: Any) -> Any:
        """An action for one observation, by NumPy's global random numbers (``np.random.seed``)."""
        network, own = self._split(numbers(self.get_params()))
        return self.distribution.draw(np.asarray(self._outputs(network, _one(obs))), own)

    def get_prob_this_action(self, observation: Any, action: Any) -> Any:
        """The probability of an action, or its density where actions are continuous."""
        answer = anp.exp(self.log_probs(self.get_params(), _one(observation), _one(action)))[0]
        return answer if isinstance(answer, Box) else float(answer)

    def get_probs_from_observations_and_actions(
        self, observations: Any, actions: Any, behavior_action_probs: Any = None
    ) -> Any:
        """(n,) probabilities, or densities, of n actions: of an episode, or of many, end to end."""
        return anp.exp(self.log_probs(self.get_params(), observations, actions))

    def log_probs(self, theta: Any, observations: Any, actions: Any) -> Any:
        """(n,) logarithms of them at given parameters, differentiable with respect to `theta`; one guest forward.

        Args:
            theta: (P,).
            observations: n of them, as `encode` takes them.
            actions: n of them.

        Raises:
            PolicyError: parameters, encoded observations, outputs or actions that do not fit each other; rows that
                depend on each other.
        """
        observations = np.asarray(observations)
        if len(observations) != len(actions):
            raise PolicyError(f"{len(observations)} observations need as many actions, got {len(actions)}")
        network, own = self._split(self._checked(theta))
        log_probs = self.distribution.log_probs(self._outputs(network, observations), own, actions)
        many = len(observations) >= max(2, 2 * self._seen)
        if many and np.isfinite(numbers(network)).all():
            check_steps(self.bridge, self._inputs, observations, numbers(network))
            self._seen = len(observations)  # many more may show what few have not
        return log_probs

    def look_again(self) -> None:
        """Have the next many observations compared with each by itself, whatever was compared before."""
        self._seen = 0

    def update(self, observation: Any, next_observation: Any, reward: Any, terminated: bool) -> None:
        """What the engine's runner calls after each step; this agent does not learn from it."""

    def get_policy(self) -> SeldonianPolicy:
        """Itself, as the engine's agents are asked for theirs."""
        return self

    def native(self, theta: Any) -> Any:
        """A native model of the framework with these parameters in it."""
        return self.bridge.model(self._split(self._checked(numbers(theta)))[0])

    def _split(self, theta: Any) -> tuple[Any, Any]:
        if not self.distribution.own_size:
            return theta, np.empty(0)
        return theta[: self.bridge.layout.size], theta[self.bridge.layout.size :]

    def _checked(self, theta: Any) -> Any:
        if not isinstance(theta, Box):
            try:
                theta = np.asarray(theta, np.float64)
            except (TypeError, ValueError) as error:
                raise PolicyError(
                    f"parameters must be an array of numbers, got {type(theta).__name__}"
                ) from error
        own = self.distribution.own_size
        size = self.bridge.layout.size + own
        if theta.shape != (size,):
            extra = f", {own} of them the distribution's own" if own else ""
            raise PolicyError(
                f"parameters of this policy over {self.bridge.adapter.label} are of shape ({size},){extra}; got "
                f"{theta.shape}"
            )
        return theta

    def _outputs(self, network: Any, observations: Array) -> Any:
        """(n, …) from n observations, checked."""
        rows = len(observations)
        inputs = self._inputs(observations)
        for x in inputs:
            if not hasattr(x, "shape") or not x.shape or x.shape[0] != rows:
                got = x.shape if hasattr(x, "shape") else type(x).__name__
                raise PolicyError(
                    f"encode must give a row for each observation: for {rows} observations, (n, …) of shape "
                    f"{observations.shape}, it gave {got}"
                )
        try:
            outputs = self.bridge(network, *inputs)
        except ValueError as error:
            if not isinstance(error, GradbridgeError) or isinstance(error, NonFiniteParamsError):
                raise  # with check_finite=, a run that diverged is a trial that failed
            raise PolicyError(f"the encoded observations do not fit the network: {error}") from error
        if not hasattr(outputs, "shape"):
            raise PolicyError(
                f"a policy needs a network that returns one array, got {type(outputs).__name__}"
            )
        self.distribution.check_outputs(tuple(outputs.shape), rows)
        return outputs

    def _inputs(self, observations: Array) -> list[Any]:
        if self._encode is None:
            try:
                numbers = np.asarray(observations, np.float64)
            except (TypeError, ValueError) as error:
                raise PolicyError(
                    f"observations of dtype {observations.dtype} are not numbers; give encode=, which makes inputs of "
                    f"the network out of them"
                ) from error
            return [numbers if numbers.ndim > 1 else numbers[:, None]]
        try:
            encoded = self._encode(observations)
        except GradbridgeError:
            raise
        except Exception as error:
            raise PolicyError(
                f"encode failed on {len(observations)} observations, an array of shape {observations.shape} and dtype "
                f"{observations.dtype}: {type(error).__name__}: {error}"
            ) from error
        return list(encoded) if isinstance(encoded, (list, tuple)) else [encoded]


def _one(value: Any) -> Array:
    return np.asarray(value)[None]
