"""Parameters on disk: a safetensors file of the named arrays, with the layout that they belong to. No pickle."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from gradbridge.admission import as_array
from gradbridge.borders import check_params
from gradbridge.errors import BorderError
from gradbridge.layout import Float64Vector, ParameterLayout

FORMAT = "gradbridge-params-1"


class ParamsFileError(BorderError, ValueError):
    """A file that holds no parameters of ours, or those of another model."""


def save_params(path: str | os.PathLike[str], params: Any, layout: ParameterLayout) -> None:
    """Write a flat vector to a safetensors file, one float64 tensor per parameter.

    Any reader of safetensors can open it; the layout's order, and the dtypes of the model, are in
    the file's metadata.

    Args:
        path: the file to write.
        params: (layout.size,) real.
        layout: of the model that they are for.

    Raises:
        ParamsShapeError, ParamsDtypeError, InputError: the vector does not fit the layout.
    """
    from safetensors.numpy import save_file

    vector = as_array(params, f"params for {os.fspath(path)}")
    check_params(vector, layout, "the model")
    vector = vector.astype(np.float64)
    arrays = {name: np.array(array) for name, array in layout.unravel(vector).items()}
    described = {"names": layout.names, "shapes": layout.shapes, "dtypes": layout.dtypes}
    save_file(arrays, os.fspath(path), metadata={"format": FORMAT, "layout": json.dumps(described)})


def load_params(
    path: str | os.PathLike[str], layout: ParameterLayout, *, names: bool = True
) -> Float64Vector:
    """Read a flat vector for a model of this layout.

    Args:
        path: a file of `save_params`.
        layout: of the model that is to take them.
        names: whether names must agree. False compares shapes and order alone: for the same
            architecture in another framework, or one that names its parameters by counting.

    Returns:
        (layout.size,) float64.

    Raises:
        ParamsFileError: not such a file, or of another model; the first difference is named.
    """
    from safetensors import SafetensorError, safe_open

    shown = os.fspath(path)
    try:
        with safe_open(shown, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ParamsFileError(
                    f"{shown} is a safetensors file of something else, with format {metadata.get('format')!r}; "
                    f"expected {FORMAT!r}, as Bridge.save writes it"
                )
            described = json.loads(metadata["layout"])
            _compare(shown, described, layout, names)
            arrays = [file.get_tensor(name) for name in described["names"]]
    except SafetensorError as error:
        raise ParamsFileError(f"{shown} is no safetensors file: {error}") from error
    return layout.ravel(dict(zip(layout.names, arrays)))


def _compare(path: str, described: dict[str, Any], layout: ParameterLayout, names: bool) -> None:
    theirs = list(zip(described["names"], map(tuple, described["shapes"])))
    ours = list(zip(layout.names, layout.shapes))
    for index, ((their_name, their_shape), (our_name, our_shape)) in enumerate(zip(theirs, ours)):
        if names and their_name != our_name:
            raise ParamsFileError(
                f"{path} is of another model: parameter {index} is {their_name!r} in the file and {our_name!r} in "
                f"the model; if they are the same architecture under other names, load with names=False"
            )
        if their_shape != our_shape:
            raise ParamsFileError(
                f"{path} is of another model: parameter {index}, {our_name!r}, has shape {their_shape} in the file "
                f"and {our_shape} in the model"
            )
    if len(theirs) != len(ours):
        longer, where = (theirs, "file") if len(theirs) > len(ours) else (ours, "model")
        raise ParamsFileError(
            f"{path} is of another model: it has {len(theirs)} parameters, the model has {len(ours)}; the first that "
            f"only the {where} has is {longer[min(len(theirs), len(ours))][0]!r}"
        )
