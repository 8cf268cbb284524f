"""Why a model cannot be traced or failed, in terms of what it was given."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from gradbridge.errors import (
    GradbridgeError,
    GuestError,
    HigherOrderError,
    InputError,
    Unsupported,
)
from gradbridge.wording import given
from gradbridge_tensorflow.repairs import lost_moments

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


def explained(
    error: Exception, label: str, inputs: Sequence[Any], dtype: tf.DType | None, doing: str
) -> GradbridgeError:
    """The error of ours that says what the model was given and what it said.

    Args:
        error: what the model or its graph raised.
        label: the model's name.
        inputs: leaves, arrays or not.
        dtype: that floating ones are cast to; None keeps theirs.
        doing: what was done where it was not a forward: ``"the derivative of"``.
    """
    arrays = [x for x in inputs if hasattr(x, "dtype") and hasattr(x, "shape")]
    came = given(inputs, lambda x: _named(x, dtype))
    text = _first_line(str(error))
    said = f"{type(error).__name__}: {text}"
    if _MISFIT.search(text) and not isinstance(error, (AttributeError, NameError)):
        return InputError(
            f"the bridge over {label}: the model was given {came} and refused ({said}); check "
            f"the number of columns and the axes of the inputs"
        )
    whole = {name for x in arrays if (name := _named(x, dtype)).startswith(("int", "uint", "bool"))}
    refused = re.search(rf"\b(?:DataType|type|of|got|an?) ({'|'.join(whole)})\b", text) if whole else None
    if refused:
        return InputError(
            f"the bridge over {label}: it was given {came}, and an operation in it does not take {refused[1]} "
            f"there; integers pass the bridge untouched, so cast them with X.astype(float) if floats are meant "
            f"({said})"
        )
    advice = ""
    if (isinstance(error, NotImplementedError) and "NumPy" in text) or "has no attribute 'numpy'" in text:
        advice = "; it is compiled by tf.function, so use TensorFlow's operations in it, not NumPy's"
    elif "Python `bool`" in str(error):
        advice = "; it branches on the value of a tensor, so use tf.cond, keras.ops.cond or tf.where there"
    elif "float64" in text and "float32" in text and "DataType string" not in text:
        advice = (
            "; some part of it computes in a dtype of its own: leave dtype= out, or write that part so that "
            "it follows the dtype of its inputs"
        )
    what = f"{doing} {label}" if doing else label
    return GuestError(f"{what} failed on {came}: {said}{advice}")


def refuse_foreign_operations(graph: Any, label: str) -> set[str]:
    """Refuse a traced graph that draws global noise or writes variables.

    Args:
        graph: the function graph, with its library of called functions.
        label: the model's name.

    Returns:
        The types of its operations.

    Raises:
        GuestError: it draws from TensorFlow's random state, or assigns a variable.
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
    return kinds


def refuse_lost_derivatives(graph: Any, label: str) -> None:
    """Refuse to differentiate a graph in which TensorFlow has dropped a part of the derivative.

    Called before a derivative is taken, so that what was differentiated is a derivative itself.

    Args:
        graph: as it stands.
        label: the name of what it computes.

    Raises:
        HigherOrderError: the derivative would be a wrong number, not an error.
    """
    for nodes, returned in bodies(graph):
        if any(lost_moments(nodes, returned)):
            raise HigherOrderError(
                f"the derivative of a derivative was asked for, and {label} has a derivative of tf.nn.moments in "
                f"it, in a graph that was traced before it was bridged: there TensorFlow stops the gradient at "
                f"the mean, and would give a wrong number; make the tf.function after bridging it or pass its "
                f".python_function, or write the variance as tf.math.reduce_variance(x, axes)"
            )


def refuse_lost_tangents(graph: Any, label: str, plain: Callable[[], Any]) -> None:
    """Refuse a traced JVP in which TensorFlow has dropped a part of the derivative.

    Args:
        graph: of the JVP, which TensorFlow makes of gradients of gradients.
        label: the name of what it is the JVP of.
        plain: traces what it is the JVP of.

    Raises:
        Unsupported: TensorFlow has none that is the transposed of the VJP.
        HigherOrderError: it would be a wrong number.
    """
    lost = False
    for nodes, returned in bodies(graph):
        if any("_gradient_op_type" in node.attr for node in nodes):
            # An accumulator pushes tangents through what the operation computes, and does not ask its
            # gradient: a JVP would not be the transposed of the VJP.
            raise Unsupported(f"{label} has no forward mode: an operation in it has a custom gradient")
        lost = lost or next(lost_moments(nodes, returned), None) is not None
    if lost:  # the first derivative is right: is there one within it already?
        refuse_lost_derivatives(plain(), label)


def refuse_missing_derivatives(error: tf.errors.NotFoundError, graph: Any, label: str) -> None:
    """Say so if a compiled derivative fails because TensorFlow has none for a function of its own.

    It finds that out when it runs: it writes the name of a gradient in the graph that nobody defines.

    Args:
        error: of the run.
        graph: that ran.
        label: the name of what it is the derivative of.

    Raises:
        HigherOrderError
    """
    asked = [n for nodes, _ in bodies(graph) for n in nodes if n.op == "SymbolicGradient"]
    if asked:
        scopes = (part for part in asked[0].name.split("/") if not part.startswith("gradient"))
        raise HigherOrderError(
            f"the derivative of {label} was asked for, and TensorFlow has none for an operation of the model, "
            f"{next(scopes, asked[0].name)!r}; replace that operation, or give it a gradient with tf.custom_gradient"
        ) from error


def bodies(graph: Any) -> Iterator[tuple[list[Any], list[str]]]:
    """The nodes of a graph, and of each function that it calls, with the names of what these return."""
    definition = graph.as_graph_def()
    yield list(definition.node), []
    for function in definition.library.function:
        yield list(function.node_def), list(function.ret.values())


def _named(array: Any, dtype: tf.DType | None) -> str:
    """The dtype in which an array crosses the border."""
    name = str(array.dtype).rsplit(".", 1)[-1] if not isinstance(array.dtype, tf.DType) else array.dtype.name
    return dtype.name if dtype is not None and "float" in name else name


def _first_line(text: str) -> str:
    """The first line that says something: Keras puts a heading before it, and colours."""
    lines = [_NODE.sub("", line.strip()) for line in _ANSI.sub("", text).splitlines() if line.strip()]
    headings = ("Exception encountered", "Graph execution error", "Detected at node", "<stack traces")
    telling = (line for line in lines if not line.startswith(headings))
    return next(telling, lines[0] if lines else "")
