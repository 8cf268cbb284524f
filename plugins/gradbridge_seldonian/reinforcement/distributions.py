"""How a policy draws actions from a network's outputs: `Softmax` for discrete actions, `Gaussian` for continuous ones.

Densities are computed as logarithms, for all steps at once, and can be differentiated as often as the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defjvp, defvjp, primitive

from gradbridge.errors import BorderError, OptionError
from gradbridge.protocol import Array


class PolicyError(BorderError, RuntimeError):
    """A policy and the episodes do not fit each other.

    No ``ValueError``: the experiments package takes that for a trial that failed, and goes on without a word.
    """


class Softmax:
    """Discrete actions: probabilities are the softmax of the network's outputs, one output for each action.

    Args:
        min_action: the action of the first output, as in the engine's descriptions of environments; the others
            count up from it.
        actions: how many actions there are, which is checked; or the actions themselves, numbers or strings, in the
            order of the outputs, where they do not count up. None takes as many as the network has outputs.
    """

    own_size = 0

    def __init__(self, min_action: int = 0, actions: int | Sequence[Any] | None = None) -> None:
        if isinstance(min_action, bool) or not isinstance(min_action, (int, np.integer)):
            raise OptionError(f"min_action must be an integer, got {min_action!r}")
        self._min = int(min_action)
        self._labels: Array | None = None
        self._count: int | None = None
        if isinstance(actions, (int, np.integer)) and not isinstance(actions, bool):
            self._count = int(actions)
        elif actions is not None:
            try:
                self._labels = np.asarray(actions)
            except ValueError as error:
                raise OptionError(f"actions must be numbers or strings, got {actions!r}") from error
            self._count = len(self._labels) if self._labels.ndim == 1 else 0
            if min_action or len(np.unique(self._labels)) != self._count:
                raise OptionError(
                    f"actions must be a number of them, or a list without repetitions and then without min_action, "
                    f"got actions={actions!r}, min_action={min_action}"
                )
        if self._count is not None and self._count < 1:
            raise OptionError(f"a policy needs one action at least, got actions={actions!r}")

    @classmethod
    def of(cls, env_description: Any) -> Softmax:
        """For the discrete action space of the engine's ``Env_Description``."""
        space = env_description.action_space
        if not hasattr(space, "get_num_values"):
            raise OptionError(
                f"a softmax policy is for a discrete action space, got a {type(space).__name__}; for continuous "
                f"actions use Gaussian(std, dimensions)"
            )
        return cls(space.min, space.get_num_values())

    def start(self) -> Array:
        """Values of its own parameters to start from; it has none."""
        return np.empty(0)

    def check_outputs(self, shape: tuple[int, ...], rows: int) -> None:
        """Refuse outputs that are not (rows, actions).

        Raises:
            PolicyError
        """
        if len(shape) != 2 or shape[0] != rows or (self._count is not None and shape[1] != self._count):
            many = f"{self._count}" if self._count is not None else "number of actions"
            raise PolicyError(
                f"a softmax policy needs outputs of shape (n, {many}), one for each action; for {rows} observations "
                f"the network returned {shape}"
            )

    def log_probs(self, outputs: Any, own: Any, actions: Any) -> Any:
        """Logarithms of the probabilities of `actions`, (n,), from outputs (n, k), perhaps traced.

        Raises:
            PolicyError: an action that is none of the k.
        """
        return _log_softmax_at(outputs, self._indices(actions, outputs.shape[1]))

    def draw(self, outputs: Array, own: Array) -> Any:
        """An action from the outputs of one observation, (1, k), by one of NumPy's global random numbers.

        The same action as the engine's softmax draws from the same preferences.
        """
        shifted = np.exp(outputs[0] - outputs[0].max())
        probabilities = shifted / sum(shifted)  # in the engine's order, for its last digit
        stop = np.random.rand()  # noqa: NPY002, the engine's generator
        if not np.isfinite(probabilities).all():
            raise PolicyError(
                f"no action can be drawn: the network returned {outputs[0]} at the policy's parameters"
            )
        reached = np.flatnonzero(np.cumsum(probabilities) >= stop)  # one after the other, as the engine adds
        # Rounding may leave the sum below one.
        index = int(reached[0] if len(reached) else np.flatnonzero(probabilities)[-1])
        return self._min + index if self._labels is None else self._labels[index].item()

    def _indices(self, actions: Any, outputs: int) -> Array:
        actions = np.asarray(actions)
        if actions.ndim == 2 and actions.shape[1] == 1:
            actions = actions[:, 0]
        if self._labels is not None:
            found = actions[:, None] == self._labels if actions.ndim == 1 else np.zeros((1, 0), bool)
            known = found.any(1)
            indices = found.argmax(1) if found.size else np.zeros(len(actions), int)
            range_ = ", ".join(map(str, self._labels.tolist()))
        else:
            whole = actions.ndim == 1 and actions.dtype.kind in "biuf"
            offsets = actions.astype(np.float64) - self._min if whole else np.full(len(actions), np.nan)
            known = (offsets >= 0) & (offsets < outputs) & (offsets == np.floor(offsets))
            indices = np.where(known, offsets, 0).astype(np.intp)
            range_ = f"{self._min} to {self._min + outputs - 1}"
        if not known.all():
            step = int(np.flatnonzero(~known)[0])
            raise PolicyError(
                f"the actions of this policy are {range_}, one for each of the network's {outputs} outputs; step {step} "
                f"has the action {actions[step]!r}. Say how actions are counted: Softmax(min_action=…) or "
                f"Softmax(actions=[…])"
            )
        return indices


