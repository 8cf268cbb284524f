"""The entries of `optimization_hyperparams`: what each takes, which optimizer reads it, and how it is said."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradbridge.option_values import FLAG, POSITIVE, Takes, one_of, whole
from gradbridge.wording import suggestion
from gradbridge_seldonian.outputs import SpecError

#: {technique: its optimizers, the first by default}.
OPTIMIZERS = {
    "gradient_descent": ("adam",),
    "barrier_function": ("Powell", "CG", "Nelder-Mead", "BFGS", "CMA-ES"),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _is_decay(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1  # at 1 the engine divides by zero


def _is_range(value: Any) -> bool:
    if not isinstance(value, (tuple, list)) and np.ndim(value) == 0:
        return False
    try:
        least, most = map(np.asarray, value)
        return least.dtype.kind in "fiu" and most.dtype.kind in "fiu" and bool(np.all(least <= most))
    except ValueError:  # not two, ragged, or of shapes that do not go together
        return False


_DECAY = Takes("a number of at least 0 and below 1", _is_decay)
_COUNT = whole("a whole number of at least 1", 1)

#: Entries that gradient descent reads.
DESCENT: dict[str, Takes] = {
    "lambda_init": Takes("one number, or one for each constraint", lambda value: True),  # see `multipliers`
    "alpha_theta": POSITIVE,
    "alpha_lamb": Takes(
        "a number of at least 0", lambda value: _is_number(value) and 0 <= value < float("inf")
    ),
    "beta_velocity": _DECAY,
    "beta_rmsprop": _DECAY,
    "num_iters": _COUNT,
    "use_batches": FLAG,
    "batch_size": _COUNT,
    "n_epochs": _COUNT,
    "clip_theta": Takes(
        "None or a pair (least, most) of numbers or arrays, the first not above the second",
        lambda value: value is None or _is_range(value),
    ),
    "gradient_library": one_of("autograd"),
}
#: Entries that the barrier function's optimizers read; the last two CMA-ES alone.
BARRIER: dict[str, Takes] = {
    "maxiter": _COUNT,
    "seed": whole("a whole number of at least 1 (CMA-ES takes 0 for the time of day)", 1),
    "sigma0": POSITIVE,
}
#: Entries that stand in every dictionary.
ALWAYS: dict[str, Takes] = {"verbose": FLAG, "hyper_search": one_of(None)}

ENTRIES = {**DESCENT, **BARRIER, **ALWAYS}
DEFAULTS = {
    "lambda_init": 0.5,
    "alpha_theta": 0.005,
    "alpha_lamb": 0.005,
    "beta_velocity": 0.9,
    "beta_rmsprop": 0.95,
    "gradient_library": "autograd",
}

_ELSEWHERE = {
    "debug": "say it to the run, algorithm.run(debug=True)",
    "write_logfile": "say it to the run, algorithm.run(write_cs_logfile=True)",
    "write_cs_logfile": "say it to the run, algorithm.run(write_cs_logfile=True)",
    "use_builtin_primary_gradient_fn": "it is an argument of supervised_spec",
    "custom_primary_gradient_fn": "it is an argument of supervised_spec",
    "reg_coef": "it is an entry of regularization_hyperparams",
    "reg_func": "it is an entry of regularization_hyperparams",
}


def check(name: str, value: Any, takes: Takes) -> None:
    """Refuse a value that an argument does not take.

    Raises:
        SpecError: names the argument, what it takes, and what came.
    """
    if not takes.fits(value):
        raise SpecError(f"{name} must be {takes.words}, got {reprlib.repr(value)}")


def hyperparams(
    technique: str, optimizer: str, said: Mapping[str, Any], entries: Any, constraints: int, verbose: bool
) -> dict[str, Any]:
    """A new dictionary for the engine.

    Args:
        technique, optimizer: that will read it.
        said: arguments of `supervised_spec` by the names of entries; None where nothing is said.
        entries: the user's `optimization_hyperparams`, or None.
        constraints: how many there are.
        verbose: what holds where the entries do not say.

    Raises:
        SpecError: an unknown name, a wrong value, an argument that the optimizer does not read, or two that
            contradict each other.
    """
    given = _known("optimization_hyperparams", entries)
    named = {name: value for name, value in said.items() if value is not None}
    for name, value in (*named.items(), *given.items()):
        check(name, value, ENTRIES[name])
    for name, value in named.items():
        if name in given and not np.array_equal(given[name], value):
            raise SpecError(
                f"{name} is {value!r} as an argument and {given[name]!r} in optimization_hyperparams; say it once"
            )
        readers = _readers(name, technique)
        if optimizer not in readers:
            raise SpecError(
                f"{name}={value!r} does nothing with optimization_technique={technique!r} and optimizer={optimizer!r}; it "
                f"is read by {', '.join(readers or _all_readers(name))}. Leave it out, or choose one of these"
            )
    told = {**given, **named}
    own = {"hyper_search": None, "verbose": verbose}
    if technique != "gradient_descent":
        return {**own, **told}
    told["lambda_init"] = multipliers(told.get("lambda_init", DEFAULTS["lambda_init"]), constraints)
    batches = _batches(told)
    unread = ("num_iters",) if batches["use_batches"] else ("batch_size", "n_epochs")
    for name in unread:
        if name in named:
            raise SpecError(
                f"{name}={named[name]!r} does nothing with use_batches={batches['use_batches']}: give either num_iters, or "
                f"both batch_size and n_epochs"
            )
    if told.get("clip_theta") is not None:
        told["clip_theta"] = tuple(
            told["clip_theta"]
        )  # the engine asks whether it is true, which no array is
    return {**own, **DEFAULTS, **told, **batches}


def multipliers(given: Any, constraints: int) -> np.ndarray:
    """(constraints,) float64, from one number or one for each constraint."""
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"lambda_init must be one number or one for each constraint, got {reprlib.repr(given)}"
        ) from error
    if values.shape not in ((), (constraints,)):
        raise SpecError(
            f"lambda_init must be one number or one for each of the {constraints} constraints, got shape "
            f"{values.shape}"
        )
    if not np.isfinite(values).all() or (values < 0).any():
        raise SpecError(f"lambda_init must be finite and at least 0, got {reprlib.repr(given)}")
    return np.broadcast_to(values, (constraints,)).copy()


def optimizer_for(technique: Any, optimizer: Any) -> str:
    """The optimizer that was asked for, or the technique's first."""
    check("optimization_technique", technique, one_of(*OPTIMIZERS))
    if optimizer is None:
        return OPTIMIZERS[technique][0]
    for other, names in OPTIMIZERS.items():
        if other != technique and isinstance(optimizer, str) and optimizer in names:
            raise SpecError(
                f"optimizer={optimizer!r} was asked for with optimization_technique={technique!r}; it belongs to "
                f"optimization_technique={other!r}"
            )
    check("optimizer", optimizer, one_of(*OPTIMIZERS[technique]))
    return str(optimizer)


