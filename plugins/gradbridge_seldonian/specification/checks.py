"""What `supervised_spec` checks before the engine starts."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradbridge.errors import BackendError
from gradbridge.option_values import FLAG
from gradbridge.registry import default_registry
from gradbridge.wording import in_short
from gradbridge_seldonian.engine import CustomDataSet, EngineModel, SupervisedDataSet
from gradbridge_seldonian.engine import objectives as engine_objectives
from gradbridge_seldonian.evaluation.labels import signed
from gradbridge_seldonian.evaluation.objectives import PRIMARY
from gradbridge_seldonian.evaluation.trees import base_nodes, check_columns
from gradbridge_seldonian.outputs import SpecError, checked_start
from gradbridge_seldonian.runs import BridgedModel, is_builtin
from gradbridge_seldonian.specification.hyperparams import ENTRIES, check
from gradbridge_seldonian.specification.parsing import by_node


def check_model(model: Any) -> None:
    """Refuse what is not a model of the engine, such as a native one that was not wrapped."""
    if isinstance(model, EngineModel):
        return
    why = "it has no predict(theta, X)"
    if isinstance(model, type):
        why = "it is a class, not an object of it"
    elif model is not None:
        try:
            why = f"it is a native model of {default_registry().match(model)}"
        except BackendError:
            if callable(getattr(model, "predict", None)):
                return
    raise SpecError(
        f"model must be one of the engine's, with predict(theta, X), got {_named(model)}: {why}; wrap a native model, "
        f"SeldonianModel(model)"
    )


def checked_datasets(dataset: Any, candidate: Any, safety: Any) -> list[Any]:
    """The data sets that will be read: the one to be split, or the two that are given instead.

    Raises:
        SpecError: none, one of two, or some that do not fit each other.
    """
    if (candidate is None) != (safety is None):
        missing = "candidate_dataset" if candidate is None else "safety_dataset"
        raise SpecError(f"candidate_dataset and safety_dataset go together, and {missing} is missing")
    read = (
        {"dataset": dataset}
        if candidate is None
        else {"candidate_dataset": candidate, "safety_dataset": safety}
    )
    for name, data in {"dataset": dataset, **read}.items():
        if data is None and name == "dataset" and candidate is not None:
            continue
        if not isinstance(data, (SupervisedDataSet, CustomDataSet)):
            raise SpecError(
                f"{name} must be the engine's SupervisedDataSet or CustomDataSet (or None, with candidate_dataset= and "
                f"safety_dataset=), got {_named(data)}"
            )
    first, *others = [data for data in (*read.values(), dataset) if data is not None]
    for other in others:
        for what in ("regime", "sub_regime", "sensitive_col_names"):
            ours, theirs = getattr(first.meta, what), getattr(other.meta, what)
            if ours != theirs:
                raise SpecError(f"the data sets must be of one {what}, got {ours!r} and {theirs!r}")
    if first.regime == "custom":
        if candidate is not None:
            raise SpecError(
                "candidate_dataset and safety_dataset were given for the custom regime, which the engine cannot run so: "
                "it asks the initial solution of data that it makes only where it splits; give dataset="
            )
    elif first.meta.sub_regime not in PRIMARY:
        raise SpecError(f"sub_regime must be one of {', '.join(PRIMARY)}, got {first.meta.sub_regime!r}")
    return list(map(signed, read.values()))


def candidate_part(dataset: Any, safety: float) -> tuple[Any, ...]:
    """What candidate selection sees of a data set, as an initial solution function takes it.

    Args:
        dataset: to be split; or the candidate data set, with `safety` 0.
        safety: the fraction of the data that is kept for the safety test.

    Returns:
        (features, labels), or (data,) for the custom regime.
    """
    n = round(dataset.num_datapoints * (1.0 - safety))  # as the engine splits
    if dataset.regime == "custom":
        return (dataset.data[:n],)
    X = dataset.features
    return ([x[:n] for x in X] if type(X) is list else X[:n]), dataset.labels[:n]


def first_start(
    model: Any, data: tuple[Any, ...], initial: Any, constraints: int, technique: str
) -> np.ndarray:
    """(P,) float64 where training starts: `initial`, or the model's own parameters."""
    if initial is None:
        if not hasattr(model, "initial_solution"):
            raise SpecError(
                f"{type(model).__name__} does not say where to start; give initial_solution=, an array or a "
                f"function of (model, X, Y)"
            )
        initial = model.initial_solution
    try:
        start = initial(model, *data) if callable(initial) else initial
    except Exception as error:  # the user's own code, of which the engine says nothing at all
        raise SpecError(f"the function initial_solution failed: {in_short(error)}") from error
    return checked_start(start, constraints, technique)


