"""The guests that a host is checked with: scenarios as bridges, built once and shared by all hosts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.bridge import Bridge
from gradbridge.errors import Unsupported
from gradbridge.primitive import Primitive
from gradbridge.protocol import ArraySpec
from gradbridge.testing.backend import BackendUnderTest
from gradbridge.testing.reference import Reference
from gradbridge.testing.scenario import Scenario
from gradbridge.testing.scenarios import SCENARIOS
from gradbridge.testing.subject import Subject


@dataclass(frozen=True)
class Built:
    """A scenario that programs call.

    Attributes:
        function: ``f(params, *inputs)``, or ``f(*inputs)`` where the scenario has no parameters.
        order: params in the function's order = params in the scenario's order [order].
        subject: the scenario as the kit for guests has it; None where there is no bridge.
        bridge: what the function is, or is made of.
    """

    function: Callable[..., Any]
    order: np.ndarray[Any, np.dtype[np.int_]]
    subject: Subject | None = None
    bridge: Bridge | None = None


class Guest(ABC):
    """Where the scenarios come from.

    Attributes:
        name: what reports call it.
    """

    name: str

    def __init__(self) -> None:
        self._built: dict[str, Built] = {}

    def built(self, scenario: str) -> Built:
        """The scenario of a name, the same one each time.

        Raises:
            NotOfferedError: the guest has it not.
        """
        if scenario not in self._built:
            self._built[scenario] = self.build(SCENARIOS[scenario])
        return self._built[scenario]

    @abstractmethod
    def build(self, scenario: Scenario) -> Built:
        """Make one, new."""


class BackendGuest(Guest):
    """A backend's scenarios, bridged as users do: for whichever host calls, in its precision.

    Args:
        under_test: the factories of the author of the backend.
    """

    def __init__(self, under_test: BackendUnderTest) -> None:
        super().__init__()
        self.under_test, self.name = under_test, under_test.name

    @property
    def is_paper(self) -> bool:
        """Whether it is the reference, on which the checks run that are about the host alone."""
        return isinstance(self.under_test, Reference)

    def build(self, scenario: Scenario) -> Built:
        subject = Subject(self.under_test, scenario)
        adapter = subject.adapt(subject.build(subject.initial()), None)
        first = subject.first_input
        try:
            adapter.output_spec(_specs(subject), subject.call(subject.point()).spec)
            outputs = None
        except Unsupported:
            outputs = _declared(
                subject
            )  # as its users say them, for programs that are traced before they run
        bridge = Bridge(
            adapter, first_input=first, follows=True, outputs=outputs, registry=self.under_test.registry
        )
        function = bridge if first else Primitive(getattr(self.under_test, scenario.name), bridge)
        return Built(function, subject.order, subject, bridge)


def pinned(built: Built, host: str) -> Callable[..., Any]:
    """The same function for one host alone: ``host=`` named."""
    assert built.bridge is not None
    adapter, options = built.bridge.made_with()
    bridge = Bridge(adapter, **{**options, "host": host})
    return Primitive(built.function, bridge) if isinstance(built.function, Primitive) else bridge


def _specs(subject: Subject) -> list[Any]:
    return [ArraySpec.of(x) for x in subject.point().inputs]


def _declared(subject: Subject) -> Callable[..., Any]:
    """``outputs=``: the shapes of the closed form, in the dtype of the first floating input."""

    def outputs(*inputs: Any) -> Any:
        zeros = [np.zeros(x.shape, x.dtype) for x in inputs]
        params = np.zeros(subject.scenario.size)
        value = subject.scenario.value(subject.by_name(params), zeros)
        return trees.mapped(lambda y: (np.shape(y), np.asarray(y).dtype), value)

    return outputs
