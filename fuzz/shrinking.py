"""Makes a program that fails smaller, as long as it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from fuzz.programs import Program
from fuzz.surroundings import Term

_PLAIN = Term("as they are", "as they are", False, "weighted")


def shrunk(program: Program, fails: Callable[[Program], bool], tries: int = 60) -> Program:
    """A smaller program that fails, too.

    Args:
        program: one that fails.
        fails: whether another one does.
        tries: how many are tried at most.
    """
    goes_on = True
    while goes_on and tries > 0:
        goes_on = False
        for smaller in _smaller(program):
            tries -= 1
            if fails(smaller):
                program, goes_on = smaller, True
                break
            if tries <= 0:
                break
    return program


def _smaller(program: Program) -> Iterator[Program]:
    queries = program.queries
    if len(queries) > 1:
        yield replace(program, queries=queries[: len(queries) // 2])
        yield replace(program, queries=queries[len(queries) // 2 :])
        for i in range(len(queries)):
            yield replace(program, queries=queries[:i] + queries[i + 1 :])
    for name in program.options:
        if name not in ("mode", "dtype"):
            yield replace(program, options={k: v for k, v in program.options.items() if k != name})
    if program.copied or program.as_tree or program.by_name or program.frozen:
        yield replace(program, copied=False, as_tree=False, by_name=False, frozen=frozenset())
    for i, query in enumerate(queries):
        simpler = []
        if len(query.terms) > 1:
            simpler += [replace(query, terms=query.terms[:1]), replace(query, terms=query.terms[1:])]
        if query.rows > 1:
            simpler.append(replace(query, rows=1))
        if query.wrt != "params":
            simpler.append(replace(query, wrt="params"))
        for j, term in enumerate(query.terms):
            for name in ("params", "inputs", "nested", "reduced"):
                plain = replace(term, **{name: getattr(_PLAIN, name)})
                if plain != term:
                    terms = (*query.terms[:j], plain, *query.terms[j + 1 :])
                    simpler.append(replace(query, terms=terms))
        for one in simpler:
            yield replace(program, queries=(*queries[:i], one, *queries[i + 1 :]))
    network = program.network
    kept_names = {layer.option for layer in network.every_layer if layer.kind == "tied"}
    for i, layer in enumerate(network.layers):
        if (
            layer.inputs == layer.outputs
            and layer.name not in kept_names
            and layer.kind not in ("pool", "embedding")
        ):
            second = "" if layer.kind in ("mix", "mask") else network.second
            layers = network.layers[:i] + network.layers[i + 1 :]
            if layers and any(one.shapes(network.length) for one in layers):
                yield replace(program, network=replace(network, layers=layers, second=second))
