"""Programs: a traceable function of tensors, its compiled forms, and its pullback, a program again.

The parameters are a tensor per entry of the layout here, in as in out. One flat tensor, cut inside
the graph, is copied by the cut and by the concatenation of its gradient: 0.3 ms of 8.2 ms with
670 000 parameters.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optree
import tensorflow as tf

from gradbridge import trees
from gradbridge.constants import constant_key
from gradbridge.errors import GradbridgeError, HigherOrderError, NotDifferentiableError, OutputError
from gradbridge_tensorflow.explain import explained, refuse_foreign_operations, refuse_lost_derivatives
from gradbridge_tensorflow.isolation import apart
from gradbridge_tensorflow.partition import Halves, partition
from gradbridge_tensorflow.repairs import repaired_derivatives
from gradbridge_tensorflow.tensors import carrier, is_inexact

# One trace at a time in the process: Keras' layers keep notes on the call under way.
tracing = threading.RLock()


@dataclass
class Traced:
    """What a computation is given while it is traced, and what it hands back besides its outputs.

    Attributes:
        pieces: the parameters, one per entry of the layout.
        state: the model's moving variables as they stand; the computation replaces those it moves.
        seeds: (n, 2) int64, a seed for each of the model's random generators; None without any.
        leaves: the input leaves, tensors or the Python objects that the user passed.
        structure: how the leaves fit together.
    """

    pieces: list[tf.Tensor]
    state: list[tf.Tensor]
    seeds: tf.Tensor | None
    leaves: list[Any]
    structure: optree.PyTreeSpec

    def bind(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as the user passed them."""
        args, kwargs = optree.tree_unflatten(self.structure, self.leaves)
        return args, kwargs


@dataclass(frozen=True)
class Compiled:
    """A program compiled for some kinds of inputs.

    Attributes:
        halves: the compiled functions.
        structure: of the outputs; None for a single tensor.
        floating: for each output, the dtype in which its cotangent comes, None where it has none.
        moved: how many of the forward's results are new state, after the outputs.
        specs: the shapes of the input tensors that it was compiled for.
        source: the graph that the halves were cut from; functions that they call, the bodies of
            loops, are unregistered when it goes.
        mapped: what was made of the halves for many cotangents at once; see `jacobians`.
    """

    halves: Halves
    structure: optree.PyTreeSpec | None
    floating: tuple[tf.DType | None, ...]
    moved: int
    specs: tuple[tf.TensorShape, ...]
    source: Any
    mapped: dict[str, Any] = field(default_factory=dict)


