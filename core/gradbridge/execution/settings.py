"""What the calls of one bridge have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from gradbridge.audit.findings import Audit
from gradbridge.declarations import Observers, Step
from gradbridge.execution.precision import Precisions
from gradbridge.execution.programs import LRUCache
from gradbridge.execution.reuse import Memory
from gradbridge.layout import Array


class _Nobody:
    """Observers of calls that are none of the user's program."""

    observed = False

    def notify(self, step: Step) -> None:
        """Nobody is told."""


@dataclass
class BridgeSettings:
    """What the calls of one bridge have in common.

    Attributes:
        observers: who is told of steps.
        draw_noise: params ↦ seed of a call's noise; None leaves it as the spec has it.
        checks_finite: whether params with NaN or infinity are refused.
        memory: of evaluations, with ``reuse=``; None without.
        audit: what is known of the guest.
        precisions: the model in the dtypes of its hosts.
        follows: whether it is to compute in the dtype of the params.
        mode, noise: as the bridge was made with.
        constants: the arguments that are declared non-differentiable, in words.
        outputs: what the user said of the outputs' shapes.
        nodes: calls as hosts lift them, by what is static about them (`gradbridge.lifting.node_of`).
        compiled: those of them that programs were compiled with, which may run as long as the bridge lives.
        is_plain: whether there is neither memory, nor noise to draw, nor a check, nor anything to look at.
        gives_plain_values: the same of calls that are not differentiated, at which there is less to look at.
    """

    observers: Observers
    draw_noise: Callable[[Array], int] | None = None
    checks_finite: bool = False
    memory: Memory | None = None
    audit: Audit = field(default_factory=partial(Audit, is_on=False))
    precisions: Precisions | None = None
    follows: bool = False
    mode: str = "eval"
    noise: str = "frozen"
    constants: str = ""
    outputs: Any = None
    nodes: LRUCache[Any] = field(default_factory=LRUCache, init=False)
    compiled: list[Any] = field(default_factory=list, init=False)
    is_plain: bool = field(init=False)
    gives_plain_values: bool = field(init=False)

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Work out anew what is plain, and what `quiet` is, when something was found out."""
        is_simple = self.memory is None and self.draw_noise is None and not self.checks_finite
        self.is_plain = is_simple and not self.audit.awaits_call("float64")
        self.gives_plain_values = is_simple and not self.audit.awaits_call("float64", False)
        for derived in ("quiet", "drawn"):
            self.__dict__.pop(derived, None)

    @cached_property
    def drawn(self) -> BridgeSettings:
        """For calls whose noise is drawn already."""
        return replace(self, draw_noise=None)

    @cached_property
    def quiet(self) -> BridgeSettings:
        """For evaluations that are none of the program's: nobody observes, remembers or looks at them."""
        audit = Audit(is_on=False, precision=self.audit.precision)
        return replace(self, observers=_Nobody(), memory=None, audit=audit, checks_finite=False)
