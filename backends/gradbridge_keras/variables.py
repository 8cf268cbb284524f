"""Which variables of a Keras model are which, and calls in which tensors stand for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from gradbridge.errors import GuestError


class Roles:
    """Which variables of a model are trained, which keep state, and which seed its random generators.

    As it was when bridged, by their places: a layer that is frozen later keeps its variables where
    they are, and so do copies and pickles of the model.
    """

    def __init__(self, model: Any) -> None:
        own = {id(v) for v in model.trainable_variables}
        roles = [0 if id(v) in own else 2 if _is_seed(v) else 1 for v in model.variables]
        self._places = sorted(range(len(roles)), key=roles.__getitem__)
        self.trained, self.seeds = roles.count(0), roles.count(2)

    def of(self, model: Any) -> list[Any]:
        """The variables of the model or of a copy: the trained ones, state, seeds.

        Raises:
            GuestError: there are others than when it was bridged.
        """
        variables = list(model.variables)
        if len(variables) != len(self._places):
            raise GuestError(
                f"{model.name} has {len(variables)} variables, and had {len(self._places)} when it was bridged; "
                f"bridge it again when its layers are as they shall be"
            )
        return [variables[place] for place in self._places]


def called(
    model: Any,
    mapping: Iterable[tuple[Any, Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    training: bool,
    call: Callable[..., Any] = lambda model, args, kwargs: model(*args, **kwargs),
) -> tuple[Any, keras.StatelessScope]:
    """Call a model, which stays as it is, as its user does.

    Args:
        model: of Keras.
        mapping: (variable, tensor) for all its variables.
        args: positional inputs.
        kwargs: the others.
        training: whether in train mode.
        call: (model, args, kwargs) ↦ outputs.

    Returns:
        Outputs, and the scope, which tells the values of variables after the call.
    """
    if len(args) > 1 and isinstance(getattr(model, "_inputs_struct", None), (list, tuple)):
        args = (list(args),)  # f(params, a, b) of a functional model with the inputs [a, b]
    # A call clears the losses that its layers hold, and ones that ask for their losses need them collected.
    held = [(layer, layer._losses[:], set(layer._loss_ids)) for layer in model._flatten_layers()]
    try:
        with keras.StatelessScope(mapping, collect_losses=True, initialize_variables=False) as scope:
            return call(model, args, {"training": training, **kwargs}), scope
    finally:
        for layer, losses, ids in held:
            layer._losses[:], layer._loss_ids = losses, ids


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
