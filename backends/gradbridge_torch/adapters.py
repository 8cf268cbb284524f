"""Adapters over tensors: the four steps once for modules, functions and their pullbacks.

Position 0, the parameters, is a list of tensors here, one per entry of the layout. Every adapter
says how to compute its outputs from tensors; forward and backward follow, and so does the
pullback, which is computed with a recorded graph and is an adapter again.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from gradbridge import trees
from gradbridge.errors import (
    GradbridgeError,
    GradbridgeWarning,
    GuestError,
    HigherOrderError,
    OutputError,
)
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter, Array, Signature
from gradbridge_torch.forward_mode import pushed, pushed_many
from gradbridge_torch.isolation import Isolation
from gradbridge_torch.jacobians import jacobians_of_rows, pulled_back, pulled_many
from gradbridge_torch.replicas import EmptiedError
from gradbridge_torch.tensors import is_inexact, to_array, to_tensor, turned, view_of


class TensorAdapter(Adapter):
    """A function of tensors.

    torch's gradients are the conjugates of the protocol's; cotangents and gradients of complex
    tensors are turned where they come in and go out.

    Args:
        label: what errors call it.
        layout: of the parameters.
        dtypes: of each parameter in the computation.
        dtype: of floating inputs in the computation; None keeps theirs.
        device: where it computes; None is the CPU.
        isolation: how it is run.
    """

    def __init__(
        self,
        label: str,
        layout: ParameterLayout,
        dtypes: Sequence[torch.dtype],
        dtype: torch.dtype | None,
        device: torch.device | None,
        isolation: Isolation,
    ) -> None:
        self.label = label
        self.layout = layout
        self._dtypes = tuple(dtypes)
        self._one_dtype = self._dtypes[0] if len(set(self._dtypes)) == 1 else None
        self._dtype = dtype
        self._device = device
        self._isolation = isolation
        self._noticed = False
        # Whether it takes gradients itself, of its parameters or inputs, so that a plain forward records, too.
        self._differentiates = False

    takes_complex = True

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether it draws random numbers."""
        return self._isolation.stochastic

    @abstractmethod
    def compute(self, pieces: list[torch.Tensor], inputs: list[Any], signature: Signature) -> Any:
        """Outputs, a pytree of tensors, from the parameters' tensors and the input leaves."""

    def update(self, params: Array) -> list[torch.Tensor]:
        """See `Adapter.update`: one tensor per parameter, all of them cut from one copy."""
        if torch.is_inference_mode_enabled():  # what is made there can never be differentiated
            with torch.inference_mode(False):
                return self.update(params)
        vector = to_tensor(params, self._one_dtype, self._device)
        pieces = vector.split_with_sizes(self.layout.sizes) if self.layout.sizes else ()
        shaped = [piece.view(shape) for piece, shape in zip(pieces, self.layout.shapes)]
        if self._one_dtype is not None:
            return shaped
        return [piece.to(dtype) for piece, dtype in zip(shaped, self._dtypes)]

    def forward(
        self, loaded: list[torch.Tensor], inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """See `Adapter.forward`."""
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return self.forward(loaded, inputs, signature, wrt)
        pieces = loaded
        if 0 in wrt or self._differentiates:
            pieces = [piece.detach().requires_grad_() for piece in loaded]
        tensors = [self.input_tensor(i, leaf) for i, leaf in enumerate(inputs)]
        for position in wrt:
            if position:
                tensors[position - 1].requires_grad_()
        try:
            output = self._run(pieces, tensors, signature, bool(wrt) or self._differentiates)
        except GuestError as error:
            if wrt or self._differentiates or "does not require grad" not in str(error):
                raise
            self._differentiates = True  # it takes gradients in its forward
            return self.forward(loaded, inputs, signature, wrt)
        if isinstance(output, torch.Tensor):
            return to_array(output), (_Residuals([output], pieces, tensors, signature) if wrt else None)
        leaves, structure = trees.flatten(output)
        for index, leaf in enumerate(leaves):
            if not isinstance(leaf, torch.Tensor):
                raise OutputError(
                    f"output {index} of {self.label} is a {type(leaf).__name__}; a bridged model returns a "
                    f"tensor, or a tuple, list, dict or dataclass of tensors: drop the rest or make it a tensor"
                )
        arrays = trees.unflatten(structure, [to_array(leaf) for leaf in leaves])
        return arrays, (_Residuals(leaves, pieces, tensors, signature) if wrt else None)

    def _run(
        self, pieces: list[torch.Tensor], tensors: list[Any], signature: Signature, tracked: bool
    ) -> Any:
        """Compute the outputs; again, with replicas that are kept, if that is seen to be needed."""

        def compute() -> Any:
            return self.compute(pieces, list(tensors), signature)

        try:
            return self._isolation.run(compute, tracked, signature.noise)
        except EmptiedError:
            if not self.keep_replicas():
                raise
            return self._isolation.run(compute, tracked, signature.noise)

    def keep_replicas(self) -> bool:
        """Make later calls keep what they were computed with; False where that makes no difference."""
        return False

    def _renew(self, residuals: _Residuals) -> None:
        """Make the call again, so that its backward finds the parameters that it computes with once more.

        Raises:
            GuestError: it gives something else than it gave.
        """
        self.keep_replicas()
        output = self._run(residuals.pieces, residuals.inputs, residuals.signature.replayed(), True)
        leaves = [output] if isinstance(output, torch.Tensor) else trees.flatten(output)[0]
        for before, after in zip(residuals.outputs, leaves):
            if not np.array_equal(view_of(before), view_of(after), equal_nan=is_inexact(before)):
                raise GuestError(
                    f"{self.label} computes parts of its forward again in its backward (activation checkpointing), "
                    f"and gives other outputs the second time: it changes its input or some state; leave one "
                    f"of the two out"
                )
        residuals.outputs = leaves

    def backward(
        self, residuals: _Residuals, cotangents: Sequence[Array], wrt: tuple[int, ...]
    ) -> list[Array]:
        """See `Adapter.backward`. Gradients are returned by torch rather than added up, so there is no zero."""
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return self.backward(residuals, cotangents, wrt)
        wanted = [t for position in wrt for t in residuals.at(position)]
        outputs, pulled = [], []
        for output, cotangent in zip(residuals.outputs, cotangents):
            if output.requires_grad:
                outputs.append(output)
                pulled.append(turned(to_tensor(cotangent, output.dtype, output.device)))
        found: Sequence[torch.Tensor | None] = [None] * len(wanted)
        if outputs and wanted:
            # The graph is kept, because the same call may be pulled back again.
            try:
                found = pulled_back(outputs, wanted, pulled)
            except EmptiedError:
                if not self.keep_replicas():
                    raise
                self._renew(residuals)
                return self.backward(residuals, cotangents, wrt)
            except RuntimeError as error:
                if isinstance(error, GradbridgeError):
                    raise
                raise self._backward_failed(error) from error
        if any(gradient is None for gradient in found):
            self._doubt_unused(residuals.outputs)
        gradients = iter(zip(wanted, found))
        return [
            self._flat_gradient([next(gradients)[1] for _ in residuals.pieces])
            if position == 0
            else _dense(*next(gradients))
            for position in wrt
        ]

    def backward_many(
        self, residuals: _Residuals, cotangents: Sequence[Array], wrt: tuple[int, ...]
    ) -> list[Array] | None:
        """See `Adapter.backward_many`: ``torch.autograd.grad`` with batched cotangents."""
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return self.backward_many(residuals, cotangents, wrt)
        wanted = [t for position in wrt for t in residuals.at(position)]
        pairs = [
            (output, turned(to_tensor(cotangent, output.dtype, output.device)))
            for output, cotangent in zip(residuals.outputs, cotangents)
            if output.requires_grad
        ]
        if not pairs or not wanted:
            return None
        found = pulled_many([o for o, _ in pairs], wanted, [c for _, c in pairs])
        if found is None or None in found:
            return None  # what is not used must be looked into, and `backward` does
        gradients, many = iter(found), len(cotangents[0])
        return [
            self._joined_many([next(gradients) for _ in residuals.pieces], (many,))
            if position == 0
            else to_array(turned(next(gradients)))
            for position in wrt
        ]

    def row_jacobians(
        self,
        loaded: list[torch.Tensor],
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        rowed: tuple[bool, ...],
    ) -> list[list[Array]] | None:
        """See `Adapter.row_jacobians`: vmap of the model's VJP. None for models that draw random numbers."""
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return self.row_jacobians(loaded, inputs, signature, wrt, rowed)
        if self.stochastic:
            return None
        leaves = [self.input_tensor(i, leaf) for i, leaf in enumerate(inputs)]
        shared = [t for position in wrt for t in (loaded if position == 0 else [leaves[position - 1]])]
        shapes: list[tuple[int, ...]] = []

        def compute(tensors: list[torch.Tensor], row: list[Any]) -> list[torch.Tensor]:
            rest, pieces = iter(tensors), loaded
            for position in wrt:
                if position == 0:
                    pieces = [next(rest) for _ in loaded]
                else:
                    row[position - 1] = next(rest)
            output = self.compute(pieces, row, signature)
            found = [output] if isinstance(output, torch.Tensor) else trees.flatten(output)[0]
            found = [leaf for leaf in found if leaf.is_floating_point()]
            shapes[:] = [tuple(leaf.shape[1:]) for leaf in found]
            return found

        try:
            outputs = self._isolation.run(
                lambda: jacobians_of_rows(compute, shared, leaves, rowed), True, signature.noise
            )
        except Exception:  # what vmap refuses, it refuses in many ways
            return None
        arrays = []
        for shape, gradients in zip(shapes, outputs):
            rest, lead = iter(gradients), tuple(gradients[0].shape[:2])
            found = [
                self._joined_many([next(rest) for _ in loaded], lead) if p == 0 else to_array(next(rest))
                for p in wrt
            ]
            arrays.append([a.reshape(lead[0], *shape, *a.shape[2:]) for a in found])
        return arrays

    def pushforward(
        self,
        loaded: list[torch.Tensor],
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        """See `Adapter.pushforward`: torch's forward mode, where it agrees with its reverse mode."""
        return self._pushed(pushed, loaded, inputs, signature, wrt, tangents)

    def pushforward_many(
        self,
        loaded: list[torch.Tensor],
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        """See `Adapter.pushforward_many`. None for models that draw random numbers."""
        if self.stochastic:
            return None
        return self._pushed(pushed_many, loaded, inputs, signature, wrt, tangents)

    def _pushed(
        self,
        push: Callable[..., Sequence[torch.Tensor | None] | None],
        loaded: list[torch.Tensor],
        inputs: Sequence[Any],
        signature: Signature,
        wrt: tuple[int, ...],
        tangents: Sequence[Array],
    ) -> list[Array] | None:
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return self._pushed(push, loaded, inputs, signature, wrt, tangents)
        lead = tangents[0].shape[: tangents[0].ndim - (1 if wrt[0] == 0 else np.ndim(inputs[wrt[0] - 1]))]
        leaves = [self.input_tensor(i, leaf) for i, leaf in enumerate(inputs)]
        primals, moves = [], []
        for position, tangent in zip(wrt, tangents):
            mine = loaded if position == 0 else [leaves[position - 1]]
            primals += [piece.detach().requires_grad_() for piece in mine]
            parts = self._cut(tangent) if position == 0 else [tangent]
            moves += [to_tensor(part, p.dtype, p.device) for part, p in zip(parts, mine)]
        outputs: list[tuple[bool, tuple[int, ...]]] = []

        def compute(moved: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            rest, filled, pieces = iter(moved), list(leaves), loaded
            for position in wrt:
                if position == 0:
                    pieces = [next(rest) for _ in loaded]
                else:
                    filled[position - 1] = next(rest)
            output = self.compute(pieces, filled, signature)
            found = [output] if isinstance(output, torch.Tensor) else trees.flatten(output)[0]
            outputs[:] = [(is_inexact(leaf), tuple(leaf.shape)) for leaf in found]
            return [leaf for leaf in found if is_inexact(leaf)]

        found = self._isolation.run(lambda: push(compute, primals, moves), True, signature.noise)
        if found is None:
            return None
        rest = iter(found)
        arrays = []
        for floating, shape in outputs:
            moved = next(rest) if floating else None
            arrays.append(np.zeros((*lead, *shape)) if moved is None else to_array(moved))
        return arrays

    def _cut(self, flat: Array) -> list[Array]:
        """(…, P) → one array per parameter with the same leading axes."""
        return [
            flat[..., where].reshape((*flat.shape[:-1], *shape))
            for where, shape in zip(self.layout.slices, self.layout.shapes)
        ]

    def _backward_failed(self, error: RuntimeError) -> GradbridgeError:
        first = str(error).splitlines()[0]
        way = "look for operations in it that torch cannot differentiate"
        if "inplace" in first:
            way = "the model writes to what its derivative needs: write to a clone()"
        if "use_reentrant" in first:
            way = "call torch.utils.checkpoint.checkpoint with use_reentrant=False"
        return GuestError(f"the derivative of {self.label} failed in torch: {first}; {way}")

    def _doubt_unused(self, outputs: list[torch.Tensor]) -> None:
        """Say once that nothing depends on what is differentiated: a model may have cut its graph."""
        if not self._noticed and not any(output.requires_grad for output in outputs):
            self._noticed = True
            warnings.warn(
                f"no output of {self.label} depends on what is differentiated, as torch sees it, so its gradient is "
                f"zero; if it should depend, look for .detach(), .item(), .numpy() or no_grad in the model",
                GradbridgeWarning,
                stacklevel=2,
            )

    def pullback(self, signature: Signature, wrt: tuple[int, ...]) -> PullbackAdapter:
        """See `Adapter.pullback`."""
        return PullbackAdapter(self, signature, wrt)

    def input_tensor(self, index: int, leaf: Any) -> Any:
        """An input leaf as the computation takes it: arrays become tensors, the rest stays."""
        return to_tensor(leaf, self._dtype, self._device) if type(leaf) is np.ndarray else leaf

    def _joined_many(self, gradients: Sequence[torch.Tensor], lead: tuple[int, ...]) -> Array:
        """Gradients with leading axes → (*lead, P)."""
        flat = np.empty((*lead, self.layout.size))
        for where, gradient in zip(self.layout.slices, gradients):
            flat[..., where] = view_of(gradient).reshape(*lead, -1)
        return flat

    def _flat_gradient(self, gradients: Sequence[torch.Tensor | None]) -> Array:
        # Written into the float64 vector directly: the cast is the copy.
        flat = np.empty(self.layout.size)
        for where, gradient in zip(self.layout.slices, gradients):
            flat[where] = 0.0 if gradient is None else view_of(gradient).reshape(-1)
        return flat


class PullbackAdapter(TensorAdapter):
    """The VJP of a tensor adapter: ``(params, *inputs, *cotangents) ↦ gradients``."""

    def __init__(self, parent: TensorAdapter, signature: Signature, wrt: tuple[int, ...]) -> None:
        super().__init__(
            f"gradient of {parent.label}",
            parent.layout,
            parent._dtypes,
            parent._dtype,
            parent._device,
            parent._isolation,
        )
        self._parent, self._signature, self._wrt = parent, signature, wrt

    def params(self) -> Array:
        """See `Adapter.params`."""
        return self._parent.params()

    def model(self, params: Array) -> Any:
        """See `Adapter.model`: the model that this is a derivative of."""
        return self._parent.model(params)

    def backward(
        self, residuals: _Residuals, cotangents: Sequence[Array], wrt: tuple[int, ...]
    ) -> list[Array]:
        """See `Adapter.backward`.

        Raises:
            HigherOrderError: torch has no derivative of this gradient.
        """
        with self._higher_order():
            return super().backward(residuals, cotangents, wrt)

    def _doubt_unused(self, outputs: list[torch.Tensor]) -> None:
        """Refuse what looks unused because a function in the graph has one derivative only.

        torch puts a node there that raises when it is reached, and cuts the graph behind it, so
        that it is not reached on the way to an input.
        """
        nodes, seen = [output.grad_fn for output in outputs], set()
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if "Error" in node.name():
                raise RuntimeError("a function in it is marked with @once_differentiable")
            nodes.extend(parent for parent, _ in node.next_functions)

    @contextmanager
    def _higher_order(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, (GradbridgeError, EmptiedError)):
                raise
            raise self._backward_failed(error) from error

    def _backward_failed(self, error: RuntimeError) -> GradbridgeError:
        first = str(error).splitlines()[0]
        way = "use first-order derivatives only, or write the model without the operation that it names"
        if "scaled_dot_product" in first:
            way = (
                "torch's fast attention has one derivative; call the model within "
                "torch.nn.attention.sdpa_kernel(SDPBackend.MATH), in a module around it"
            )
        return HigherOrderError(
            f"a derivative of the {self.label} was asked for, and torch has none: {first}; {way}"
        )

    def keep_replicas(self) -> bool:
        """As the parent."""
        return self._parent.keep_replicas()

    def input_tensor(self, index: int, leaf: Any) -> Any:
        """Inputs as the parent takes them; cotangents keep their dtype until the outputs are known."""
        if index < self._signature.count:
            return self._parent.input_tensor(index, leaf)
        return to_tensor(leaf, None, self._device)

    def compute(self, pieces: list[torch.Tensor], inputs: list[Any], signature: Signature) -> Any:
        """The gradients, with the graph of their computation recorded."""
        primals, cotangents = inputs[: self._signature.count], inputs[self._signature.count :]
        with torch.enable_grad():
            if 0 in self._wrt:
                pieces = [_tracked(piece) for piece in pieces]
            for position in self._wrt:
                if position:
                    primals[position - 1] = _tracked(primals[position - 1])
            wanted = [t for p in self._wrt for t in (pieces if p == 0 else [primals[p - 1]])]
            output = self._parent.compute(pieces, list(primals), self._signature)
            leaves = [output] if isinstance(output, torch.Tensor) else trees.flatten(output)[0]
            # Tracked, so that torch's own word is heard where a function has one derivative only.
            pairs = [
                (leaf, turned(_tracked(c.to(leaf.dtype))))
                for leaf, c in zip(leaves, cotangents)
                if leaf.requires_grad
            ]
            found: Sequence[torch.Tensor | None] = [None] * len(wanted)
            if pairs and wanted:
                outputs, pulled = zip(*pairs)
                with self._higher_order():
                    found = torch.autograd.grad(outputs, wanted, pulled, create_graph=True, allow_unused=True)
            gradients = iter([torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found)])
            return tuple(
                _joined([next(gradients) for _ in pieces], self._device)
                if p == 0
                else turned(next(gradients))
                for p in self._wrt
            )


class _Residuals:
    """What one forward keeps: its outputs with their graph, and the leaves of that graph."""

    __slots__ = ("inputs", "outputs", "pieces", "signature")

    def __init__(
        self,
        outputs: list[torch.Tensor],
        pieces: list[torch.Tensor],
        inputs: list[Any],
        signature: Signature,
    ) -> None:
        self.outputs, self.pieces, self.inputs, self.signature = outputs, pieces, inputs, signature

    def at(self, position: int) -> list[torch.Tensor]:
        return self.pieces if position == 0 else [self.inputs[position - 1]]


def _tracked(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.requires_grad else tensor.detach().requires_grad_()


def _joined(pieces: list[torch.Tensor], device: torch.device | None) -> torch.Tensor:
    # An embedding may have a sparse gradient, which has no reshape.
    flat = [(p if p.layout is torch.strided else p.to_dense()).reshape(-1) for p in pieces]
    return torch.cat(flat) if flat else torch.zeros(0, device=device)


def _dense(like: torch.Tensor, gradient: torch.Tensor | None) -> Array:
    return to_array(torch.zeros_like(like) if gradient is None else turned(gradient))