class Gaussian:
    """Continuous actions: normally distributed about the network's outputs, each coordinate by itself.

    Args:
        std: the standard deviation: a number, or one for each coordinate; ``"parameter"``: learned, the same for all
            observations, its logarithms the last of the policy's parameters; ``"output"``: the network's second half
            of outputs is its logarithm.
        dimensions: coordinates of an action.
        initial_std: where a learned one starts.
    """

    def __init__(self, std: Any, dimensions: int = 1, initial_std: Any = 1.0) -> None:
        if isinstance(dimensions, bool) or not isinstance(dimensions, (int, np.integer)) or dimensions < 1:
            raise OptionError(f"dimensions must be a number of coordinates, 1 or more, got {dimensions!r}")
        self._dimensions = int(dimensions)
        self._kind = std if isinstance(std, str) else "fixed"
        if self._kind not in ("fixed", "parameter", "output"):
            raise OptionError(f"std must be a number, 'parameter' or 'output', got {std!r}")
        self._log_std = self._logarithm(std if self._kind == "fixed" else initial_std)
        self.own_size = self._dimensions if self._kind == "parameter" else 0

    def _logarithm(self, std: Any) -> Array:
        try:
            values = np.broadcast_to(np.asarray(std, np.float64), (self._dimensions,))
        except (TypeError, ValueError):
            values = np.zeros(1)
        if not (np.isfinite(values) & (values > 0)).all():
            raise OptionError(
                f"a standard deviation is a positive number, or one for each of the {self._dimensions} coordinates of "
                f"an action, got {std!r}"
            )
        return np.log(values)

    def start(self) -> Array:
        """Values of its own parameters to start from: logarithms of the standard deviation, where it is learned."""
        return self._log_std.copy() if self.own_size else np.empty(0)

    def check_outputs(self, shape: tuple[int, ...], rows: int) -> None:
        """Refuse outputs that are not (rows, coordinates), or (rows,) for one.

        Raises:
            PolicyError
        """
        width = self._dimensions * (2 if self._kind == "output" else 1)
        if shape not in ((rows, width), *([(rows,)] if width == 1 else [])):
            halves = " (means, then logarithms of the standard deviation)" if self._kind == "output" else ""
            raise PolicyError(
                f"a Gaussian policy of {self._dimensions} coordinates needs outputs of shape (n, {width}){halves}; for "
                f"{rows} observations the network returned {shape}"
            )

    def _moments(self, outputs: Any, own: Any) -> tuple[Any, Any]:
        d = self._dimensions
        if self._kind == "output":
            return outputs[:, :d], outputs[:, d:]
        return anp.reshape(outputs, (-1, d)), own if self.own_size else self._log_std

    def log_probs(self, outputs: Any, own: Any, actions: Any) -> Any:
        """Logarithms of the densities of `actions`, (n,), from outputs and own parameters, perhaps traced.

        Raises:
            PolicyError: actions of another shape, or not finite.
        """
        d, actions = self._dimensions, np.asarray(actions)
        if actions.shape not in ((len(outputs), d), *([(len(outputs),)] if d == 1 else [])) or (
            actions.dtype.kind not in "biuf" or not np.isfinite(actions).all()
        ):
            raise PolicyError(
                f"actions must be finite numbers of shape (n, {d}) for {len(outputs)} observations, got dtype "
                f"{actions.dtype}, shape {actions.shape}"
            )
        mean, log_std = self._moments(outputs, own)
        scaled = (actions.reshape(-1, d) - mean) * anp.exp(-log_std)
        return -anp.sum(0.5 * scaled**2 + log_std, axis=1) - 0.5 * d * math.log(2 * math.pi)

    def draw(self, outputs: Array, own: Array) -> Any:
        """An action from the outputs of one observation, by NumPy's global random numbers: a number, or (d,)."""
        mean, log_std = self._moments(outputs, own)
        action = mean[0] + np.exp(np.ravel(log_std)) * np.random.randn(self._dimensions)  # noqa: NPY002
        if not np.isfinite(action).all():
            raise PolicyError(
                f"no action can be drawn: the network returned {outputs} at the policy's parameters"
            )
        return float(action[0]) if self._dimensions == 1 else action


@primitive
def _log_softmax_at(z: Any, indices: Array) -> Any:
    """log softmax(z)[i, indices[i]], (n,), from (n, k): one step of autograd's in place of eight."""
    shifted = z - z.max(1, keepdims=True)
    return shifted[np.arange(len(z)), indices] - np.log(np.exp(shifted).sum(1))


def _slope(z: Any, indices: Array) -> Any:
    """∂ log softmax(z)[i, indices[i]] / ∂ z[i], (n, k): one-hot minus probabilities; differentiable again."""
    # A large constant instead of the maximum would do: it cancels.
    top = z
    while hasattr(top, "_value"):
        top = top._value
    exponentials = anp.exp(z - top.max(1, keepdims=True))
    chosen = np.arange(z.shape[1]) == indices[:, None]
    return chosen - exponentials / anp.sum(exponentials, axis=1, keepdims=True)


defvjp(_log_softmax_at, lambda answer, z, i: lambda v: anp.reshape(v, (-1, 1)) * _slope(z, i), None)
defjvp(_log_softmax_at, lambda t, answer, z, i: anp.sum(t * _slope(z, i), axis=1), None)
