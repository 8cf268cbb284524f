"""What passes between this process and its workers: plain records."""

from __future__ import annotations

from typing import Any, NamedTuple

from gradbridge.call_spec import ArgumentNames, CallSpec
from gradbridge.layout import ParameterLayout
from gradbridge.traits import Traits


class Pullback(NamedTuple):
    """A step from an adapter to its pullback.

    Attributes:
        spec: of the call.
        wrt: the arguments whose gradients it returns.
        key: of the evaluation that it starts from; 0 where it is computed anew.
    """

    spec: CallSpec
    wrt: tuple[int, ...]
    key: int = 0


class InDtype(NamedTuple):
    """A step to the model in another dtype."""

    name: str


class Fresh(NamedTuple):
    """A step to the model as if it had never been called; `number` tells one such copy from another."""

    number: int


#: How an adapter is made from the model: what is sent is this recipe, never the adapter.
Path = tuple[Pullback | InDtype | Fresh, ...]


class Tally(NamedTuple):
    """What a worker has done; goes on over its restarts.

    Attributes:
        boot: of its process.
        rows, forwards, backwards: computed.
        seconds: of computing.
        restarts: how often Ray started it again.
        kept: evaluations whose residuals it holds.
        node, pid: where it is.
        is_ready: whether it has the model.
    """

    boot: int = 0
    rows: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    restarts: int = 0
    kept: int = 0
    node: str = ""
    pid: int = 0
    is_ready: bool = False


class Order(NamedTuple):
    """What a worker is asked to do with one piece of a call.

    Attributes:
        what: name of a method of `Shard`.
        path: to the adapter.
        spec: of the call.
        wrt: arguments.
        key: of the evaluation, under which residuals are kept; 0 keeps none.
        piece: which piece of it this is.
        rows: that the piece has.
        slices: for each array that comes along, which of its rows are meant; None for all.
        more: what only this order needs.
    """

    what: str
    path: Path
    spec: CallSpec | None = None
    wrt: tuple[int, ...] = ()
    key: int = 0
    piece: int = 0
    rows: int = 0
    slices: tuple[slice | None, ...] = ()
    more: Any = None


class Letter(NamedTuple):
    """An order, and what a worker is told by the way.

    Attributes:
        order: what to do.
        drops: keys of evaluations that nobody holds any more.
        mends: (method, path) that were asked of the model's adapters since they were made.
        proof: a reference to a `Proof`, in a tuple so that Ray does not look it up each time; empty before there is one.
        before: what this worker had done, for one that was restarted.
    """

    order: Order
    drops: tuple[int, ...]
    mends: tuple[tuple[str, Path], ...]
    proof: tuple[Any, ...]
    before: Tally


class Failure(NamedTuple):
    """What was raised in a worker.

    Attributes:
        kind: its class, one of ours.
        text: its message.
        trace: the traceback there.
    """

    kind: type[Exception]
    text: str
    trace: str


class Missing(NamedTuple):
    """The residuals are not there: the worker was restarted since."""


class Reply(NamedTuple):
    """What comes back.

    Attributes:
        value: the result, a `Failure` or `Missing`.
        tally: of the worker.
    """

    value: Any
    tally: Tally


class Proof(NamedTuple):
    """A small call and its outputs, by which a worker that was restarted shows that it has the same model.

    Attributes:
        path: to the adapter.
        spec: of the call.
        params, inputs: its arguments, or references to them.
        outputs: leaves.
    """

    path: Path
    spec: CallSpec
    params: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


class Facts(NamedTuple):
    """What there is to know of an adapter before it is called.

    Attributes:
        is_parent: whether the last step of its path leads to the same adapter.
        refusals: {optional operation: why it is not offered, or ""}.
    """

    label: str
    layout: ParameterLayout
    traits: Traits
    argument_names: ArgumentNames
    gradient_note: str
    stochastic: bool
    results_are_typed: bool
    refusals: dict[str, str]
    is_parent: bool = False
