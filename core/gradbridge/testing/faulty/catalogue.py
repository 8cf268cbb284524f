"""The catalogue of faults: each maps a check to a backend that breaks its law."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

from gradbridge.protocol import Adapter, GuestOptions
from gradbridge.testing.paper import PaperModel, ReferenceAdapter
from gradbridge.testing.reference import Reference


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
    surroundings: tuple[tuple[str, Callable[[], AbstractContextManager[Any]]], ...] = ()

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
        return [(words, enter()) for words, enter in self._fault.surroundings]


#: The faults that each check must catch, the plainest first.
FAULTS: dict[str, list[Fault]] = {}


def core_with(target: str, replacement: Any) -> Callable[[], AbstractContextManager[Any]]:
    """A break in core: something of `gradbridge` replaced, e.g. ``"borders.outputs_to_host"``."""
    return lambda: mock.patch(f"gradbridge.{target}", replacement)


#: Core neither casts nor copies outputs.
HANDS_ON = core_with("borders.outputs_to_host", lambda leaves, *rest: (list(leaves), ()))

#: Core does not look at what an adapter returned.
CHECKS_NOTHING = core_with("execution.steps.check_results", lambda *args, **kwargs: None)


def breaks(
    check: str, scenario: str = "mlp", **options: Any
) -> Callable[[type[ReferenceAdapter]], type[ReferenceAdapter]]:
    """Enter an adapter in the catalogue; its docstring says what is wrong.

    Args:
        check: that must catch it.
        scenario: where it shows.
        **options: of the `Fault`.
    """

    def enter(adapter: type[ReferenceAdapter]) -> type[ReferenceAdapter]:
        fault = Fault(check, adapter.__doc__ or "", scenario, adapter, **options)
        FAULTS.setdefault(check, []).append(fault)
        return adapter

    return enter
