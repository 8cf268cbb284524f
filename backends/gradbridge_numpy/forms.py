"""Which written rule gives a derivative, of any order.

A derivative of order k of f is one multilinear form, in the cotangent v and a direction for each
argument that was differentiated::

    M(v; t₁ … tₖ) = ⟨v, Dᵏf(x)[t₁ … tₖ]⟩

Whatever a host asks for is this form with one place left free: the gradient is M(v; ·), the JVP is
M(·; t), the gradient pulled back again is M(v; u, ·), its derivative in v is M(·; u), and so on. A
chain of written rules gives it with one place free, too. So a rule serves

- for the same free place, as it was written;
- for another order of the directions, because partial derivatives commute; the JVP of a VJP is
  so the VJP of the VJP of the other argument;
- for another free place, exactly, with one unit vector there for each of its numbers.

All this takes the function to be twice (for order k, k times) continuously differentiable, and the
rules to be its derivatives.

Source:
    H. A. Schwarz (1873); W. Rudin (1976), Principles of Mathematical Analysis, theorem 9.41, for
    the symmetry. J. Townsend (2017), A new trick for calculating Jacobian-vector products, for the
    derivative in v.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from gradbridge_numpy.rules import Maker, Rules, VJPRule

#: The place of the outputs, among those of the arguments 0, 1, 2 …
OUTPUTS = -1


@dataclass(frozen=True)
class Written:
    """A chain of rules: VJP of VJP of …, perhaps a JVP at its end, and the form that it gives.

    Attributes:
        chain: the VJP rules, one on the other; None at the end where it is declared zero.
        last: the JVP of the last of them.
        places: OUTPUTS, then the argument of each direction.
        free: index of the place that is left free.
        taken: index of the place that the cotangent of each rule of the chain goes to.
    """

    chain: tuple[VJPRule, ...]
    last: Maker | None
    places: tuple[int, ...]
    free: int
    taken: tuple[int, ...]
    zero: bool = False


@dataclass(frozen=True)
class Choice:
    """A chain of rules for a form that was asked for.

    Attributes:
        written: the chain.
        match: for each of its places, the index of that place in the form.
        exact: whether the free place is the form's; else it takes unit vectors there.
    """

    written: Written
    match: tuple[int, ...]
    exact: bool


def choose(rules: Rules, count: int, places: tuple[int, ...], free: int) -> Choice | None:
    """The cheapest chain of rules for a form, those first that were written for it.

    Args:
        rules: of the function.
        count: how many arguments it has.
        places: OUTPUTS, then the argument of each direction in the order that they were asked for.
        free: index of the place that is left free.

    Returns:
        The choice; its chain is `zero` where an argument is declared to have no influence. None
        where no rule gives it.
    """
    if len(places) == 2 and free == 1 and places[1] in rules.vjps:
        # A gradient by the rule that is written for it: nearly every call.
        rule = rules.vjps[places[1]]
        chain = () if rule is None else (rule,)
        return Choice(Written(chain, None, places, 1, (0,), zero=rule is None), (0, 1), True)
    best: Choice | None = None
    cost: tuple[bool, bool, int] | None = None
    for written in _walk(rules, count, Counter(places), Written((), None, (OUTPUTS,), 0, ())):
        if written.zero:
            return Choice(written, (), True)
        if len(written.places) != len(places):
            continue
        exact = written.places[written.free] == places[free]
        as_written = written.places == places and (written.free == free or not exact)
        length = len(written.chain) + (written.last is not None)
        this = (not exact, not as_written, length)
        if cost is None or this < cost:
            best, cost = Choice(written, _match(written, places, free, exact), exact), this
    return best


def has_second_order(rules: Rules, count: int) -> bool:
    """Whether the gradient with respect to some argument can be pulled back to some argument."""
    moving = {number for of in (rules.vjps, rules.jvps) for number, rule in of.items() if rule is not None}
    pairs = ((OUTPUTS, one, other) for one in moving for other in moving)
    return not moving or any(choose(rules, count, places, 2) is not None for places in pairs)


def _walk(rules: Rules, count: int, within: Counter[int], at: Written) -> Iterator[Written]:
    """All chains that go on from one, with places among those of `within`."""
    count = rules.count if rules.count is not None else count
    for number, rule in rules.vjps.items():
        places, free = at.places, len(at.places)
        if number < count:
            places = (*places, number)
        elif number - count < len(at.taken) and rule is not None:
            free = at.taken[number - count]  # pulled back to an earlier cotangent
        else:
            continue
        if Counter(places) <= within:
            chain = at.chain if rule is None else (*at.chain, rule)
            found = Written(chain, None, places, free, (*at.taken, at.free), zero=rule is None)
            yield found
            if rule is not None:
                yield from _walk(rule.rules, count, within, found)
    for number, maker in rules.jvps.items():
        # In its cotangents a rule is linear, so that a JVP there says nothing new.
        places = (*at.places, number)
        if number < count and Counter(places) <= within:
            yield Written(at.chain, maker, places, at.free, at.taken, zero=maker is None)


def _match(written: Written, places: tuple[int, ...], free: int, exact: bool) -> tuple[int, ...]:
    """Its places → those of the form, each to one of the same argument, in order where it can be."""
    if exact:
        fixed = {written.free: free}
    elif written.places == places:
        fixed = {free: free}
    else:
        moving = next(i for i, p in enumerate(written.places) if p == places[free] and i != written.free)
        fixed = {moving: free}
    left = [i for i in range(len(places)) if i != free]
    for index, place in enumerate(written.places):
        if index not in fixed:
            fixed[index] = next(i for i in left if places[i] == place)
            left.remove(fixed[index])
    return tuple(fixed[i] for i in range(len(places)))
