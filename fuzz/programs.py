"""Programs as data: a network, a bridge over it, and what is asked of the bridge, all drawn from one number."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fuzz.built import Guest
from fuzz.networks import Drawing, Network
from fuzz.surroundings import INPUTS, JOINED, PARAMS, REDUCED, Term

#: What is asked of a bridge within a program of autograd's, and how often.
WITHIN = {"value": 1, "gradient": 4, "hvp": 4, "jvp": 2, "hessian": 1, "jvp of gradient": 2, "third": 1}
#: What its own methods are asked.
METHODS = {
    "jacobian": 4,
    "rows' gradients": 2,
    "f.vjp": 2,
    "f.jvp": 2,
    "f.ggn": 2,
    "in flight": 2,
    "model": 1,
}
#: What is asked in train mode, where outputs are dropped.
DROPPING = {"dropped vjp": 2, "dropped hvp": 1, "dropped jvp": 1, "dropped again": 1}
STRATEGIES = ("auto", "auto", "rows", "vjp", "jvp", "loop")


@dataclass(frozen=True)
class Query:
    """One thing that is asked.

    Attributes:
        kind: a key of `WITHIN`, `METHODS` or `DROPPING`.
        seed: of the point and the directions.
        rows: of the inputs.
        wrt: ``"params"``, ``"inputs"``, ``"together"`` in one vector, or ``"apart"``.
        terms, joined: of the surrounding program.
        strategy: for a Jacobian.
    """

    kind: str
    seed: int
    rows: int
    wrt: str = "params"
    terms: tuple[Term, ...] = ()
    joined: str = "sum"
    strategy: str = "auto"


@dataclass(frozen=True)
class Program:
    """All of it.

    Attributes:
        number: what it was drawn from.
        guest, style: of the model.
        network: what it computes.
        model_dtype: of the model's parameters.
        host_dtype: of the params and inputs.
        options: of the bridge.
        as_tree: whether the params are handed over as a tree.
        by_name: whether the second input is.
        copied: whether a deep copy of the bridge is asked.
        frozen: layers whose parameters are not trained.
        queries: what is asked, in this order.
    """

    number: int
    guest: str
    style: str
    network: Network
    model_dtype: str
    host_dtype: str
    options: dict[str, Any] = field(default_factory=dict)
    as_tree: bool = False
    by_name: bool = False
    copied: bool = False
    frozen: frozenset[str] = frozenset()
    queries: tuple[Query, ...] = ()

    @property
    def precision(self) -> str:
        """The dtype that its results are as precise as."""
        asked = self.options.get("dtype")
        computed = self.model_dtype if asked == "model" else asked or self.host_dtype
        return "float32" if "float32" in (computed, self.host_dtype) else "float64"

    @property
    def constant_inputs(self) -> frozenset[int]:
        """Inputs that are declared nondiff, counted from 0."""
        return frozenset({1: 0, 2: 1, "second": 1}[one] for one in self.options.get("nondiff", ()))

    @property
    def moving_inputs(self) -> tuple[int, ...]:
        """Inputs that can be differentiated by, counted from 0."""
        floating = [0] if self.network.form != "tokens" else []
        floating += [1] if self.network.second == "array" else []
        return tuple(i for i in floating if i not in self.constant_inputs)


def drawn(number: int, name: str, guest: Guest) -> Program:
    """The program of a number.

    Args:
        number: not negative.
        name: of the guest.
        guest: what it has.
    """
    rng = np.random.default_rng([number, 10])
    dropout = name != "autograd" and rng.uniform() < 0.08
    style = str(rng.choice(guest.styles))
    dropout = dropout and style != "function"
    chunked = not dropout and rng.uniform() < 0.15
    network = Drawing(rng).network(number, rowwise=chunked, dropout=dropout)
    host = "float32" if rng.uniform() < 0.15 else "float64"
    options: dict[str, Any] = {}
    if rng.uniform() < 0.4:
        options["dtype"] = str(rng.choice(["model", "float32", "float64"]))
    if rng.uniform() < 0.25:
        options["audit"] = "off"
    if chunked:
        options["rows_per_chunk"] = int(rng.integers(1, 4))
    if dropout:
        options |= {"mode": "train", "seed": int(rng.integers(100))}
        options["noise"] = str(rng.choice(["frozen", "per_params", "per_call"]))
    elif rng.uniform() < 0.25:
        options["reuse"] = int(rng.integers(1, 4))
    if rng.uniform() < 0.2:
        options["check_finite"] = True
    if rng.uniform() < 0.15:
        choices: list[Any] = [1, *([2, "second"] if network.second else [])]
        options["nondiff"] = (choices[int(rng.integers(len(choices)))],)
    frozen = frozenset[str]()
    if name == "torch" and style != "function" and rng.uniform() < 0.15:
        trainable = [one.name for one in network.every_layer if one.shapes(network.length)]
        frozen = frozenset(trainable[1:2])
    program = Program(
        number,
        name,
        style,
        network,
        str(rng.choice(["float32", "float64"])),
        host,
        options,
        as_tree=bool(rng.uniform() < 0.25),
        by_name=bool(network.second) and bool(rng.uniform() < 0.25),
        copied=bool(rng.uniform() < 0.05),
        frozen=frozen,
    )
    count = int(rng.integers(*guest.queries, endpoint=True))
    queries = tuple(_query(rng, program, guest) for _ in range(count))
    return replace(program, queries=queries)


def _query(rng: np.random.Generator, program: Program, guest: Guest) -> Query:
    network = program.network
    kinds = dict(DROPPING) if network.dropout else WITHIN | METHODS
    if network.output not in ("column", "vector"):
        kinds.pop("rows' gradients", None)
    if program.guest != "torch" or program.style == "function":
        kinds.pop("model", None)
    if program.precision == "float32":
        kinds.pop("third", None)
    if program.options.get("noise") == "per_call":
        kinds = {"dropped vjp": 1}
    names, odds = list(kinds), np.array(list(kinds.values()), float)
    kind = names[int(rng.choice(len(names), p=odds / odds.sum()))]
    wrts = ["params", "params"]
    if program.moving_inputs:
        wrts += ["inputs", "together", "apart"]
    terms = tuple(
        Term(
            str(rng.choice(list(PARAMS))),
            str(rng.choice(list(INPUTS))),
            bool(network.maps_to_itself and rng.uniform() < 0.4),
            str(rng.choice(list(REDUCED))),
        )
        for _ in range(int(rng.choice([1, 1, 2, 3])))
    )
    strategies = [one for one in STRATEGIES if one != "rows" or network.rows_are_independent]
    return Query(
        kind,
        int(rng.integers(1 << 30)),
        int(rng.integers(1, 6)),
        "params" if kind == "rows' gradients" else str(rng.choice(wrts)),
        terms,
        str(rng.choice(list(JOINED))),
        str(rng.choice(strategies)),
    )