def check_data(dataset: Any, sub_regime: str) -> None:
    """Refuse labels, features and groups that do not fit each other or the sub-regime."""
    X, Y = dataset.features, dataset.labels
    if Y.ndim != 1:
        raise SpecError(f"labels must be of shape (n,), got {Y.shape}; use class numbers, not one-hot rows")
    for what, array in [("features", x) for x in (X if type(X) is list else [X])] + [
        ("sensitive_attrs", dataset.sensitive_attrs)
    ]:
        if len(array) != len(Y) and not (what == "sensitive_attrs" and len(array) == 0):
            raise SpecError(
                f"features, labels and sensitive_attrs must have a row each for the same data points, got "
                f"{len(Y)} labels and {len(array)} rows of {what}"
            )
    if dataset.num_datapoints != len(Y):
        raise SpecError(
            f"num_datapoints must be the number of labels, by which the engine splits; got {dataset.num_datapoints} "
            f"and {len(Y)} labels"
        )
    if Y.dtype.kind not in "fiub":
        raise SpecError(f"labels must be numbers, got dtype {Y.dtype}")
    if not np.isfinite(Y).all():
        raise SpecError(f"labels must be finite numbers, got {int((~np.isfinite(Y)).sum())} that are not")
    if sub_regime == "multiclass_classification":
        # The engine indexes columns with them, and its error rates do so without a cast.
        if Y.dtype.kind not in "iu" or (len(Y) and Y.min() < 0):
            raise SpecError(
                f"{sub_regime} needs integer labels 0, 1, 2 …, got dtype {Y.dtype} from {Y.min()} to {Y.max()}; "
                f"cast them with labels.astype(int)"
            )
    elif sub_regime != "regression" and not np.isin(Y, (0, 1)).all():
        raise SpecError(
            f"{sub_regime} needs labels 0 and 1, got {', '.join(map(str, np.unique(Y)[:5]))}; for more classes "
            f"the sub_regime is 'multiclass_classification'"
        )


def checked_additional(
    given: Any, trees: Any, read: Any, technique: str, batch_size: int | None, fraction: float
) -> dict[str, Any]:
    """A copy of `additional_datasets`, because the engine writes into what it gets.

    Args:
        given: ``{constraint: {base node: {"dataset": …}}}``, or None.
        trees: of the constraints.
        read: the data set of the objective that is to be like them.
        technique: of the optimization.
        batch_size: of the objective's mini-batches, or None.
        fraction: of the data that is kept for the safety test.

    Raises:
        SpecError: nodes that are not there, data that do not fit, or what the engine cannot do.
    """
    found = by_node("additional_datasets", given, trees)
    if found and technique != "gradient_descent":
        raise SpecError(
            f"additional_datasets were given with optimization_technique={technique!r}, which looks for batches of them "
            f"that only gradient descent makes; use 'gradient_descent'"
        )
    for tree in trees:
        nodes = found.get(tree.constraint_str, {})
        for name, entry in nodes.items():
            where = f"additional_datasets[{tree.constraint_str!r}][{name!r}]"
            keys = set(entry) - {"batch_size"} if isinstance(entry, Mapping) else set()
            if keys not in ({"dataset"}, {"candidate_dataset", "safety_dataset"}):
                raise SpecError(
                    f"{where} must be a dictionary with 'dataset', or with 'candidate_dataset' and 'safety_dataset', and "
                    f"perhaps 'batch_size'; got {reprlib.repr(entry)}"
                )
            nodes[name] = {key: value for key, value in entry.items() if value is not None}
            size = entry.get("batch_size")
            if size is not None:
                check(f"{where}['batch_size']", size, ENTRIES["batch_size"])
            size = batch_size if size is None else size
            for key in sorted(keys):
                data = entry[key]
                if type(data) is not type(read) or data.meta.sub_regime != read.meta.sub_regime:
                    raise SpecError(
                        f"{where} must hold data like the objective's, {_named(read)} of sub_regime "
                        f"{read.meta.sub_regime!r}, got {_named(data)}"
                    )
                check_columns(tree, data.meta.sensitive_col_names, where, name)
                rows = round(data.num_datapoints * (1.0 - (fraction if key == "dataset" else 0.0)))
                if key != "safety_dataset" and size is not None and size > rows:
                    # The engine would count rows twice, and some that are not there.
                    raise SpecError(
                        f"{where} has {rows} rows for candidate selection, fewer than mini-batches of {size}; give it a "
                        f"'batch_size' of its own"
                    )
                if data.regime != "supervised_learning":
                    continue
                nodes[name][key] = signed(data)
                check_data(data, data.meta.sub_regime)
                if batch_size is not None and type(data.features) is list:
                    raise SpecError(
                        f"{where} has a list of features, which the engine does not cut into mini-batches; leave "
                        f"batch_size= out"
                    )
    return found


