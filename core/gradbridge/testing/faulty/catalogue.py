"""The catalogue of faults: each maps a check to a backend that breaks its law."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from gradbridge.protocol import Adapter, GuestOptions
from gradbridge.testing.reference import PaperModel, Reference, ReferenceAdapter


@dataclass(frozen=True)
class Fault:
    """A broken law.

    Attributes:
        check: name of the check that must catch it.
        story: what is wrong.
        scenario: where it shows.
        adapter: the faulty adapter's class.
        core: a break in core, for laws that core keeps for every adapter.
        surroundings: what the faulty backend depends on.
    """

    check: str
    story: str
    scenario: str
    adapter: type[ReferenceAdapter]
    core: Callable[[], AbstractContextManager[Any]] = nullcontext
    surroundings: tuple[tuple[str, AbstractContextManager[Any]], ...] = ()

    def backend(self) -> Reference:
        """The faulty backend, new."""
        return _Faulty(self)


class _Faulty(Reference):
    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self._fault = fault

    def adapt(self, model: PaperModel, options: GuestOptions) -> Adapter:
        return self._fault.adapter(model, options)

    def surroundings(self) -> Any:
        return self._fault.surroundings


FAULTS: dict[str, Fault] = {}


def breaks(
    check: str, scenario: str = "mlp", **options: Any
) -> Callable[[type[ReferenceAdapter]], type[ReferenceAdapter]]:
    def enter(adapter: type[ReferenceAdapter]) -> type[ReferenceAdapter]:
        assert check not in FAULTS, f"two faults for {check}"
        FAULTS[check] = Fault(check, adapter.__doc__ or "", scenario, adapter, **options)
        return adapter

    return enter