@dataclass
class Program:
    """A function of (pieces, seeds, state, leaves), compiled when it first meets a kind of inputs.

    Attributes:
        label: what errors call it.
        pieces: shapes and dtypes of the parameters.
        random: whether it takes seeds.
        compute: the function; called while a graph is traced.
        order: how many derivatives it is of a model.
        any_rows: whether the first compilation is for any number of rows already. A model of Keras
            is made for that. Other functions may look at the number, so theirs is left open only
            when a second one comes, as `tf.function` does.
        mapped: what was made of it for rows apart, and for tangents; see `jacobians` and `forward_mode`.
    """

    label: str
    pieces: tuple[tf.TensorSpec, ...]
    random: bool
    compute: Callable[[Traced], Any]
    any_rows: bool = False
    order: int = 0
    traces: int = 0
    mapped: dict[Any, Any] = field(default_factory=dict)
    _families: dict[Any, list[Compiled]] = field(default_factory=dict)
    _rigid: set[Any] = field(default_factory=set)
    _pullbacks: dict[Any, Program] = field(default_factory=dict)

    def compiled(
        self, structure: optree.PyTreeSpec, leaves: Sequence[Any], wrt: tuple[int, ...], state: Sequence[Any]
    ) -> Compiled:
        """The form for these inputs, traced if none fits.

        Args:
            structure: of the leaves.
            leaves: eager tensors, and other objects, which are compiled in; with one that may change,
                the form is traced anew, and not kept.
            wrt: positions that will be pulled back to.
            state: the moving variables' values.
        """
        kinds = kinds_of(leaves, lambda index, x: x.shape.rank)
        if kinds is None:
            with tracing:
                exact = _shapes(leaves)
                return apart(lambda: self._trace(structure, leaves, exact, wrt, state))
        kind = (structure, wrt, kinds)
        for known in self._families.get(kind, ()):
            if _fits(known.specs, leaves):
                return known
        with tracing:
            family = self._families.setdefault(kind, [])
            for known in family:
                if _fits(known.specs, leaves):
                    return known
            compiled = apart(lambda: self._widest(kind, family, structure, leaves, wrt, state))
            family.append(compiled)
            return compiled

    def pullback(self, structure: optree.PyTreeSpec, wrt: tuple[int, ...]) -> Program:
        """The program ``(…, *leaves, *cotangents) ↦ gradients``, made once."""
        with tracing:
            known = self._pullbacks.get((structure, wrt))
            if known is None:
                known = self._pullbacks[structure, wrt] = Program(
                    f"gradient of {self.label}",
                    self.pieces,
                    self.random,
                    lambda given: _gradients(self, structure, wrt, given),
                    self.any_rows,
                    self.order + 1,
                )
            return known

    # -- private ------------------------------------------------------------------------------

    def _widest(
        self, kind: Any, family: list[Compiled], structure: Any, leaves: Any, wrt: Any, state: Any
    ) -> Compiled:
        """Compile for as many shapes as the model lets, this one among them."""
        exact = _shapes(leaves)
        wide = exact
        if kind not in self._rigid:
            if family:
                wide = tuple(a.most_specific_compatible_shape(b) for a, b in zip(family[-1].specs, exact))
            elif self.any_rows:
                wide = tuple(tf.TensorShape([None, *s[1:]]) if s.rank else s for s in exact)
        if wide != exact:
            try:
                return self._trace(structure, leaves, wide, wrt, state)
            except Exception:
                # It looks at the sizes, or the inputs do not fit: the exact shapes tell.
                self._rigid.add(kind)
        return self._trace(structure, leaves, exact, wrt, state)

    def _trace(
        self,
        structure: optree.PyTreeSpec,
        leaves: Sequence[Any],
        shapes: tuple[tf.TensorShape, ...],
        wrt: tuple[int, ...],
        state: Sequence[tf.Tensor],
    ) -> Compiled:
        self.traces += 1
        sizes = iter(shapes)
        specs = [tf.TensorSpec(next(sizes), x.dtype) for x in leaves if isinstance(x, tf.Tensor)]
        found: dict[str, Any] = {}

        def joint(*flat: tf.Tensor) -> list[tf.Tensor]:
            rest = iter(flat)
            pieces = [next(rest) for _ in self.pieces]
            seeds = next(rest) if self.random else None
            moving = [next(rest) for _ in state]
            mine = [next(rest) if isinstance(x, tf.Tensor) else x for x in leaves]
            given = Traced(pieces, moving, seeds, list(mine), structure)
            watched = at_positions(pieces, mine, wrt)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(watched)
                outputs, tree = output_leaves(self.compute(given), self.label)
            crossing = [tf.cast(t, carrier(t.dtype)) for t in outputs]
            floating = tuple(t.dtype if is_inexact(t.dtype) else None for t in crossing)
            # A cotangent is fed to the backward half only, so it is no argument of this function.
            cotangents = [tf.compat.v1.placeholder(t.dtype, t.shape) for t in crossing if is_inexact(t.dtype)]
            gradients: list[tf.Tensor] = []
            if wrt:
                pairs = zip((t for t in outputs if is_inexact(t.dtype)), cotangents)
                gradients = pulled(tape, list(pairs), watched, self)
                gradients = [tf.cast(g, carrier(g.dtype)) for g in gradients]
            found.update(
                arguments=flat,
                outputs=[*crossing, *given.state],
                cotangents=cotangents,
                gradients=gradients,
                structure=tree,
                floating=floating,
            )
            return [*crossing, *given.state, *gradients]

        every = [
            *self.pieces,
            *([tf.TensorSpec([None, 2], tf.int64)] if self.random else []),
            *(tf.TensorSpec(s.shape, s.dtype) for s in state),
            *specs,
        ]
        try:
            with repaired_derivatives():
                whole = tf.function(joint, input_signature=every, autograph=False).get_concrete_function()
            refuse_foreign_operations(whole.graph, self.label, bool(wrt))
            halves = partition(
                whole.graph,
                found["arguments"],
                whole.graph.captures,
                found["cotangents"],
                found["outputs"],
                found["gradients"],
            )
        except GradbridgeError:
            raise
        except Exception as error:
            raise explained(error, self.label, leaves) from error
        return Compiled(halves, found["structure"], found["floating"], len(state), shapes, whole)


def seeds_of(noise: int, count: int) -> np.ndarray[Any, Any]:
    """(count, 2) int64: a seed for each generator, from the noise of one call alone."""
    return np.random.SeedSequence(noise).generate_state(2 * count).astype(np.int64).reshape(count, 2)


def _gradients(
    parent: Program, structure: optree.PyTreeSpec, wrt: tuple[int, ...], given: Traced
) -> tuple[tf.Tensor, ...]:
    """The VJP of a program, traced with the graph of its own computation recorded."""
    count = structure.num_leaves
    primals, cotangents = given.leaves[:count], given.leaves[count:]
    inner = Traced(given.pieces, list(given.state), given.seeds, list(primals), structure)
    watched = at_positions(given.pieces, primals, wrt)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(watched)
        outputs, _ = output_leaves(parent.compute(inner), parent.label)
    pairs = [(t, c) for t, c in zip(outputs, cotangents) if is_inexact(t.dtype)]
    found = iter(pulled(tape, pairs, watched, parent))
    return tuple(_joined([next(found) for _ in given.pieces]) if p == 0 else next(found) for p in wrt)


