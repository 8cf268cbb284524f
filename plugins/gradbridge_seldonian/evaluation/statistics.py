"""The statistics that constraints name, as samples: one number for each data point that they look at.

They are the engine's own functions. What a node of a parse tree says of itself is handed to them: the
classes that it names, and its rows. The engine's trees keep the class of `PR_[1]` to themselves, so that
its statistics bound something else, and have no function for `CM_[0,1]`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import autograd.numpy as np

from gradbridge_seldonian.engine import BaseNode, zhat_funcs
from gradbridge_seldonian.outputs import SpecError

# Attributes by which nodes name classes, and what the engine's statistics call them.
_CLASSES = {"class_index": "class_index", "cm_true_index": "l_i", "cm_pred_index": "l_k"}


def classes(node: Any) -> dict[str, Any]:
    """The classes that a node names, by the attributes that it names them with; none for most."""
    return {name: getattr(node, name) for name in _CLASSES if hasattr(node, name)}


def statistic(name: str) -> Callable[..., Any] | None:
    """``f(model, theta, X, Y, **kwargs)``, samples of a statistic; None where the engine has none of this name."""
    known: dict[str, Callable[..., Any]] = zhat_funcs.measure_function_vector_mapper
    return known.get(name, zhat_funcs.vector_confusion_matrix if name == "CM" else None)


def is_engines(name: str) -> bool:
    """Whether a statistic is one of the engine's, and not one that a user added to its table."""
    return getattr(statistic(name), "__module__", None) == zhat_funcs.__name__


def samples(node: Any, model: Any, theta: Any, data_dict: dict[str, Any], **kwargs: Any) -> Any:
    """The samples of a node's statistic, as `BaseNode.zhat` is to give them.

    Args:
        node: a base node of the engine.
        model: predicts.
        theta: (P,) parameters, perhaps traced.
        data_dict: the node's ``"features"`` and ``"labels"``, n rows.
        **kwargs: ``regime``, ``sub_regime`` and ``branch``. In the safety test the model is asked for
            ``batch_size_safety`` rows at a time, if that is a number; the samples are the same, however many
            rows of a batch a rate looks at.

    Returns:
        (m,), m ≤ n.
    """
    X, Y = data_dict["features"], data_dict["labels"]
    rows = X[0] if type(X) is list else X  # the engine counts rows by len(X)
    batch = kwargs.get("batch_size_safety") if kwargs["branch"] == "safety_test" else None
    if batch is None or batch >= len(Y):
        predictions = model.predict(theta, X)
    else:
        starts = range(0, len(Y), batch)
        predictions = np.concatenate([model.predict(theta, _cut(X, i, i + batch)) for i in starts])
    named = {_CLASSES[name]: index for name, index in classes(node).items()}
    measure = statistic(node.measure_function_name)
    assert measure is not None, node.name
    told = {"regime": kwargs["regime"], "sub_regime": kwargs["sub_regime"], **named}
    return measure(_Predicted(model, rows, predictions), theta, rows, Y, **told)


def value(node: Any, **kwargs: Any) -> Any:
    """What a node is worth where the constraint itself is evaluated: the mean of its samples.

    Raises:
        SpecError: it looks at no row of these data, so that it has no value.
    """
    found = node.zhat(**kwargs)
    if not len(found):
        raise SpecError(
            f"{node.name} looks at none of these data points, so that it has no value; evaluate the constraint on "
            f"data that have some of its classes and columns"
        )
    return np.mean(found)


def masked(node: Any, dataset: Any, conditional_columns: list[str]) -> Any:
    """A node's rows of a data set, as `BaseNode.mask_data` takes them; of a list of features, of each."""
    if type(getattr(dataset, "features", None)) is not list:
        return BaseNode.mask_data(node, dataset, conditional_columns)
    numbers = SimpleNamespace(**{**vars(dataset), "features": np.arange(len(dataset.labels))})
    rows, labels = BaseNode.mask_data(node, numbers, conditional_columns)
    return [x[rows] for x in dataset.features], labels


class _Predicted:
    """A model whose predictions for one set of features have been made."""

    def __init__(self, model: Any, features: Any, predictions: Any) -> None:
        self._model, self._features, self._predictions = model, features, predictions

    def predict(self, theta: Any, X: Any, **kwargs: Any) -> Any:
        return self._predictions if X is self._features else self._model.predict(theta, X, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _cut(X: Any, start: int, stop: int) -> Any:
    return [x[start:stop] for x in X] if type(X) is list else X[start:stop]
