"""`LiftingHost`: what hosts have in common that carry nothing but arrays of their own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from gradbridge.errors import GradbridgeError, GuestError, InputError, OutputError
from gradbridge.execution.evaluation import Call
from gradbridge.host import Host, Reading
from gradbridge.layout import ParameterLayout
from gradbridge.lifting.node import Node, node_of
from gradbridge.protocol import ArraySpec


class LiftingHost(Host):
    """A host that lifts nodes: functions of its own arrays, which may be traced before they run."""

    #: Whether the arrays of a call stay as they are as long as what it recorded lives: they cannot be written to, they
    #: are copies made for the call, or a write is noticed before the next pull. Then guests need not copy them.
    lends: ClassVar[bool] = False

    @abstractmethod
    def owns(self, value: Any) -> bool:
        """Whether a value is an array of this system, traced or not."""

    @abstractmethod
    def spec(self, array: Any) -> ArraySpec:
        """Shape, and dtype as NumPy has it, of one of its arrays; a size that is not known yet is None."""

    @abstractmethod
    def lift(self, node: Node, operands: Sequence[Any]) -> Any:
        """Make a call, differentiably.

        Args:
            node: to run.
            operands: arrays of this system.

        Returns:
            The outputs assembled as the model returned them.
        """

    def inline(self, call: Call, native: Callable[[Sequence[Any]], Any], leaves: Sequence[Any]) -> Any:
        """Make a call of a guest of this same system, as a part of the program that calls.

        Only asked of a host whose name a guest's `Framework.host` is.

        Args:
            call: to make.
            native: what `Adapter.inlined` gave for it.
            leaves: what that takes, arrays of this system.

        Returns:
            The outputs as the model returned them, floating ones in the dtype of the call; NotImplemented where it is no
            part of a program, as it turns out: it is lifted then.
        """
        raise NotImplementedError(
            f"{call.adapter.label} is a part of programs of {self.name}, as Framework.host says, and the host half of "
            f"{self.name} has no inline()"
        )

    def inlines(self, call: Call, operands: Sequence[Any], constants: dict[int, Any]) -> bool:
        """Whether a guest of this same system is to be called as a part of the program, or as any other.

        Args:
            call: to make.
            operands: its arrays of this system.
            constants: {argument: what is none}.
        """
        return not call.settings.checks_finite and call.settings.draw_noise is None

    def cut(self, vector: Any, layout: ParameterLayout) -> Sequence[Any]:
        """The flat vector of all weights → the weights, differentiably."""
        return layout.cut(vector)

    def shortcut(
        self, call: Call, params: Any, inputs: tuple[Any, ...]
    ) -> Callable[[Any, tuple[Any, ...]], Any] | None:
        """A quicker way for calls like one that was made; None where there is none, as here.

        Args:
            call: that was made, without constants.
            params, inputs: as the user gave them.

        Returns:
            (params of the same class, inputs) ↦ what the call returns; NotImplemented where it is not like that one.
        """
        return None

    def read(self, arguments: list[Any]) -> Reading:
        arguments[:] = [
            self.array(x, False) if isinstance(x, np.ndarray) and x.dtype.kind in "fiubc" else x
            for x in arguments
        ]
        values = [self.spec(x) if self.owns(x) else x for x in arguments]
        return Reading(values, tuple(i for i, x in enumerate(arguments) if self.owns(x)))

    def apply(self, call: Call, arguments: Sequence[Any], reading: Reading) -> Any:
        try:
            return self._made(call, arguments, reading.values)
        except (GuestError, InputError, OutputError) as error:
            precisions = call.settings.precisions
            own = None if precisions is None else precisions.fall_back(call.dtype, call.adapter)
            if precisions is None or own is None:
                raise
            try:
                made = self._made(call.by(own), arguments, reading.values)
            except GradbridgeError:
                raise error from error.__cause__  # it is no matter of precision
            precisions.settle(call.dtype, str(error))
            return made

    def _made(self, call: Call, arguments: Sequence[Any], values: Sequence[Any]) -> Any:
        operands, constants = [], {}
        for index, (own, value) in enumerate(zip(arguments, values)):
            if self.owns(own):
                operands.append(own)
            elif type(value) is np.ndarray:
                operands.append(self.array(value, False))
            else:
                constants[index] = value
        first = call.first_input
        native = None
        if self.inlines(call, operands, constants):
            native = call.adapter.inlined(self.name, call.spec, {i - first: x for i, x in constants.items()})
        if native is not None:
            leaves: Sequence[Any] = operands
            if call.arguments.vectors[:1] == (True,) and not call.spec.packed:
                leaves = [*self.cut(operands[0], call.adapter.layout), *operands[1:]]
            refusal = None
            try:
                made = self.inline(call, native, leaves)
            except (GuestError, InputError, OutputError) as error:
                if error.__cause__ is None:
                    raise  # our own word
                # A derivative that its own system refuses in a program may be had of a call from outside.
                made, refusal = NotImplemented, error
            if made is not NotImplemented:
                return made
            if refusal is not None:
                try:
                    return self.lift(node_of(call, constants, self.lends), operands)
                except GradbridgeError:
                    raise refusal from refusal.__cause__
        return self.lift(node_of(call, constants, self.lends), operands)
