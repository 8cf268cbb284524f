"""What works through a bridge, what does not and why, and what a fallback costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gradbridge.errors import DerivativeError
from gradbridge.protocol import Adapter, Signature


@dataclass(frozen=True)
class Capability:
    """One thing that a bridge can do or not.

    Attributes:
        works: whether it does.
        note: why not, or what it costs.
    """

    works: bool
    note: str = ""

    def __bool__(self) -> bool:
        return self.works


class Capabilities(Mapping[str, Capability]):
    """{what: Capability} of one bridge; prints as a table."""

    def __init__(self, title: str, rows: dict[str, Capability]) -> None:
        self._title, self._rows = title, rows

    def __getitem__(self, what: str) -> Capability:
        return self._rows[what]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __str__(self) -> str:
        width = max(map(len, self._rows))
        lines = [
            f"{what:<{width}}  {'yes' if row.works else 'no ':<3}  {row.note}".rstrip()
            for what, row in self._rows.items()
        ]
        return "\n".join([self._title, *lines])

    __repr__ = __str__


@dataclass(frozen=True)
class Told:
    """What a bridge tells of itself.

    Attributes:
        mode: ``"eval"`` or ``"train"``.
        noise: kind of noise in train mode.
        remembers: whether it reuses evaluations.
        latest: how its latest Jacobian was computed, "" before the first.
        held: the arguments that are declared non-differentiable.
        refused: whether the guest's forward mode was found to disagree with its reverse mode.
    """

    mode: str = "eval"
    noise: str = "frozen"
    remembers: bool = False
    latest: str = ""
    held: str = ""
    refused: bool = False


def capabilities_of(adapter: Adapter, title: str, told: Told) -> Capabilities:
    """Ask an adapter what it can do.

    Args:
        adapter: the guest model.
        title: first line of the table.
        told: of the bridge.
    """
    size, train = adapter.layout.size, told.mode == "train"
    how = f"; {adapter.gradient_note}" if adapter.gradient_note else ""
    higher = _higher_order(adapter)
    rows = {
        "gradient wrt params": Capability(
            size > 0, f"{size} params{how}" if size else "the model has no parameters"
        ),
        "gradient wrt floating inputs": Capability(True, f"with the params in one backward{how}"),
        "gradient wrt integer inputs": Capability(False, "an index or a mask has no derivative; it raises"),
        **({"gradient wrt " + told.held: Capability(False, "declared nondiff")} if told.held else {}),
        "derivatives of derivatives": higher,
        "forward mode (JVP)": _forward_mode(adapter, higher, told.refused),
        **_jacobians(adapter, higher, train),
        "latest Jacobian": Capability(bool(told.latest), told.latest or "none yet"),
        "complex inputs and outputs": Capability(
            adapter.takes_complex,
            "gradients by the host's convention; params are real, and Jacobians are refused"
            if adapter.takes_complex
            else "its backend takes no complex numbers; pass real and imaginary parts",
        ),
        "several threads": Capability(True, "any number of calls in flight"),
    }
    if train:
        rows["train mode"] = Capability(
            True, f"noise {told.noise!r}; statistics reach you through f.model(params)"
        )
        rows["reuse of evaluations"] = Capability(False, "in train mode an evaluation is not just its result")
    else:
        rows["train mode"] = Capability(False, "the bridge was made with mode='eval'")
        note = "on: f.memory counts" if told.remembers else "off: make the bridge with reuse=N"
        rows["reuse of evaluations"] = Capability(not adapter.stochastic, note)
    return Capabilities(title, rows)


def _forward_mode(adapter: Adapter, higher: Capability, refused: bool) -> Capability:
    if refused and higher:
        return Capability(
            True, "by the pullback of the pullback: the guest's own disagrees with its gradient here"
        )
    if _offers(adapter, "pushforward") and getattr(adapter, "inner", adapter).has_forward_mode:
        rest = "; for what it refuses, the pullback of the pullback" if higher else ""
        return Capability(True, f"the guest's own, one forward{rest}")
    return Capability(
        higher.works, "by the pullback of the pullback: about three gradients" if higher else higher.note
    )


def _jacobians(adapter: Adapter, higher: Capability, train: bool) -> dict[str, Capability]:
    """A row for each strategy; which one is taken depends on the shapes of a call."""
    draws = adapter.stochastic
    forward = _offers(adapter, "pushforward_many") and not draws
    rows = _offers(adapter, "row_jacobians") and not draws
    batched = _offers(adapter, "backward_many")
    apart = "where each row of the outputs depends on its own row of the inputs"
    if train:
        apart += ": declare it with strategy='rows'"
    return {
        "Jacobian, rows apart": Capability(
            rows, f"{apart}; the cost of one row" if rows else "its backend does not compute rows apart"
        ),
        "Jacobian, batched VJP": Capability(
            batched,
            "all outputs in one backward, in chunks"
            if batched
            else "its backend pulls one cotangent at a time",
        ),
        "Jacobian, batched JVP": Capability(
            forward or (higher.works and batched),
            "all numbers of the arguments in one forward"
            if forward
            else "by the pullback of the pullback"
            if higher.works and batched
            else "its backend pushes one tangent at a time; the JVPs are looped",
        ),
        "Jacobian, loop": Capability(True, "one backward per output, in bounded memory"),
    }


def _offers(adapter: Adapter, method: str) -> bool:
    """Whether an adapter, or the one that it hands chunks to, has a computation of its own for it."""
    kind = type(getattr(adapter, "inner", adapter))
    return getattr(kind, method) is not getattr(Adapter, method)


def _higher_order(adapter: Adapter) -> Capability:
    try:
        adapter.pullback(Signature.flat(1), (0,) if adapter.layout.size else (1,))
    except DerivativeError as error:
        return Capability(False, str(error))
    refusal = getattr(adapter, "inner", adapter).second_order_refusal
    if refusal:
        return Capability(False, refusal)
    return Capability(True, "computed by the guest, to any order it has")
