"""What torch recorded, and walks through it: gradients that can be differentiated again, and what to refuse there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import Node

from gradbridge.errors import GradbridgeError, HigherOrderError, Unsupported
from gradbridge_torch.elementary import fused_beyond_its_order
from gradbridge_torch.explain import explain_backward
from gradbridge_torch.replicas import EmptiedError

Gradients = Sequence[torch.Tensor | None]

#: An operation, "into" or "out of" it in the backward, and which gradient; None is a leaf.
Place = tuple[Node | None, str, int]

#: What ``torch.autograd.grad`` calls, without its checks, which cost as much as the backward of a small
#: model (28 of 110 µs for 10 parameters) and the first time import 484 modules (340 ms). Our border has
#: checked. None where torch has it no longer.
run_backward = getattr(getattr(torch.autograd.Variable, "_execution_engine", None), "run_backward", None)


def differentiated(
    outputs: Sequence[Any],
    leaves: Sequence[torch.Tensor],
    cotangents: Sequence[torch.Tensor],
    create_graph: bool = False,
    many: bool = False,
) -> Gradients:
    """Gradients for one cotangent per output, None where there is no influence; the graph is kept."""
    is_plain = run_backward is not None and not many
    for output in outputs:
        is_plain = is_plain and type(output) is torch.Tensor
    if is_plain:
        return run_backward(  # type: ignore[no-any-return, misc]
            tuple(outputs), tuple(cotangents), True, create_graph, tuple(leaves), True, accumulate_grad=False
        )
    return torch.autograd.grad(
        outputs,
        leaves,
        cotangents,
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        is_grads_batched=many,
    )


class Graph(NamedTuple):
    """Outputs with their graph, and its leaves.

    Attributes:
        outputs: floating; None for a gradient that nothing has influence on.
        leaves: that it may be pulled back to.
        is_gradient: whether the outputs are gradients themselves.
        lock: of the recording, whose nodes may be shared by several of these; hooks on them stop every walk.
        known: its operations, once they were asked for.
        checked: kinds of operations of the model's graphs whose backward was seen to be recorded.
        given: everything that the computation was given, and may have for a leaf.
    """

    outputs: Gradients
    leaves: list[torch.Tensor]
    is_gradient: bool
    lock: Any
    known: list[Node]
    checked: set[frozenset[str]]
    given: Sequence[Any] = ()

    def nodes(self) -> list[Node]:
        """All operations of the graph."""
        if not self.known:
            self.known[:] = operations(self.outputs)
        return self.known

    def unreached(self) -> list[int]:
        """Places of the leaves that no output depends on, as torch sees it."""
        parents = [parent for node in self.nodes() for parent, _ in node.next_functions]
        reached = {id(getattr(parent, "variable", None)) for parent in parents}.union(map(id, self.outputs))
        return [place for place, leaf in enumerate(self.leaves) if id(leaf) not in reached]

    def kinds(self) -> frozenset[str]:
        """Of its operations."""
        return frozenset([node.name() for node in self.nodes()])

    def connected(self, cotangents: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Outputs that depend on something, with their cotangents."""
        return [(y, c) for y, c in zip(self.outputs, cotangents) if y is not None and y.requires_grad]

    def recorded(
        self, cotangents: Sequence[torch.Tensor], wanted: Sequence[int], label: str
    ) -> tuple[Gradients, Graph]:
        """Gradients, and the graph of their computation, which goes on into this one."""
        nodes = self.nodes()
        fused = fused_beyond_its_order(nodes)
        if fused is not None:
            raise Unsupported(f"the recorded gradient of {fused} has a wrong derivative in torch")
        own = [c.detach().requires_grad_() for c in cotangents]
        with torch.enable_grad(), self.lock:
            pairs = [(y, c.conj()) for y, c in self.connected(own)]
            wrt = [self.leaves[i] for i in wanted]
            gradients = recorded_gradients(pairs, wrt, label, nodes, self.checked)
            conjugated = [None if g is None else g.conj() for g in gradients]
        graph = Graph(conjugated, [*self.leaves, *own], True, self.lock, [], self.checked)
        return [None if g is None else g.detach() for g in conjugated], graph

    def to_boundary(self, outer: Graph, cotangents: Sequence[torch.Tensor]) -> tuple[Gradients, Left | None]:
        """Pull back to the cotangents of this recorded gradient, and no further into the outer graph.

        A hook on each operation of the outer graph sets aside what arrives there, and lets nothing on.

        Returns:
            (gradients of the cotangents, what `merged` of the outer graph adds).
        """
        count = len(outer.leaves)
        pairs = self.connected(cotangents)
        if not pairs:
            return [None] * (len(self.leaves) - count), None
        aside: dict[Node, Gradients] = {}

        def stopping(node: Node) -> Any:
            def stop(arrived: Gradients) -> tuple[None, ...]:
                aside[node] = arrived
                return (None,) * len(arrived)

            return node.register_prehook(stop)  # type: ignore[arg-type]

        with self.lock:  # nobody else walks through this graph meanwhile
            hooks = [stopping(node) for node in outer.nodes()]
            try:
                outputs, pulled = zip(*pairs)
                gradients = differentiated(outputs, self.leaves, pulled)
            finally:
                for hook in hooks:
                    hook.remove()
        return gradients[count:], Left(aside, gradients[:count])

    def merged(
        self, cotangents: Sequence[torch.Tensor], wanted: Sequence[int], lefts: Sequence[Left | None]
    ) -> Gradients:
        """Gradients, to which is added on the way what was left at the operations of this graph.

        Added there by hooks, rather than pulled from there in its own right: what arrived has passed the
        tensors' own hooks, and would pass them a second time.
        """
        pairs, leaves = self.connected(cotangents), [self.leaves[i] for i in wanted]
        if not pairs or not leaves:
            return [None] * len(leaves)
        outputs, pulled = zip(*pairs)
        here = [left for left in lefts if left is not None]
        with self.lock:
            hooks = [
                node.register_prehook(partial(_sums, arrived))  # type: ignore[arg-type]
                for left in here
                for node, arrived in left.aside.items()
            ]
            try:
                gradients = differentiated(outputs, leaves, pulled)
            finally:
                for hook in hooks:
                    hook.remove()
        for left in here:
            gradients = _sums([left.leaves[i] for i in wanted], gradients)
        return gradients