def regularization(given: Any, technique: str) -> dict[str, Any]:
    """A new dictionary from `regularization_hyperparams`, of entries that will be read.

    Raises:
        SpecError: an unknown entry, a wrong value, or a function where the engine reads none.
    """
    known = {
        "reg_coef": Takes("a finite number", lambda value: _is_number(value) and bool(np.isfinite(value))),
        "reg_func": Takes("a function of theta", callable),
    }
    entries = _known("regularization_hyperparams", given, known)
    for name, value in entries.items():
        check(f"regularization_hyperparams[{name!r}]", value, known[name])
    if "reg_func" in entries and technique == "gradient_descent":
        raise SpecError(
            "regularization_hyperparams['reg_func'] is read by optimization_technique='barrier_function' alone, and "
            "gradient descent would leave it out in silence; add the term to your primary_objective"
        )
    return entries


def _known(what: str, given: Any, known: Mapping[str, Any] = ENTRIES) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise SpecError(f"{what} must be a dictionary, got {reprlib.repr(given)}")
    for name in given:
        if name not in known:
            near = _ELSEWHERE.get(name) if known is ENTRIES else None
            near = near or suggestion(name, known).strip() or f"it takes {', '.join(known)}"
            raise SpecError(f"{what} has an entry {name!r}, which the engine does not read; {near}")
    return dict(given)


def _batches(told: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that say how much data a step sees."""
    pair = [told.get("batch_size"), told.get("n_epochs")]
    use = told.get("use_batches")
    if use is None:
        if (pair[0] is None) != (pair[1] is None) or ("num_iters" in told and pair[0] is not None):
            raise SpecError("give either num_iters, or both batch_size and n_epochs")
        use = pair[0] is not None
    elif use and None in pair:
        raise SpecError("use_batches=True needs both batch_size and n_epochs")
    if use:
        return {"use_batches": True}
    return {"use_batches": False, "num_iters": told.get("num_iters", 200)}


def _readers(name: str, technique: str) -> tuple[str, ...]:
    """The optimizers of a technique that read an entry."""
    if name in ALWAYS:
        return OPTIMIZERS[technique]
    if name in DESCENT:
        return OPTIMIZERS["gradient_descent"] if technique == "gradient_descent" else ()
    if technique == "gradient_descent":
        return ()
    return OPTIMIZERS[technique] if name == "maxiter" else ("CMA-ES",)


def _all_readers(name: str) -> list[str]:
    return [reader for technique in OPTIMIZERS for reader in _readers(name, technique)]
