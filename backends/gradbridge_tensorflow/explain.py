"""Why a model cannot be traced or failed, in terms of what it was given."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from gradbridge.errors import GradbridgeError, GuestError, InputError, NotDifferentiableError

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_NODE = re.compile(r"\{\{[^}]*\}\}\s*")
_MISFIT = re.compile(
    r"incompatible with|Incompatible shapes|size-incompatible|must be equal|Dimensions must|"
    r"expects \d+ input|structure of|cannot be broadcast|Expected .* to have|Shape must be|rank",
    re.IGNORECASE,
)
# Operations that draw from TensorFlow's own random state, which is global or a variable.
_GLOBAL_NOISE = {
    "RandomUniform",
    "RandomUniformInt",
    "RandomStandardNormal",
    "TruncatedNormal",
    "ParameterizedTruncatedNormal",
    "RandomGamma",
    "RandomPoisson",
    "RandomPoissonV2",
    "RandomShuffle",
    "Multinomial",
    "RngReadAndSkip",
    "RngSkip",
    "StatefulUniform",
    "StatefulUniformInt",
    "StatefulStandardNormalV2",
    "StatefulTruncatedNormal",
}
_WRITES = {"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"}


def explained(error: Exception, label: str, leaves: Sequence[Any]) -> GradbridgeError:
    """The error of ours that says what the model was given and what it said.

    Args:
        error: what the model or its graph raised.
        label: the model's name.
        leaves: the input leaves, tensors or not.
    """
    given = ", ".join(
        f"input {i} of shape {tuple(x.shape)} {x.dtype.name}"
        for i, x in enumerate(leaves)
        if isinstance(x, tf.Tensor)
    )
    text = _first_line(str(error))
    said = f"{type(error).__name__}: {text}"
    if _MISFIT.search(text) and not isinstance(error, (AttributeError, NameError)):
        return InputError(
            f"the bridge over {label}: the model was given {given or 'no array'} and refused ({said}); check "
            f"the number of columns and the axes of the inputs"
        )
    advice = ""
    if (isinstance(error, NotImplementedError) and "NumPy" in text) or "has no attribute 'numpy'" in text:
        advice = "; it is compiled by tf.function, so use TensorFlow's operations in it, not NumPy's"
    elif "Python `bool`" in str(error):
        advice = "; it branches on the value of a tensor, so use tf.cond, keras.ops.cond or tf.where there"
    elif "float64" in text and "float32" in text:
        advice = (
            "; some part of it computes in a dtype of its own: leave dtype= out, or write that part so that "
            "it follows the dtype of its inputs"
        )
    return GuestError(f"{label} failed on {given or 'no array'}: {said}{advice}")


def refuse_foreign_operations(graph: Any, label: str, differentiated: bool) -> None:
    """Refuse a traced graph that draws global noise, writes variables, or hides from differentiation.

    Args:
        graph: the function graph, with its library of called functions.
        label: the model's name.
        differentiated: whether gradients are wanted of it.

    Raises:
        GuestError: it draws from TensorFlow's random state, or assigns a variable.
        NotDifferentiableError: it leaves TensorFlow.
    """
    kinds = {op.type for op in graph.get_operations()}
    kinds |= {node.op for function in graph.as_graph_def().library.function for node in function.node_def}
    noisy = sorted(kinds & _GLOBAL_NOISE)
    if noisy:
        raise GuestError(
            f"{label} draws random numbers from TensorFlow's own state ({', '.join(noisy)}), and then the same "
            f"params and inputs would not give the same outputs; use tf.random.stateless_… with a seed, or a "
            f"keras.random.SeedGenerator in a Keras layer"
        )
    if kinds & _WRITES:
        raise GuestError(
            f"{label} assigns a tf.Variable while it computes, and a bridge never writes to a model's "
            f"variables; return the new value as an output instead, or keep the variable an attribute of the "
            f"module and assign it outside of nested tf.functions"
        )
    if differentiated and kinds & {"PyFunc", "PyFuncStateless"}:
        raise NotDifferentiableError(
            f"{label} calls tf.numpy_function, which TensorFlow cannot differentiate (it would give zeros); "
            f"use TensorFlow's operations, or tf.custom_gradient around it"
        )


def _first_line(text: str) -> str:
    """The first line that says something: Keras puts a heading before it, and colours."""
    lines = [_NODE.sub("", line.strip()) for line in _ANSI.sub("", text).splitlines() if line.strip()]
    telling: Iterable[str] = (
        line
        for line in lines
        if not line.startswith(("Exception encountered", "Graph execution error", "Detected at node"))
    )
    return next(iter(telling), lines[0] if lines else "")