def check_clipping(entries: Mapping[str, Any], start: np.ndarray) -> None:
    """Refuse limits of the parameters that are not one number or one for each of them."""
    for limit in entries.get("clip_theta") or ():
        if np.shape(limit) not in ((), start.shape):
            raise SpecError(
                f"clip_theta must hold numbers or arrays of the parameters' shape {start.shape}, got shape "
                f"{np.shape(limit)}"
            )


def check_gradient(settings: Mapping[str, Any], objective: Any, seen: tuple[Any, ...]) -> Any:
    """The gradient that the engine will use, None for autograd's; refused where it is none, or the engine has none."""
    if objective is not None and not callable(objective):
        raise SpecError(f"primary_objective must be a function, got {reprlib.repr(objective)}")
    given, model = settings["custom_primary_gradient_fn"], settings["model"]
    if given is not None and not callable(given):
        raise SpecError(f"custom_primary_gradient_fn must be a function, got {reprlib.repr(given)}")
    use = settings["use_builtin_primary_gradient_fn"]
    check("use_builtin_primary_gradient_fn", use, FLAG)
    if not use and not (is_builtin(given) and isinstance(model, BridgedModel)):
        return given
    asked = "use_builtin_primary_gradient_fn=True" if use else "custom_primary_gradient_fn= of the engine's"
    name = getattr(objective, "__name__", "")
    if isinstance(model, BridgedModel):
        why = f"the engine's formulas are those of its own linear models, and {type(model).__name__} is not among them"
    elif not hasattr(engine_objectives, f"gradient_{name}"):
        why = f"the engine has no formula for the objective {name!r}"
    elif settings["regularization_hyperparams"]:
        why = "the engine's formulas leave out the regularization"
    elif type(seen[0]) is list:
        why = "the engine's formulas take no list of features"
    else:
        return getattr(engine_objectives, f"gradient_{name}") if given is None else given
    raise SpecError(f"{asked} was asked for, and {why}; leave it out for autograd's gradient")


def check_custom(objective: Any, technique: str, trees: Any, dataset: Any) -> None:
    """Refuse what the engine cannot do in the custom regime."""
    if objective is None:
        raise SpecError(
            "the custom regime has no objective of its own; give primary_objective=f(model, theta, data)"
        )
    if technique != "gradient_descent":
        raise SpecError(
            f"optimization_technique={technique!r} was asked for in the custom regime, where the engine has only "
            f"'gradient_descent'"
        )
    count, groups = len(dataset.data), len(dataset.sensitive_attrs)
    if dataset.num_datapoints != count or groups not in (0, count):
        raise SpecError(
            f"num_datapoints, data and sensitive_attrs must be of the same data points, got {dataset.num_datapoints}, "
            f"{count} and {groups}"
        )
    grouped = [node.name for tree in trees for node in base_nodes(tree) if node.conditional_columns]
    if grouped and (isinstance(dataset.data, list) or not groups):
        raise SpecError(
            f"{grouped[0]!r} conditions on groups, whose rows the engine takes from an array of data by sensitive_attrs; got "
            f"a {type(dataset.data).__name__} and {groups} rows of sensitive_attrs"
        )


def _named(value: Any) -> str:
    """What something is, in an error: its type, with the shape of an array."""
    shape = f" of shape {value.shape}" if hasattr(value, "shape") else ""
    return "None" if value is None else f"a {type(value).__name__}{shape}"
