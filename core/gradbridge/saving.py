"""Parameters on disk: a safetensors file of the named arrays, with the layout that they belong to. No pickle."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import uuid
from typing import Any

import numpy as np

from gradbridge import borders
from gradbridge.errors import BorderError
from gradbridge.layout import Float64Vector, ParameterLayout
from gradbridge.option_values import check_options

FORMAT = "gradbridge-params-1"


class ParamsFileError(BorderError, ValueError):
    """A file that holds no parameters of ours, or those of another model; or no file, where one is to be written."""


def save_params(path: str | os.PathLike[str], params: Any, layout: ParameterLayout) -> None:
    """Write parameters to a safetensors file, one float64 tensor for each.

    Any reader of safetensors can open it; the layout's order, and the dtypes of the model, are in
    the file's metadata. The file is written whole or not at all: what was there before stays until then.

    Args:
        path: the file to write. Where it is a link, what it leads to is written; a file that is there
            keeps its mode.
        params: (layout.size,) real; or a tree of arrays as `ParameterLayout.ravel` takes it.
        layout: of the model that they are for.

    Raises:
        ParamsShapeError, ParamsDtypeError, LayoutError, InputError: they do not fit the layout.
        ParamsFileError: what is there is not a regular file: a directory, a device, a pipe; or a parameter has a
            name that safetensors does not take.
        OSError: the folder is not there, or not to be written to; the disk is full.
    """
    from safetensors.numpy import save

    vector, _ = borders.params_vector(params, layout, "the model")
    for name in layout.names:
        if name == "__metadata__" or name.encode(errors="replace").decode() != name:
            raise ParamsFileError(
                f"parameter {name!r} cannot be written to {os.fsdecode(path)}: safetensors has no tensor of that name; "
                f"rename it, or save the flat vector with numpy.save"
            )
    arrays = {name: np.array(array) for name, array in layout.unravel(vector).items()}
    described = {"names": layout.names, "shapes": layout.shapes, "dtypes": layout.dtypes}
    content = save(arrays, metadata={"format": FORMAT, "layout": json.dumps(described)})
    _replace(os.fsdecode(path), content)


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
        ParamsFileError: not such a file, a damaged one, or one of another model; the first difference is named.
        FileNotFoundError: there is nothing of that name.
    """
    from safetensors import SafetensorError, safe_open

    check_options(names=names)
    shown = os.fsdecode(path)
    try:
        if not stat.S_ISREG(os.stat(shown).st_mode):
            raise ParamsFileError(f"{shown} is not a regular file; expected one that Bridge.save wrote")
        with open(shown, "rb"):
            pass  # safetensors says of whatever it may not read that it is not there
        with safe_open(shown, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ParamsFileError(
                    f"{shown} is a safetensors file of something else, with format {metadata.get('format')!r}; "
                    f"expected {FORMAT!r}, as Bridge.save writes it"
                )
            theirs = _described(shown, metadata.get("layout", ""))
            if sorted(file.keys()) != sorted(name for name, _ in theirs):
                raise _damaged(shown, "its tensors are not those that its description names")
            kinds = {name: file.get_slice(name) for name, _ in theirs}
            for name, shape in theirs:
                came = tuple(kinds[name].get_shape()), kinds[name].get_dtype()
                if came != (shape, "F64"):
                    raise _damaged(
                        shown, f"expected {name!r} of shape {shape} in F64, got {came[0]} in {came[1]}"
                    )
            _compare(shown, theirs, layout, names)
            arrays = [file.get_tensor(name) for name, _ in theirs]
    except SafetensorError as error:
        raise ParamsFileError(f"{shown} is not a safetensors file: {error}") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ParamsFileError(f"{shown} cannot be read: {error}") from error
    return layout.ravel(dict(zip(layout.names, arrays)))


def _replace(path: str, content: bytes) -> None:
    """Write a file whole: beside it first, and then in its place."""
    target = os.path.realpath(path)
    beside = os.path.join(os.path.dirname(target), f".{uuid.uuid4().hex}.tmp")
    try:
        try:
            old = os.stat(target)
        except FileNotFoundError:
            old = None
        if path.endswith("/") or (old is not None and not stat.S_ISREG(old.st_mode)):
            raise ParamsFileError(
                f"{path} is a directory, a device or a pipe, and parameters are saved to a regular file; name one"
            )
        if old is not None:
            with open(target, "r+b"):
                pass  # it may be written to, or stays as it is
        try:
            with open(beside, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if old is not None:
                with contextlib.suppress(
                    OSError, AttributeError
                ):  # another's file, or a system without owners
                    os.chown(beside, old.st_uid, old.st_gid)
                os.chmod(beside, stat.S_IMODE(old.st_mode))
            os.replace(beside, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
    except OSError as error:
        error.filename, error.filename2 = path, None  # not the one beside it, which nobody knows
        raise


def _damaged(path: str, what: str) -> ParamsFileError:
    return ParamsFileError(f"{path} is damaged: {what}; save the parameters again")


def _described(path: str, text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of each parameter, as the file describes them.

    Raises:
        ParamsFileError: it does not.
    """
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(
            path, f"the description of its layout is not valid JSON ({type(error).__name__})"
        ) from error
    described = described if isinstance(described, dict) else {}
    names, shapes = described.get("names"), described.get("shapes")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged(path, "the description of its layout has no list of names")
    if not isinstance(shapes, list) or len(shapes) != len(names) or not all(map(_is_shape, shapes)):
        raise _damaged(path, "the description of its layout has no shape for each name")
    return list(zip(names, map(tuple, shapes)))


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _compare(
    path: str, theirs: list[tuple[str, tuple[int, ...]]], layout: ParameterLayout, names: bool
) -> None:
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