class Left(NamedTuple):
    """What a walk left at the boundary of a graph: at its operations, and at its leaves."""

    aside: dict[Node, Gradients]
    leaves: Gradients


def _sums(some: Gradients, others: Gradients) -> tuple[torch.Tensor | None, ...]:
    return tuple(b if a is None else a if b is None else a + b for a, b in zip(some, others))


def operations(outputs: Iterable[torch.Tensor | None]) -> list[Node]:
    """All operations that outputs come from; leaves are none."""
    stack = [y.grad_fn for y in outputs if y is not None]
    seen: set[Node | None] = {None}
    nodes = []
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node is not None and not hasattr(node, "variable"):
            nodes.append(node)
            stack += [parent for parent, _ in node.next_functions]
    return nodes


def recorded_gradients(
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    leaves: Sequence[torch.Tensor],
    label: str,
    nodes: Sequence[Node],
    checked: set[frozenset[str]],
) -> Gradients:
    """Gradients with a graph of their own, dense; None where there is no influence.

    Args:
        pairs: outputs and their cotangents, which are tracked.
        leaves: of the graph of the outputs.
        label: of the model.
        nodes: all operations of that graph.
        checked: kinds of operations that were seen to be recorded together; these are added.

    Raises:
        HigherOrderError: torch cannot, or does not record it all.
    """
    if not pairs or not leaves:
        return [None] * len(leaves)
    outputs, cotangents = zip(*pairs)
    kinds = frozenset([node.name() for node in nodes])
    lost: set[Place] = set()
    try:
        with _passing([] if kinds in checked else nodes, lost, _is_untracked):
            gradients = differentiated(outputs, leaves, cotangents, create_graph=True)
    except RuntimeError as error:
        if isinstance(error, (EmptiedError, GradbridgeError)):
            raise
        raise explain_backward(error, label, of_gradient=True) from error
    lost |= {(None, "into", i) for i, g in enumerate(gradients) if g is not None and _is_untracked(g)}
    if lost:
        _refuse_unrecorded(outputs, leaves, nodes, lost, label)
    checked.add(kinds)
    # An embedding may have a sparse gradient, which few operations take.
    return [g if g is None or g.layout is torch.strided else g.to_dense() for g in gradients]


