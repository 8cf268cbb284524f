"""Faults of calls in flight, and of how often the guest runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

from gradbridge.layout import Array
from gradbridge.lifting import Node, Run
from gradbridge.testing.hosts.faulty.catalogue import breaks
from gradbridge.testing.hosts.paper.arrays import PaperArray, Step
from gradbridge.testing.hosts.paper.host import Lifted
from gradbridge.testing.hosts.paper.under_test import PaperHostUnderTest
from gradbridge.testing.hosts.under_test import Function


@breaks("host_in_flight")
class _LastOfItsNode(Lifted):
    """Keeps what was recorded with the node: the last call of it wins."""

    _latest: ClassVar[dict[int, Run]] = {}

    def run(self, operands: Sequence[Array]) -> Sequence[Array]:
        outputs = super().run(operands)
        self._latest[id(self.node)] = self.recorded
        return outputs

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        self.recorded = self._latest[id(self.node)]
        return super().pull(step, cotangents)


@breaks("host_two_calls_in_one_program")
class _OncePerProgram(Lifted):
    """Pulls a node back once; another call of it in the same program is taken for the same one."""

    _pulled: ClassVar[set[int]] = set()

    def run(self, operands: Sequence[Array]) -> Sequence[Array]:
        self._pulled.discard(id(self.node))
        return super().run(operands)

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        if id(self.node) in self._pulled:
            return [None] * len(step.operands)
        self._pulled.add(id(self.node))
        return super().pull(step, cotangents)


@breaks("host_threads")
class _OneSlot(Lifted):
    """Hands what was recorded from one step to the next in a global variable."""

    _slot: ClassVar[list[Any]] = [None]

    def run(self, operands: Sequence[Array]) -> Sequence[Array]:
        outputs = super().run(operands)
        self._slot[0] = (self.recorded, outputs)
        time.sleep(1e-3)  # another thread comes in between
        found: tuple[Run, Sequence[Array]] = self._slot[0]
        self.recorded, outputs = found
        return outputs


@breaks("host_changed_in_place")
class _ReadsLate(Lifted):
    """Records when it is pulled back, at what the arguments hold by then."""

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        self.recorded = self.node.evaluate([x.value for x in step.operands], self.wrt, self.parent)
        return super().pull(step, cotangents)


@breaks("host_fresh")
class _Remembers(Lifted):
    """Remembers the first call of a node by the shapes of its arguments."""

    _first: ClassVar[dict[Any, Run]] = {}

    def run(self, operands: Sequence[Array]) -> Sequence[Array]:
        super().run(operands)
        key = self.node.call.adapter, self.node.parent is None, tuple(x.shape for x in operands)
        first = self._first.setdefault(key, self.recorded)
        self.recorded = first
        return [*first.outputs]


@breaks("host_first_call")
@breaks("host_first_call_compiled")
class _LooksFirst(Lifted):
    """Looks at a model in its first call, outside of what is recorded: its gradient is zero, once."""

    _looked_at: ClassVar[set[int]] = set()

    def run(self, operands: Sequence[Array]) -> Sequence[Array]:
        model = id(self.node.call.root.adapter)
        self._is_first = model not in self._looked_at
        self._looked_at.add(model)
        return super().run(operands)

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        return [None] * len(step.operands) if self._is_first else super().pull(step, cotangents)


@breaks("host_one_forward")
class _RunsAgain(Lifted):
    """Runs the guest again for its gradient."""

    def run(self, operands: Sequence[Array]) -> Sequence[Array]:
        self._own = [x.copy() for x in operands]
        return super().run(operands)

    def pull(self, step: Step, cotangents: Sequence[PaperArray]) -> Sequence[PaperArray | None]:
        self.recorded = self.node.evaluate(self._own, self.wrt, self.parent)
        return super().pull(step, cotangents)


@breaks("host_one_forward")
class _OneBackwardEach(Lifted):
    """Makes a backward of the guest for each argument."""

    def gradient(
        self, operands: Sequence[PaperArray], cotangents: Sequence[PaperArray]
    ) -> Sequence[PaperArray]:
        if any(x.is_followed for x in (*operands, *cotangents)):
            return super().gradient(operands, cotangents)
        values = [c.value for c in cotangents]
        return [PaperArray(self.recorded.pull(values, (i,))[0]) for i in self.wrt]


@breaks("host_one_forward_of_second_order")
class _StartsAnew(Lifted):
    """Forgets what was recorded when a gradient is differentiated: its node runs the model again."""

    def __init__(self, node: Node, wrt: tuple[int, ...], parent: Run | None = None) -> None:
        super().__init__(node, wrt)


@breaks("host_one_forward_compiled")
class _TracesWithNumbers(PaperHostUnderTest):
    """Its compiler finds out the shapes of a program by running it, each time."""

    def compiled(self, function: Function) -> Function:
        def compiled(*arrays: Any) -> tuple[Any, ...]:
            function(*arrays)
            return function(*arrays)

        return compiled