def at_positions(pieces: Sequence[tf.Tensor], leaves: Sequence[Any], wrt: tuple[int, ...]) -> list[tf.Tensor]:
    """The tensors at some positions, in order; position 0 is all the pieces."""
    return [t for p in wrt for t in (pieces if p == 0 else [leaves[p - 1]])]


def _joined(pieces: list[tf.Tensor]) -> tf.Tensor:
    """Pieces as one vector, in float64 if they are not of one dtype."""
    if not pieces:
        return tf.zeros([0], tf.float64)
    dtype = pieces[0].dtype if len({t.dtype for t in pieces}) == 1 else tf.float64
    return tf.concat([tf.cast(tf.reshape(t, [-1]), dtype) for t in pieces], 0)


def pulled(
    tape: tf.GradientTape,
    pairs: list[tuple[tf.Tensor, tf.Tensor]],
    watched: list[tf.Tensor],
    program: Program,
) -> list[tf.Tensor]:
    """Gradients of the watched tensors, dense; zeros where there is no influence.

    TensorFlow's gradients are the conjugates of the protocol's: what is complex is turned, both ways.
    """
    found: list[Any] = [None] * len(watched)
    label = program.label
    refuse_lost_derivatives(tf.compat.v1.get_default_graph(), label)
    if pairs:
        try:
            found = tape.gradient(
                [t for t, _ in pairs],
                watched,
                output_gradients=[_turned(tf.cast(c, t.dtype)) for t, c in pairs],
            )
        except LookupError as error:
            raise NotDifferentiableError(
                f"the derivative of {label} was asked for, and TensorFlow has none for an operation in it "
                f"({str(error).splitlines()[0]}); replace that operation, or give it a gradient with "
                f"tf.custom_gradient"
            ) from error
        except NotImplementedError as error:  # by a gradient that is written in Python
            raise (HigherOrderError if program.order else NotDifferentiableError)(
                f"the derivative of {label} was asked for, and the gradient of an operation in it refuses "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); replace that operation "
                f"(a function within tf.recompute_grad has first derivatives only: call it without)"
            ) from error
    return [
        tf.zeros_like(w) if g is None else _turned(tf.convert_to_tensor(g)) for w, g in zip(watched, found)
    ]


def _turned(tensor: tf.Tensor) -> tf.Tensor:
    return tf.math.conj(tensor) if tensor.dtype.is_complex else tensor


def output_leaves(output: Any, label: str) -> tuple[list[tf.Tensor], optree.PyTreeSpec | None]:
    """The outputs of a model → its leaves as tensors, and their structure."""
    if isinstance(output, tf.Tensor):
        return [output], None
    leaves, structure = trees.flatten(output)
    tensors = []
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor, tf.IndexedSlices)) or not (
            isinstance(leaf, (float, int, complex, tf.Tensor, tf.Variable, np.ndarray, np.generic))
            or hasattr(leaf, "__tf_tensor__")
        ):
            raise OutputError(
                f"output {index} of {label} is a {type(leaf).__name__}; a bridged model returns a dense "
                f"tensor, or a tuple, list, dict or dataclass of tensors: drop the rest or make it a tensor"
            )
        tensors.append(tf.convert_to_tensor(leaf))
    return tensors, structure


def kinds_of(
    leaves: Sequence[Any], size: Callable[[int, tf.Tensor], Hashable]
) -> tuple[Hashable, ...] | None:
    """What tells the leaves of one trace from those of another.

    Args:
        leaves: eager tensors, and other objects, which are compiled in.
        size: (index, tensor) ↦ what of its shape matters.

    Returns:
        Their kinds; None if one of them may change without being another, so that no trace with it
        is right for the next call.
    """
    kinds: list[Hashable] = []
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, tf.Tensor):
            kinds.append((leaf.dtype, size(index, leaf)))
            continue
        key = _constant_key(leaf)
        if key is None:
            return None
        kinds.append(key)
    return tuple(kinds)


def _constant_key(leaf: Any) -> Hashable | None:
    if isinstance(leaf, (tf.DType, tf.TensorShape, tf.TypeSpec)):
        return type(leaf), leaf
    if isinstance(leaf, (tf.Variable, tf.SparseTensor, tf.RaggedTensor, tf.IndexedSlices)):
        return _Same(leaf)  # a trace reads a variable when it runs; the others never change
    return constant_key(leaf)


class _Same:
    """An object by identity; held, so that its identity is not used again."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


def _shapes(leaves: Sequence[Any]) -> tuple[tf.TensorShape, ...]:
    return tuple(x.shape for x in leaves if isinstance(x, tf.Tensor))


def _fits(specs: tuple[tf.TensorShape, ...], leaves: Sequence[Any]) -> bool:
    tensors = (x for x in leaves if isinstance(x, tf.Tensor))
    return all(spec.is_compatible_with(x.shape) for spec, x in zip(specs, tensors))