def _is_untracked(gradient: torch.Tensor) -> bool:
    return not gradient.requires_grad and (gradient.is_floating_point() or gradient.is_complex())


def _is_not_zero(gradient: torch.Tensor) -> bool:
    return bool((gradient if gradient.layout is torch.strided else gradient.to_dense()).any())


@contextmanager
def _passing(nodes: Iterable[Node], those: set[Place], are: Callable[[torch.Tensor], bool]) -> Iterator[None]:
    """Collect where gradients of some kind pass in a walk: as an operation was given them, after the hooks
    of its tensor, and as it returned them, before they are added to others."""

    def watching(node: Node) -> Any:
        def watch(returned: Gradients, given: Gradients) -> None:
            for way, gradients in (("into", given), ("out of", returned)):
                those.update((node, way, i) for i, g in enumerate(gradients) if g is not None and are(g))

        return node.register_hook(watch)  # type: ignore[arg-type]

    hooks = [watching(node) for node in nodes]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _refuse_unrecorded(
    outputs: Sequence[torch.Tensor],
    leaves: Sequence[torch.Tensor],
    nodes: Iterable[Node],
    lost: set[Place],
    label: str,
) -> None:
    """Raise where a gradient on the way has no graph, though it is not zero for all cotangents, as a rounding's is.

    Gradients are linear in cotangents, which are tracked; those at hand may be zeros.
    """
    some = [
        torch.arange(1.0, y.numel() + 1, device=y.device).sin().to(y.dtype).view(y.shape) for y in outputs
    ]
    moved: set[Place] = set()
    with _passing(nodes, moved, _is_not_zero):
        gradients = differentiated(outputs, leaves, some)
    moved |= {(None, "into", i) for i, g in enumerate(gradients) if g is not None and _is_not_zero(g)}
    if lost & moved:
        met = sorted(f" {way} {node.name()}" for node, way, _ in lost & moved if node is not None)
        raise explain_backward(
            RuntimeError(
                f"a backward in it is not recorded (a function or a hook under no_grad, in NumPy or with .detach()); "
                f"a gradient without a graph goes{met[0] if met else ' to an argument'}"
            ),
            label,
            of_gradient=True,
        )


def refuse_cut_graph(nodes: Iterable[Node], label: str) -> None:
    """Raise where what looks unused may be so because a function has one derivative only.

    torch puts a node there that raises when it is reached, and cuts the graph behind it, so that it
    is not reached on the way to an input.

    Raises:
        HigherOrderError: there is such a node.
    """
    if any("Error" in node.name() for node in nodes):
        raise explain_backward(
            RuntimeError("a function in it is marked with @once_differentiable"), label, of_gradient=True
        )


def refuse_fused(outputs: Iterable[torch.Tensor], label: str) -> None:
    """Raise where a gradient that is to be differentiated again would have a wrong derivative.

    Raises:
        HigherOrderError: names the operation.
    """
    fused = fused_beyond_its_order(operations(outputs))
    if fused is not None:
        raise HigherOrderError(
            f"a derivative of the gradient of {label} was asked for that differentiates {fused} once more than torch "
            f"can: its result would be wrong (third derivatives of LayerNorm and BatchNorm, second ones of weight "
            f"norm, of sparse embeddings and of fused attention, are); write the layer with elementary operations "
            f"(attention: within torch.nn.attention.sdpa_kernel(SDPBackend.MATH)), or use lower orders only"
        )
