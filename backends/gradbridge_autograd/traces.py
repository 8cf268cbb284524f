"""Recording one evaluation of a function of ``autograd.numpy``, from any thread.

autograd numbers its traces by one counter for the whole process, ``trace_stack.top``, that is moved
up and down without a lock: two threads may be given one number, or leave the counter below where it
was, and gradients are then silently zero. So a recording here does not touch it. The counter starts
at -1 and hands out 0, 1, 2 …; a recording takes a level between, -1/2, and one inside of it -1/4,
-1/8 …, counted for each thread by itself. They are ordered as autograd asks: an inner trace is above
an outer one, and what a recorded function differentiates itself, by ``autograd.grad``, is above all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from autograd.builtins import DictBox, SequenceBox
from autograd.core import VJPNode, add_outgrads
from autograd.extend import Box
from autograd.tracer import isbox, new_box, toposort

_boxes = Box.types


class _Depth(threading.local):
    value = 0


_depth = _Depth()


def plain(value: Any) -> Any:
    """What is in the innermost box."""
    while type(value) in _boxes:
        value = value._value
    return value


def opened(tree: Any) -> Any:
    """Boxes of tuples, lists and dicts within a tree → tuples, lists and dicts of boxes."""
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind(map(opened, tree))
    if kind is dict:
        return {key: opened(value) for key, value in tree.items()}
    if kind is SequenceBox:
        items = [opened(tree[i]) for i in range(len(tree))]
        return tuple(items) if isinstance(plain(tree), tuple) else items
    if kind is DictBox:
        return {key: opened(tree[key]) for key in tree}
    return tree


@contextmanager
def _level() -> Iterator[float]:
    _depth.value += 1
    try:
        yield -(0.5**_depth.value)
    finally:
        _depth.value -= 1


class Recording:
    """The graph of one evaluation, from chosen values to its outputs.

    Args:
        function: from boxes to a list of outputs, boxes or not.
        values: the arrays to differentiate; boxes of an outer recording among them.
    """

    def __init__(self, function: Callable[[list[Any]], Sequence[Any]], values: Sequence[Any]) -> None:
        self._roots = [VJPNode.new_root() for _ in values]
        with _level() as level:
            outputs = function([new_box(v, level, root) for v, root in zip(values, self._roots)])
            traced = [isbox(output) and output._trace == level for output in outputs]
        #: The outputs, without the boxes of this recording.
        self.outputs = [output._value if is_traced else output for output, is_traced in zip(outputs, traced)]
        self._places = [place for place, is_traced in enumerate(traced) if is_traced]
        # One node above all outputs, so that they are pulled back together.
        self._end = VJPNode.new_root()
        self._end.parents = [outputs[place]._node for place in self._places]

    def pull(self, cotangents: Sequence[Any]) -> list[Any]:
        """One cotangent per output → the gradient at each value; None where there is no influence."""
        outgrads: dict[Any, Any] = {self._end: (None, False)}
        roots = {id(root) for root in self._roots}
        gradients: dict[int, Any] = {}
        for node in toposort(self._end):
            outgrad = outgrads.pop(node)
            if id(node) in roots:
                gradients[id(node)] = outgrad[0]
                continue
            chosen = [cotangents[place] for place in self._places]
            ingrads = chosen if node is self._end else node.vjp(outgrad[0])
            for parent, ingrad in zip(node.parents, ingrads):
                outgrads[parent] = add_outgrads(outgrads.get(parent), ingrad)
        return [gradients.get(id(root)) for root in self._roots]
