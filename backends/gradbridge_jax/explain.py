"""Why a model's forward failed, in terms of the layer that refused and what it expects."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

import jax

from gradbridge import wording
from gradbridge.errors import GradbridgeError, GuestError, InputError

#: What a Python program may ask of an array that has no value while JAX traces it.
NOT_TRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)

#: What Flax raises in a module that updates its statistics or drops units where it is given nothing to do so with.
_TRAINS = {"ModifyScopeVariableError", "InvalidRngError"}

_MODULES = {"flax.nnx.module.Module", "flax.linen.module.Module"}

# By framework and class: the shape that a layer's input must have. Not imported to be recognised.
_EXPECTED = {
    ("flax", "Linear"): lambda m: f"(…, {m.in_features})",
    ("flax", "Conv"): lambda m: f"(N, …, {m.in_features})",
    ("flax", "BatchNorm"): lambda m: f"(…, {m.num_features})",
    ("flax", "LayerNorm"): lambda m: f"(…, {m.num_features})",
    ("flax", "Embed"): lambda m: f"integers below {m.num_embeddings}",
    ("equinox", "Linear"): lambda m: f"({m.in_features},)",
    ("equinox", "MLP"): lambda m: f"({m.in_size},)",
    ("equinox", "Conv1d"): lambda m: f"({m.in_channels}, L)",
    ("equinox", "Conv2d"): lambda m: f"({m.in_channels}, H, W)",
    ("equinox", "Conv3d"): lambda m: f"({m.in_channels}, D, H, W)",
    ("equinox", "LayerNorm"): lambda m: f"{m.shape}",
}


def explain_error(error: Exception, label: str, inputs: Sequence[Any]) -> GradbridgeError:
    """The error of ours that says which layer refused what.

    Args:
        error: what the model raised.
        label: the model's name.
        inputs: the leaves that the model was given.
    """
    given, said = wording.given(inputs), _said(error)
    if isinstance(error, NOT_TRACEABLE):
        return GuestError(
            f"{label} asks for the value of an array while JAX traces it, on {given}: {said}; write it with "
            f"jax.numpy alone (jnp.where, jax.lax.cond), or leave jit= out where only Python's if and while "
            f"depend on values"
        )
    if isinstance(error, jax.errors.UnexpectedTracerError):
        return GuestError(
            f"{label}, on {given}, uses an array of another trace than the one that it is in ({type(error).__name__}): "
            f"a custom rule closes over an input that the derivative is by, or a global or an attribute keeps "
            f"what an earlier call computed; hand the rule all that it needs as arguments (jax.closure_convert), "
            f"and compute anew in each call what is kept"
        )
    if type(error).__name__ in _TRAINS and type(error).__module__.startswith("flax."):
        return GuestError(
            f"{label}, on {given}, was called as it is trained, and this bridge evaluates it, so that it can neither change "
            f"its variables nor draw numbers: say to the module that it is evaluated, as in f(params, x, train=False) or "
            f"whatever its argument for that is called, or bridge it with mode='train' ({said})"
        )
    layer, came = _refusing_layer(error.__traceback__)
    if layer is None:
        return GuestError(f"{label} failed on {given}: {said}")
    kind = type(layer).__name__
    where = kind if kind == label else f"layer {kind}"
    expects = _expected(layer)
    if expects is None:
        return GuestError(f"{label} failed in {where} on {given}: {said}")
    got = f", got {tuple(came.shape)}" if came is not None else ""
    rows = "; Equinox layers take one row: bridge with vmap=True for a batch" if _is_equinox(layer) else ""
    return InputError(
        f"the bridge over {label}: {where} expects {expects}{got}; the model was given {given} ({said}); check "
        f"the number of columns and the axes of the inputs{rows}"
    )


def _said(error: Exception) -> str:
    """The error in a line; of one that a callback raised, which XLA hands on with its traceback, what it says."""
    _, traced, told = str(error).partition("Traceback (most recent call last):")
    lines = [line for line in told.splitlines() if line.strip() and not line.startswith((" ", "\t"))]
    return f"{type(error).__name__}: {lines[0]}" if traced and lines else wording.in_short(error)


def _expected(layer: Any) -> str | None:
    for cls in type(layer).__mro__:
        describe = _EXPECTED.get((cls.__module__.partition(".")[0], cls.__name__))
        if describe is not None:
            with suppress(AttributeError):  # Linen and NNX have layers of the same names
                return describe(layer)
    return None


def _is_equinox(layer: Any) -> bool:
    return any(cls.__module__.startswith("equinox.") for cls in type(layer).__mro__)


def _is_module(value: Any) -> bool:
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(value).__mro__]
    return any(name in _MODULES or name.startswith("equinox._module") for name in names)


def _refusing_layer(traceback: TracebackType | None) -> tuple[Any, Any]:
    """The innermost module in the traceback, and the first array it was called with."""
    layer = came = None
    while traceback is not None:
        values = traceback.tb_frame.f_locals
        owner = values.get("self")
        if owner is not None and _is_module(owner):
            if owner is not layer:
                layer, came = owner, None
            if came is None:
                arrays = (v for name, v in values.items() if name != "self" and isinstance(v, jax.Array))
                came = next(arrays, None)
        traceback = traceback.tb_next
    return layer, came
