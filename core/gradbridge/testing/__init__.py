'''The conformance kit: is a backend right? For everyone who writes one.

The laws of `gradbridge.protocol.Adapter` as checks, over scenarios whose values and gradients are
written out by hand. The kit needs no framework and no autodiff system; you bring a class that
builds the scenarios in your framework, as many of them as it can. Put it into a module
``conformance`` beside your guest half, under the name ``UnderTest``::

    # my_package/conformance.py
    import myframework as mf
    from gradbridge.testing import BackendUnderTest, Native

    class UnderTest(BackendUnderTest):
        """The scenarios in myframework."""

        backend = "mine"                     # its name in the registry
        dtypes = ("float64", "float32")      # what dtype= accepts, the most precise first
        reasons = {"dropout": "myframework has no random numbers"}

        def energy(self):                    # begin here: a function without parameters
            return lambda x, y: (x**2 * y).sum()

        def mlp(self, weight1, bias1, weight2, bias2):       # NumPy float64 arrays come in
            first, second = mf.Dense(3, 4), mf.Dense(4, 2)
            first.weight, first.bias = mf.tensor(weight1), mf.tensor(bias1)
            second.weight, second.bias = mf.tensor(weight2), mf.tensor(bias2)
            return mf.Sequential(first, mf.Tanh(), second)   # your native model goes out

        def tied(self, weight):              # or a function of (parameter tree, *inputs)
            return Native(lambda p, x: mf.tanh(x @ p["w"]) @ p["w"], params={"w": weight})

`BackendUnderTest` lists all of them and says what each computes. It does not matter in which order
or orientation your framework stores the parameters. What you leave out is reported as skipped,
with your reason from `reasons`; it never counts as passed. Two optional methods, `state` and
`surroundings`, let the kit see that the user's model and your framework's global state stay as
they were.

Then, three ways to run it. On the terminal, with a table and an exit code::

    gradbridge check mine
    gradbridge check mine --only gradient_is_right --only second_order

In pytest, one test per law and scenario, ``test_any_order[mlp]``::

    # tests/test_conformance.py
    from gradbridge.testing import ConformanceSuite

    class TestMine(ConformanceSuite):
        backend = "mine"

And as a function, while you work on one thing::

    from gradbridge.testing import run
    from my_package.conformance import UnderTest

    print(run(UnderTest(), checks=["gradient_is_right"], scenarios=["energy"]))

A failure says which law broke, what was expected, what came and where::

    ✗ params_in_flight[mlp], law 3: f(θ) + f(2θ): two forwards at different params are each pulled
      back at their own.
        gradient of params at θ, with f(2θ) in flight: expected 0.2716, got 0.0194 at [3]; …

Where the backend raised, its traceback follows, with files and lines.

A backend whose `pullback` raises HigherOrderError is honest: the checks of higher orders are
skipped and say so. One that returns zeros there fails them.

The kit is tested itself: `gradbridge.testing.faulty` has, for every check, an adapter that breaks
its law and is caught, and `gradbridge.testing.reference` one that keeps them all.
'''

from typing import TYPE_CHECKING, Any

from gradbridge.testing.backend import BackendUnderTest, Native, NotOfferedError
from gradbridge.testing.checks import CHECKS, Check
from gradbridge.testing.commands import check_command, matrix_command
from gradbridge.testing.laws import LAWS
from gradbridge.testing.outside import Outside
from gradbridge.testing.points import ScenarioPoint
from gradbridge.testing.report import Bench, Report, find, run
from gradbridge.testing.rows import Row
from gradbridge.testing.scenario import Scenario
from gradbridge.testing.scenarios import SCENARIOS
from gradbridge.testing.subject import Flight, Subject

if TYPE_CHECKING:
    from gradbridge.testing.suite import ConformanceSuite

__all__ = [
    "CHECKS",
    "LAWS",
    "SCENARIOS",
    "BackendUnderTest",
    "Bench",
    "Check",
    "ConformanceSuite",
    "Flight",
    "Native",
    "NotOfferedError",
    "Outside",
    "Report",
    "Row",
    "Scenario",
    "ScenarioPoint",
    "Subject",
    "check_command",
    "find",
    "matrix_command",
    "run",
]


def __getattr__(name: str) -> Any:
    # The one part that needs pytest, which those who run `gradbridge check` may not have.
    if name == "ConformanceSuite":
        from gradbridge.testing.suite import ConformanceSuite

        return ConformanceSuite
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
