"""What the calls of one bridge have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gradbridge.declarations import Observers
from gradbridge.derivatives.jvp_check import JVPCheck
from gradbridge.execution.reuse import Memory
from gradbridge.layout import Array


@dataclass(frozen=True)
class BridgeSettings:
    """What the calls of one bridge have in common.

    Attributes:
        observers: who is told of steps.
        draw_noise: params ↦ seed of a call's noise; None leaves it as the spec has it.
        checks_finite: whether params with NaN or infinity are refused.
        memory: of evaluations, with ``reuse=``; None without.
        jvp_check: what is known of the guest's forward mode; None looks at none.
        mode, noise: as the bridge was made with.
        constants: the arguments that are declared non-differentiable, in words.
        is_plain: whether there is neither memory, nor noise to draw, nor a check: worked out here.
    """

    observers: Observers
    draw_noise: Callable[[Array], int] | None = None
    checks_finite: bool = False
    memory: Memory | None = None
    jvp_check: JVPCheck | None = None
    mode: str = "eval"
    noise: str = "frozen"
    constants: str = ""
    is_plain: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        is_plain = self.memory is None and self.draw_noise is None and not self.checks_finite
        object.__setattr__(self, "is_plain", is_plain)
