"""What works through a bridge, what does not and why, and what a fallback costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gradbridge.call_spec import CallSpec
from gradbridge.errors import DerivativeError
from gradbridge.execution.settings import BridgeSettings
from gradbridge.protocol import Adapter


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


def capabilities_of(
    adapter: Adapter, title: str, settings: BridgeSettings, latest: str, declares_outputs: bool = False
) -> Capabilities:
    """Ask an adapter what it can do.

    Args:
        adapter: the guest model.
        title: first line of the table.
        settings: of the bridge.
        latest: how its latest Jacobian was computed, "" before the first.
        declares_outputs: whether ``outputs=`` says the shapes of its outputs.
    """
    constants = settings.constants
    size, train = adapter.layout.size, settings.mode == "train"
    how = f"; {adapter.gradient_note}" if adapter.gradient_note else ""
    higher = _higher_order(adapter)
    rows = {
        "gradient wrt params": Capability(
            size > 0, f"{size} params{how}" if size else "the model has no parameters"
        ),
        "gradient wrt floating inputs": Capability(True, f"with the params in one backward{how}"),
        "gradient wrt integer inputs": Capability(False, "an index or a mask has no derivative; it raises"),
        **({"gradient wrt " + constants: Capability(False, "declared nondiff")} if constants else {}),
        "derivatives of derivatives": higher,
        "forward mode (JVP)": _forward_mode(adapter, higher, settings),
        **_jacobians(adapter, higher, train),
        "latest Jacobian": Capability(bool(latest), latest or "none yet"),
        "output shapes before the run": _shapes(adapter, declares_outputs),
        "complex inputs and outputs": Capability(
            adapter.traits.takes_complex,
            "gradients by the host's convention; params are real, and Jacobians are refused"
            if adapter.traits.takes_complex
            else "its backend takes no complex numbers; pass real and imaginary parts",
        ),
        **_audited(settings),
        "several threads": Capability(True, "any number of calls in flight"),
    }
    if train:
        rows["train mode"] = Capability(
            True, f"noise {settings.noise!r}; statistics reach you through f.model(params)"
        )
        rows["reuse of evaluations"] = Capability(False, "in train mode an evaluation is not just its result")
    else:
        rows["train mode"] = Capability(False, "the bridge was made with mode='eval'")
        note = "on: f.memory counts" if settings.memory is not None else "off: make the bridge with reuse=N"
        rows["reuse of evaluations"] = Capability(not adapter.stochastic, note)
    return Capabilities(title, rows)


def _audited(settings: BridgeSettings) -> dict[str, Capability]:
    """Whether the guest was looked at, and what was found."""
    audit = settings.audit
    if not audit.is_on:
        return {"audited": Capability(False, "audit='off'")}
    looked_at = not audit.awaits_call("float64") or not audit.awaits_call("float32")
    notes = "; ".join(audit.notes.values())
    return {
        "audited": Capability(
            looked_at, (notes or "nothing found") if looked_at else "at the first differentiated call"
        )
    }


def _shapes(adapter: Adapter, declared: bool) -> Capability:
    if declared:
        return Capability(True, "declared with outputs=")
    reason = adapter.refusal("output_spec")
    return Capability(not reason, reason or "by the guest, without computing: what compiling hosts ask for")


def _forward_mode(adapter: Adapter, higher: Capability, settings: BridgeSettings) -> Capability:
    if settings.audit.is_wrong(0, "pushforward") and higher:
        return Capability(
            True, "by the pullback of the pullback: the guest's own disagrees with its gradient here"
        )
    reason = adapter.refusal("pushforward")
    if not reason:
        rest = "; for what it refuses, the pullback of the pullback" if higher else ""
        return Capability(True, f"the guest's own, one forward{rest}{_met(adapter, 'pushforward')}")
    return Capability(
        higher.works,
        f"by the pullback of the pullback: about three gradients ({reason})" if higher else higher.note,
    )


def _jacobians(adapter: Adapter, higher: Capability, train: bool) -> dict[str, Capability]:
    """A row for each strategy; which one is taken depends on the shapes of a call."""
    draws = adapter.stochastic
    forward = not adapter.refusal("pushforward_many") and not draws
    rows = not adapter.refusal("row_jacobians") and not draws
    batched = not adapter.refusal("backward_many")
    apart = "where each row of the outputs depends on its own row of the inputs"
    if train:
        apart += ": declare it with strategy='rows'"
    return {
        "Jacobian, per-example": Capability(
            rows,
            f"{apart}; the cost of one row{_met(adapter, 'row_jacobians')}"
            if rows
            else adapter.refusal("row_jacobians") or "its random numbers would be others",
        ),
        "Jacobian, batched VJP": Capability(
            batched,
            f"all outputs in one backward, in chunks{_met(adapter, 'backward_many')}"
            if batched
            else adapter.refusal("backward_many"),
        ),
        "Jacobian, batched JVP": Capability(
            forward or (higher.works and batched),
            f"all numbers of the arguments in one forward{_met(adapter, 'pushforward_many')}"
            if forward
            else "by the pullback of the pullback"
            if higher.works and batched
            else f"{adapter.refusal('pushforward_many')}; the JVPs are looped",
        ),
        "Jacobian, loop": Capability(True, "one backward per output, in bounded memory"),
    }


def _met(adapter: Adapter, operation: str) -> str:
    """What the guest answered where it could not, the latest time."""
    reason = adapter.refusals_met.get(operation)
    return f"; refused for a call: {reason}" if reason else ""


def _higher_order(adapter: Adapter) -> Capability:
    reason = adapter.refusal("pullback")
    if not reason:
        try:
            adapter.pullback(CallSpec.of_arrays(1), tuple(range(len(adapter.layout) or 1)))
        except DerivativeError as error:
            reason = str(error)
    return Capability(not reason, reason or "computed by the guest, to any order it has")
