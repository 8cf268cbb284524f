"""Where a query is asked: params, inputs and directions, the same for who answers and who expects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import autograd.numpy as anp
import numpy as np

from fuzz.programs import Program, Query


@dataclass(frozen=True)
class Point:
    """Arrays of a query.

    Attributes:
        params: (P,).
        inputs: the model's.
        moving: indices of the inputs that are differentiated.
        seed: of the directions.
    """

    params: np.ndarray
    inputs: list[np.ndarray]
    moving: tuple[int, ...]
    seed: int

    @classmethod
    def of(cls, program: Program, query: Query, params: np.ndarray) -> Point:
        """The point of a query, in the host's dtype."""
        rng = np.random.default_rng([query.seed, 0])
        at = (params + 0.25 * rng.normal(size=params.shape)).astype(program.host_dtype)
        inputs = program.network.inputs(query.rows, query.seed, program.host_dtype)
        moving = program.moving_inputs
        if query.wrt == "params":
            moving = ()
        return cls(at, inputs, moving, query.seed)

    @property
    def in_double(self) -> Point:
        """The same numbers in float64."""
        inputs = [x.astype("float64") if x.dtype.kind == "f" else x for x in self.inputs]
        return Point(self.params.astype("float64"), inputs, self.moving, self.seed)

    def like(self, *arrays: Any, salt: int = 0) -> list[np.ndarray]:
        """Directions of the shapes and dtypes of arrays, the same for the same salt."""
        rng = np.random.default_rng([self.seed, 1, salt])
        # Drawn in float32, so that they are the same numbers in either precision.
        return [rng.normal(size=np.shape(a)).astype("float32").astype(a.dtype) for a in arrays]

    def arguments(self, wrt: str) -> list[np.ndarray]:
        """What is differentiated by, one after the other."""
        inputs = [self.inputs[i] for i in self.moving]
        return inputs if wrt == "inputs" else [self.params, *inputs]

    def vector(self, wrt: str) -> np.ndarray:
        """The arguments as one vector."""
        return np.concatenate([a.ravel() for a in self.arguments(wrt)])

    def along(self, wrt: str, value: Callable[[Any, list[Any]], Any]) -> Callable[[Any], Any]:
        """A function of (params, inputs) as one of that vector."""

        def of_vector(z: Any) -> Any:
            start, cut = 0, []
            for argument in self.arguments(wrt):
                cut.append(anp.reshape(z[start : start + argument.size], argument.shape))
                start += argument.size
            return self.apart(wrt, value)(*cut)

        return of_vector

    def apart(self, wrt: str, value: Callable[[Any, list[Any]], Any]) -> Callable[..., Any]:
        """A function of (params, inputs) as one of the arguments that are differentiated by."""

        def of_arguments(*arguments: Any) -> Any:
            given = list(arguments)
            params = self.params if wrt == "inputs" else given.pop(0)
            inputs = list(self.inputs)
            for index, moved in zip(self.moving, given):
                inputs[index] = moved
            return value(params, inputs)

        return of_arguments
