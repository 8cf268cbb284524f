"""Which variables of a Keras model are which, and calls in which tensors stand for them."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import keras
from keras.src.backend.common import global_state

from gradbridge.errors import GuestError


class Roles:
    """Which variables of a model are trained, which keep state, and which seed its random generators.

    As it was when bridged, by their places: a layer that is frozen later keeps its variables where
    they are, and so do copies of the model.
    """

    def __init__(self, model: Any) -> None:
        own = {id(v) for v in model.trainable_variables}
        roles = [0 if id(v) in own else 2 if _is_seed(v) else 1 for v in model.variables]
        self._places = sorted(range(len(roles)), key=roles.__getitem__)
        self.trained, self.seeds = roles.count(0), roles.count(2)

    def of(self, model: Any) -> list[Any]:
        """The variables of the model or of a copy: the trained ones, state, seeds."""
        variables = list(model.variables)
        return [variables[place] for place in self._places]


class Scope(keras.StatelessScope):
    """A call of a model in which tensors stand for its variables.

    Args:
        mapping: (variable, tensor) for all of them.
        aliases: {id of another variable: tensor that stands for it, too}.

    Attributes:
        foreign: the variables that were read and are none of these.
        moved: those that were assigned.
    """

    def __init__(self, mapping: Iterable[tuple[Any, Any]], aliases: Mapping[int, Any]) -> None:
        super().__init__(mapping, collect_losses=True, initialize_variables=False)
        self.state_mapping.update(aliases)
        self._known = set(self.state_mapping)
        self.foreign: dict[int, Any] = {}
        self.moved: list[Any] = []

    def add_update(self, update: tuple[Any, Any]) -> None:
        if id(update[0]) not in self._known:
            self.moved.append(update[0])
        super().add_update(update)

    def get_current_value(self, variable: Any) -> Any:
        value = super().get_current_value(variable)
        if value is None and variable._value is not None:
            self.foreign[id(variable)] = variable
            if keras.backend.standardize_dtype(variable._value.dtype) != variable._dtype:
                # A copy in another dtype shares the value.
                return keras.ops.cast(variable._value, variable._dtype)
        return value


def called(
    model: Any,
    scope: Scope,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    training: bool,
    call: Callable[..., Any] = lambda model, args, kwargs: model(*args, **kwargs),
) -> Any:
    """Call a model as its user does, with tensors for its variables.

    Args:
        model: of Keras.
        scope: which tensors; tells their values after the call.
        args: positional inputs.
        kwargs: the others.
        training: whether in train mode.
        call: (model, args, kwargs) ↦ outputs.

    Raises:
        GuestError: it makes variables, or moves some that Keras does not track.
    """
    if len(args) > 1 and isinstance(getattr(model, "_inputs_struct", None), (list, tuple)):
        args = (list(args),)  # f(params, a, b) of a functional model with the inputs [a, b]
    unmade: list[Any] = global_state.get_global_attribute("uninitialized_variables", [], set_to_default=True)
    count = len(unmade)
    try:
        with scope:
            output = call(model, args, {"training": training, **kwargs})
        if any(map(_is_seed, unmade[count:])):
            _refuse_global_noise(model)
        if len(unmade) > count:
            raise GuestError(
                f"{model.name} creates the variable {unmade[count].path!r} in this call, so it is not among the params; "
                f"call the model once on such an input before bridging it, or make its variables in build()"
            )
    finally:
        del unmade[count:]  # Keras would make them when the next scope ends
    metrics = {id(v) for v in model.metrics_variables} if scope.moved else ()
    for v in scope.moved:
        if _is_seed(v):
            _refuse_global_noise(model)
        if training and id(v) not in metrics:
            raise GuestError(
                f"{model.name} changes {v.path!r} in train mode, a variable that Keras does not track, and so cannot "
                f"be carried from call to call; make it an attribute of the layer, or use mode='eval', where each "
                f"call starts from its value as it was when bridged"
            )
    return output


def _refuse_global_noise(model: Any) -> NoReturn:
    raise GuestError(
        f"{model.name} draws random numbers from Keras' global generator; give the layer a generator, "
        f"self.seed_generator = keras.random.SeedGenerator(seed), and pass it as seed="
    )


def readers(model: Any) -> list[Callable[..., Any]]:
    """Functions of the user's own that a model is computed with: what they read from outside may change."""
    found: dict[int, Callable[..., Any]] = {}
    for layer in model._flatten_layers():
        own = [value for value in vars(layer).values() if isinstance(value, types.FunctionType)]
        for function in (getattr(type(layer), "call", None), *own):
            if isinstance(function, types.FunctionType) and not function.__module__.startswith("keras."):
                found[id(function.__code__)] = function
    return list(found.values())


def unique(paths: Sequence[str]) -> tuple[str, ...]:
    """Names of variables, from paths that may come twice."""
    names: dict[str, None] = {}
    for path in paths:
        name, count = path, 1
        while name in names or (count > 1 and name in paths):
            count += 1
            name = f"{path}_{count}"
        names[name] = None
    return tuple(names)


def _is_seed(variable: Any) -> bool:
    return variable.path.endswith("seed_generator_state") and tuple(variable.shape) == (2,)
