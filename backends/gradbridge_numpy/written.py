"""Derivatives of a plain function from the rules that are written for it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import optree

from gradbridge import trees
from gradbridge.errors import (
    GradbridgeError,
    GradientShapeError,
    GuestError,
    HigherOrderError,
    LayoutError,
    MissingVJPError,
    VJPSignatureError,
)
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Array
from gradbridge_numpy.called import CalledPoint, trees_map
from gradbridge_numpy.forms import OUTPUTS, Choice, Written, choose
from gradbridge_numpy.pullbacks import Leaves
from gradbridge_numpy.rules import Maker, Rules, VJPRule, name_of


class WrittenPoint(CalledPoint):
    """Derivatives from written rules.

    Copies are handed out throughout: a rule may write to what it is given, and is asked more than once.
    """

    def form(
        self, places: tuple[int, ...], free: int, fills: Sequence[Leaves | None], wanted: Sequence[int]
    ) -> list[Array] | None:
        """See `Point.form`.

        Raises:
            MissingVJPError: no rule is written for an argument.
            HigherOrderError: no rule is written for the derivative of its rule.
            GradientShapeError: a rule returned a wrong shape.
        """
        choice = self._choice(places, free)
        if choice.written.zero:
            return None
        if choice.exact:
            return self._follow(choice.written, [fills[i] for i in choice.match], wanted)
        return self._by_units(choice, places, free, fills, wanted)

    def require(self, places: tuple[int, ...], free: int) -> None:
        """See `Point.require`."""
        self._choice(places, free)

    # -- private ------------------------------------------------------------------------------

    @functools.cached_property
    def _count(self) -> int:
        """How many arguments the function has."""
        names = self.plain.rules.names
        return len(names) if names is not None else len(self._arguments()[0])

    def _arguments(self, chain: Sequence[VJPRule] = ()) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies of the arguments for the next rule of a chain.

        After the first rule come the cotangents, so that what stands before them is filled up: with
        arguments that were passed by keyword, and with defaults.
        """
        args, kwargs = self.signature.bind([_copied(leaf) for leaf in self.leaves])
        args = self.plain.arguments(self.params, args)
        if not chain or self.plain.signature is None:
            return args, kwargs
        bound = self.plain.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        # A default is the function's own.
        full = (*bound.args[: len(args)], *map(_copied, bound.args[len(args) :]))
        args = full[: chain[0].rules.count]
        names = (self.plain.rules.names or ())[: len(args)]
        return args, {name: value for name, value in kwargs.items() if name not in names}

    def _choice(self, places: tuple[int, ...], free: int) -> Choice:
        found = choose(self.plain.rules, self._count, places, free)
        return found if found is not None else self._refuse(places)

    def _follow(self, written: Written, fills: Sequence[Leaves | None], wanted: Sequence[int]) -> list[Array]:
        """Call the rules of a chain, one on the gradient of the other."""
        value = self.tree
        given: list[Any] = []
        for order, (rule, place) in enumerate(zip(written.chain, written.taken)):
            cotangent = self._like(value, written.places[place], fills[place])
            args, kwargs = self._arguments(written.chain[:order])
            pull = self._called(rule, rule, _copies(value), *args, *map(_copies, given), **kwargs)
            if not callable(pull):
                raise VJPSignatureError(
                    f"the VJP maker {name_of(rule)} of {self.plain.label} must return a function of the cotangent, "
                    f"got {type(pull).__name__}; return `lambda v: …`"
                )
            value = self._called(rule, pull, _copies(cotangent))
            given.append(cotangent)
            if value is None:
                self._refuse_none("VJP", written)
        if written.last is not None:
            args, kwargs = self._arguments(written.chain)
            tangent = self._like(args[written.places[-1]], written.places[-1], fills[-1])
            value = self._pushed(written.last, tangent, value, (*args, *map(_copies, given)), kwargs)
            if value is None:
                self._refuse_none("JVP", written)
        place = written.places[written.free]
        return [self._leaf(value, place, leaf, written, fills) for leaf in wanted]

    def _pushed(self, maker: Maker, tangent: Any, value: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        pushed = self._called(maker, maker, tangent, _copies(value), *args, **kwargs)
        if callable(pushed):
            raise VJPSignatureError(
                f"the JVP maker {name_of(maker)} of {self.plain.label} must return the tangent itself, got a function; "
                f"it is given the tangent t of the argument first: `lambda t, ans, x: …`"
            )
        return pushed

    def _called(self, rule: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except GradbridgeError:
            raise
        except Exception as error:
            shapes = ", ".join(str(np.shape(a)) for a in args if isinstance(a, (np.ndarray, float)))
            raise GuestError(
                f"the rule {name_of(rule)} that is written for {self.plain.label} failed on arrays of shapes {shapes or '(none)'}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _by_units(
        self,
        choice: Choice,
        places: tuple[int, ...],
        free: int,
        fills: Sequence[Leaves | None],
        wanted: Sequence[int],
    ) -> list[Array]:
        """The form with another place free, from one unit vector for each number of the free one.

        A complex number has two, and F(1) - i F(i) is what pairs with a tangent t as Re(… t).
        """
        written = choice.written
        other = choice.match[written.free]
        weights = {
            i: w for i, w in enumerate(fills[other] or ()) if w is not None and self.moves(places[other], i)
        }
        found = []
        for leaf in wanted:
            gradient = self.zeros(places[free], leaf)
            sizes = (1.0, 1.0j) if gradient.dtype.kind == "c" else (1.0,)
            for index in np.ndindex(gradient.shape) if self.moves(places[free], leaf) else ():
                for size in sizes:
                    unit = np.zeros_like(gradient)
                    unit[index] = size
                    mine: Leaves = [None] * len(self._row(places[free]))
                    mine[leaf] = unit
                    filled = [mine if i == free else None if i == other else fills[i] for i in choice.match]
                    moved = self._follow(written, filled, list(weights))
                    along = math.fsum(float(np.sum(np.real(m * w))) for m, w in zip(moved, weights.values()))
                    gradient[index] += along / size
            found.append(gradient)
        return found

    def _row(self, place: int) -> Sequence[Any]:
        return self.answer if place == OUTPUTS else self.places[place]

    def _like(self, value: Any, place: int, fill: Leaves | None) -> Any:
        """Leaves of a place as the user's value there is: a tree, an array or a flat vector; new arrays.

        A place that is left free in the end is filled with ones: what comes out does not depend on it.
        """
        leaves = [
            self.zeros(place, i) + 1 if fill is None else self._or_zeros(fill[i], place, i)
            for i in range(len(self._row(place)))
        ]
        if place == 0 and self.plain.layout is not None:
            return _params_like(value, leaves[0], self.plain.layout)
        structure = self._structure(place)
        return leaves[0] if structure.num_nodes == 1 else trees.unflatten(structure, leaves)

    def _or_zeros(self, leaf: Array | None, place: int, index: int) -> Array:
        return self.zeros(place, index) if leaf is None else np.array(leaf)

    def _structure(self, place: int) -> optree.PyTreeSpec:
        if place == OUTPUTS:
            return self.structure
        return self.plain.structure(place, self.signature)

    def _leaf(
        self, value: Any, place: int, leaf: int, written: Written, fills: Sequence[Leaves | None]
    ) -> Array:
        """One leaf of what a rule returned, checked."""
        if not self.moves(place, leaf):
            return self.zeros(place, leaf)
        kind, whose = self._words(written)
        array = self._found(value, place, leaf, kind)
        expected, is_complex = self.shape(place, leaf), self.is_complex(place, leaf)
        if array.shape != expected or array.dtype.kind not in ("fiubc" if is_complex else "fiub"):
            if place == OUTPUTS:
                hint = "return the Jacobian times the tangent t, which is like the argument"
                of = f"the output's shape {expected}"
            else:
                v = next((np.shape(w) for w in fills[0] or () if w is not None), ())
                hint = f"for a cotangent v of shape {v} return vᵀ times the Jacobian, summed over the output's axes"
                if len(written.places) > 2:
                    hint = "it is like the argument, or for a JVP like the gradient that it is the tangent of"
                of = f"that argument's shape {expected}"
            if array.shape == expected and array.dtype.kind == "c":
                hint = "that of a real argument is the real part: np.real(…)"
            numbers = "an array" if is_complex else "a real array"
            raise GradientShapeError(
                f"the {kind} of {self.plain.label} for {whose} must return {numbers} of {of}, got {array.shape} of "
                f"dtype {array.dtype}; {hint}"
            )
        return np.array(array, dtype=np.result_type(array, np.complex64 if is_complex else np.float32))

    def _found(self, value: Any, place: int, leaf: int, kind: str) -> Array:
        if place == 0 and (layout := self.plain.layout) is not None:
            flat = not trees.is_container(value) and np.shape(value) == (layout.size,)
            try:
                return np.asarray(value) if flat else layout.ravel(value)
            except LayoutError as error:
                raise GradientShapeError(
                    f"the {kind} of {self.plain.label} for its parameters must return a tree like them, or a vector of "
                    f"shape {(layout.size,)}: {error}"
                ) from error
        structure = self._structure(place)
        if structure.num_nodes == 1:
            return np.asarray(value)
        leaves, found = trees.flatten(value)
        if found != structure:
            like = "the outputs" if place == OUTPUTS else "its argument's"
            raise GradientShapeError(
                f"the {kind} of {self.plain.label} must return a tree like {like}, {structure}, got {found}"
            )
        return np.asarray(leaves[leaf])

    def _words(self, written: Written) -> tuple[str, str]:
        kind = "JVP" if written.last is not None else "VJP"
        rule = written.last if written.last is not None else written.chain[-1]
        if len(written.chain) + (written.last is not None) > 1:
            kind = f"{kind} {name_of(rule)}"
        return kind, " and ".join(f"argument {a}" for a in written.places[1:])

    def _refuse_none(self, kind: str, written: Written) -> NoReturn:
        what = "gradient" if kind == "VJP" else "tangent"
        raise GradientShapeError(
            f"the {kind} of {self.plain.label} for {self._words(written)[1]} returned None; return the {what}, or "
            f"declare that the argument has no influence by giving None in place of the rule"
        )

    def _refuse(self, places: tuple[int, ...]) -> NoReturn:
        rules, label = self.plain.rules, self.plain.label
        spelled = label if label.isidentifier() else "f"  # a lambda has no name to write
        keywords = [p for p in places[1:] if p < OUTPUTS]
        if keywords:
            raise MissingVJPError(
                f"argument {self.plain.keyword(keywords[0], self.signature)!r} of {label} was passed by keyword, and "
                f"written gradients belong to positional arguments; pass it by position to differentiate with "
                f"respect to it"
            )
        if len(places) == 2:
            argument = places[1]
            known = sorted({*rules.vjps, *rules.jvps})
            state = f"it has rules for argument {', '.join(map(str, known))} only" if known else "it has none"
            raise MissingVJPError(
                f"the gradient of {label} with respect to argument {rules.name(argument)} was asked for, and {state}; "
                f"write it with @{spelled}.defvjp, or make the function with gradient='numeric'"
            )
        refuse_order(rules, places)


def refuse_order(rules: Rules, places: tuple[int, ...]) -> NoReturn:
    """Say which rule a higher derivative needs.

    Raises:
        HigherOrderError: always.
    """
    label = rules.label
    asked = " and then ".join(f"argument {rules.name(a)}" for a in places[1:])
    rule = rules.vjps.get(places[1])
    for argument in places[2:-1]:
        rule = rule.rules.vjps.get(argument) if rule is not None else None
    if rule is not None:
        name = name_of(rule)
        name = name if name.isidentifier() and name != "_" else "Q_vjp"
        how = f"write it with @{name}.defvjp or @{name}.defjvp, {name} being what @defvjp gave for the one before"
    else:
        how = "write the VJPs up to it, each with @….defvjp of the one before"
    raise HigherOrderError(
        f"a derivative of the written-down gradient of {label} was asked for, with respect to {asked}, and no rule "
        f"gives it: NumPy code cannot be differentiated; {how}, or write {label} in a framework that has higher "
        f"orders: @gradbridge.primitive(backend='torch')"
    )


def _params_like(value: Any, flat: Array, layout: ParameterLayout) -> Any:
    """The vector in the form that the user's own value has: a vector, or a tree, or a mapping of names."""
    if not trees.is_container(value) and np.shape(value) == (layout.size,):
        return flat
    arrays = layout.unravel(flat)
    if isinstance(value, Mapping) and set(value) == set(layout.names):
        return arrays
    assert layout.structure is not None
    return trees.unflatten(layout.structure, list(arrays.values()))


def _copied(leaf: Any) -> Any:
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def _copies(tree: Any) -> Any:
    return trees_map(np.array, tree)
