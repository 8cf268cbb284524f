"""Which written rules give a form.

A chain of written rules, the VJP of a VJP of …, gives a form with one place free (`forms`). It serves

- for the same free place, as it was written;
- for another order of the directions, because partial derivatives commute: the JVP of a VJP is
  so the VJP of the VJP of the other argument;
- for another free place, exactly, with one unit vector there for each of its numbers.

All this takes the function to be twice (for order k, k times) continuously differentiable, and the
rules to be its derivatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradbridge_numpy.forms import OUTPUTS
from gradbridge_numpy.rules import Maker, Rules, VJPRule


@dataclass(frozen=True)
class Chain:
    """Rules, one on the other, perhaps a JVP at the end. All numbers are indices of places of the form.

    Attributes:
        rules: the VJPs.
        last: the JVP of the last of them.
        order: the places in the order that the rules take them up; the first is that of the outputs.
        free: the place that they leave free.
        taken: the place that the cotangent of each rule goes to.
        zero: whether it ends with an argument that is declared to have no influence.
    """

    rules: tuple[VJPRule, ...] = ()
    last: Maker | None = None
    order: tuple[int, ...] = (0,)
    free: int = 0
    taken: tuple[int, ...] = ()
    zero: bool = False


def choose(rules: Rules, count: int, places: tuple[int, ...], free: int) -> Chain | None:
    """The cheapest chain of rules for a form, those first that were written for it.

    Args:
        rules: of the function.
        count: how many arguments it has.
        places: OUTPUTS, then the argument of each direction in the order that they were asked for.
        free: index of the place that is to be left free. The chain may leave another one free; it
            then takes unit vectors in this.

    Returns:
        The chain; None where no rule gives the form.
    """
    if len(places) == 2 and free == 1 and (rule := rules.vjps.get(places[1])) is not None:
        return Chain((rule,), None, (0, 1), 1, (0,))  # a gradient by its own rule: nearly every call

    def cost(chain: Chain) -> tuple[bool, bool, bool, int]:
        length = len(chain.rules) + (chain.last is not None)
        return not chain.zero, chain.free != free, chain.order != tuple(sorted(chain.order)), length

    chains = _longer(rules, count, places, Chain())
    whole = (chain for chain in chains if chain.zero or len(chain.order) == len(places))
    return min(whole, key=cost, default=None)


def has_second_order(rules: Rules, count: int) -> bool:
    """Whether the gradient with respect to some argument can be pulled back to some argument."""
    moving = {number for of in (rules.vjps, rules.jvps) for number, rule in of.items() if rule is not None}
    pairs = ((OUTPUTS, one, other) for one in moving for other in moving)
    return not moving or any(choose(rules, count, places, 2) is not None for places in pairs)


def _longer(rules: Rules, count: int, places: tuple[int, ...], at: Chain) -> Iterator[Chain]:
    """All chains that go on from one."""
    count = rules.count if rules.count is not None else count
    for number, rule in rules.vjps.items():
        taken = (*at.taken, at.free)
        if number < count:
            ends = [((*at.order, i), i) for i in _unused(places, at, number)]
        elif number - count < len(at.taken) and rule is not None:
            ends = [(at.order, at.taken[number - count])]  # pulled back to an earlier cotangent
        else:
            ends = []
        for order, free in ends:
            if rule is None:
                yield Chain(at.rules, None, order, free, taken, zero=True)
            else:
                longer = Chain((*at.rules, rule), None, order, free, taken)
                yield longer
                yield from _longer(rule, count, places, longer)
    for number, maker in rules.jvps.items():
        # In its cotangents a rule is linear, so that a JVP there says nothing new.
        for i in _unused(places, at, number) if number < count else ():
            yield Chain(at.rules, maker, (*at.order, i), at.free, at.taken, zero=maker is None)


def _unused(places: tuple[int, ...], chain: Chain, argument: int) -> list[int]:
    """The directions of an argument that a chain has not taken up."""
    return [i for i, place in enumerate(places) if place == argument and i not in chain.order]
