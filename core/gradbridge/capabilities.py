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


def capabilities_of(adapter: Adapter, title: str, mode: str, noise: str, reuse: bool) -> Capabilities:
    """Ask an adapter what it can do.

    Args:
        adapter: the guest model.
        title: first line of the table.
        mode, noise: of the bridge.
        reuse: whether the bridge remembers evaluations.
    """
    size = adapter.layout.size
    higher = _higher_order(adapter)
    twice = "by the pullback of the pullback: about three gradients" if higher else higher.note
    rows = {
        "gradient wrt params": Capability(
            size > 0, f"{size} params" if size else "the model has no parameters"
        ),
        "gradient wrt floating inputs": Capability(True, "with the params in one backward"),
        "gradient wrt integer inputs": Capability(False, "an index or a mask has no derivative; it raises"),
        "derivatives of derivatives": higher,
        "forward mode (JVP)": Capability(higher.works, twice),
        "Jacobians": Capability(
            True,
            "by structure, in bounded memory; rows apart only if declared"
            if mode == "train"
            else "by structure, in bounded memory; gradbridge.trace() shows the strategy",
        ),
        "complex numbers": Capability(
            False, "frameworks differ in the sign of the imaginary part; they are refused"
        ),
        "several threads": Capability(True, "any number of calls in flight"),
    }
    if mode == "train":
        rows["train mode"] = Capability(
            True, f"noise {noise!r}; statistics reach you through f.model(params)"
        )
        rows["reuse of evaluations"] = Capability(False, "in train mode an evaluation is not just its result")
    else:
        rows["train mode"] = Capability(False, "the bridge was made with mode='eval'")
        note = "on: f.memory counts" if reuse else "off: make the bridge with reuse=N"
        rows["reuse of evaluations"] = Capability(not adapter.stochastic, note)
    return Capabilities(title, rows)


def _higher_order(adapter: Adapter) -> Capability:
    try:
        adapter.pullback(Signature.flat(1), (0,) if adapter.layout.size else (1,))
    except DerivativeError as error:
        return Capability(False, str(error))
    return Capability(True, "computed by the guest, to any order it has")
