"""``nn.Module`` as a model."""

from __future__ import annotations

import copy
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import nn

from gradbridge.call_spec import CallSpec, argument_names
from gradbridge.forks import fork_safe_lock
from gradbridge.inspection import Stranger
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import GuestOptions
from gradbridge_torch.admission import (
    bridgeable,
    draws_in_train,
    has_fast_paths,
    has_own_code,
    notices,
    own_code,
    writes,
)
from gradbridge_torch.copies import Deep
from gradbridge_torch.explain import steers
from gradbridge_torch.inlining import apart
from gradbridge_torch.isolation import TorchModel, seeded
from gradbridge_torch.memos import stale
from gradbridge_torch.places import count
from gradbridge_torch.replicas import EMPTIED, Replica, lent
from gradbridge_torch.statistics import MovesBuffers
from gradbridge_torch.strangers import stranger
from gradbridge_torch.tensors import compute_device, floating_dtype, in_precision, to_tensor, view_of

_stack = torch._C._functorch.peek_interpreter_stack

_PLAIN = (torch.Tensor, nn.Parameter)


class ModuleModel(MovesBuffers, TorchModel):
    """An ``nn.Module``: its trainable parameters are the weights, all else is kept as it was when bridged.

    Buffers and frozen parameters (``requires_grad=False``) are copied once, here.

    Args:
        module: the user's own: read, never written to.
        options: of the bridge.

    Raises:
        UnknownModelError: it hides its parameters, has none yet, or has no numbers.
        NotDifferentiableError: a complex parameter.
    """

    def __init__(self, module: nn.Module, options: GuestOptions) -> None:
        module = bridgeable(module)
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        device, has_code = compute_device(options.device), has_own_code(module)
        is_train = options.mode == "train"
        tensors = (*module.parameters(), *module.buffers())
        placed = device if device is not None else next((t.device for t in tensors), None)
        super().__init__(placed, is_train and draws_in_train(module), watched=has_code)
        self.label = type(module).__name__
        self.argument_names = argument_names(module.forward)
        self.layout = ParameterLayout(
            tuple(named),
            tuple(tuple(p.shape) for p in named.values()),
            tuple(str(p.dtype).removeprefix("torch.") for p in named.values()),
        )
        self.differentiates = has_fast_paths(module)
        #: Whether it is known to write to none of its arguments.
        self.only_reads = not has_code and not any(map(writes, module.modules()))
        # Code of the user's may ask a parameter whether it is one, and trainable.
        self.asks = has_code or self.differentiates
        self._module, self._named, self._device, self._is_train = module, named, device, is_train
        # As it is now, in its own dtypes and mode; its trainable parameters are the user's, and never read.
        snapshot = Deep(module, {id(p): p for p in named.values()})
        self._snapshot = snapshot.module
        # What it keeps may be results of parameters: those that it has now.
        self._kept = snapshot.kept if has_code and named else []
        self._then = [p.detach().clone() for p in named.values()] if self._kept else []
        has_buffers = any(True for _ in self._snapshot.buffers())
        #: Whether a forward leaves other buffers behind.
        self.moves = is_train and has_buffers
        # A forward of the user's may write to buffers in eval mode, too.
        self._lends = self.moves or (has_buffers and has_code)
        # Whether each call has a replica of its own: it computes in its backward, too, or keeps something.
        self._isolates = False
        self._watches = has_code
        self._compute_in(floating_dtype(options.dtype))
        notices(module, is_train)

    def readers(self) -> Sequence[Any]:
        return own_code(self._template)

    def own_tensors(self) -> Iterator[torch.Tensor]:
        for module in (self._template, *[replica.module for replica in list(self._replicas)]):
            yield from (*module.parameters(), *module.buffers())

    def _compute_in(self, dtype: torch.dtype | None) -> None:
        """Make the template in a dtype; None keeps each tensor's own."""
        placeholders = self._placeholders(self._snapshot)
        tensors = (*self._snapshot.parameters(), *self._snapshot.buffers())
        self.dtypes = tuple(dtype or p.dtype for p in placeholders)
        self.dtype = dtype or next((t.dtype for t in tensors if t.is_floating_point()), None)
        self.other_default = dtype
        self._placement = (dtype, self._device)
        converted = _converted(self._snapshot, *self._placement, placeholders)
        self._template, self._results = converted.module, converted.kept if self._kept else []
        self._template.train(self._is_train)
        for tensor in (*self._template.buffers(), *self._template.parameters()) if self._lends else ():
            lent(tensor.detach())  # makes its memory copy-on-write, before any thread asks for it
        self._start()

    def in_dtype(self, name: str) -> Self:
        dtype = floating_dtype(name)
        tensors = (*self.dtypes, *(b.dtype for b in self._template.buffers() if b.is_floating_point()))
        if self.dtype in (None, dtype) and all(d is dtype for d in tensors):
            return self
        twin = copy.copy(self)
        twin._compute_in(dtype)
        return twin

    def in_eval_mode(self) -> Self:
        twin = copy.copy(self)
        twin._is_train = twin.moves = twin.draws = twin._is_probed = False
        twin.shares_state = self.moves
        twin._compute_in(self._placement[0])
        return twin

    def fresh(self) -> Self:
        twin = copy.copy(self)
        if self.moves:  # of its own, so that it moves nobody else's
            with self._lock:
                kept = self._placeholders(self._template)
                twin._template = Deep(self._template, {id(p): p for p in kept}).module
        twin._start()
        return twin

    def weights(self) -> Sequence[Any]:
        present = dict(self._module.named_parameters())
        return [view_of(present.get(name, own)) for name, own in self._named.items()]

    def native(self, weights: Sequence[Any]) -> nn.Module:
        # In the dtype and on the device of the computation, in the user's mode.
        own = _converted(self._snapshot, *self._placement, []).module
        new = {
            name: to_tensor(w, dtype, self.device, False)
            for name, w, dtype in zip(self.layout.names, weights, self.dtypes)
        }
        with self._lock, torch.no_grad():
            state = {**dict(self._template.named_buffers()), **dict(self._template.named_parameters()), **new}
            for name, tensor in [*own.named_parameters(), *own.named_buffers()]:
                tensor.copy_(state[name])
        return own

    def call(
        self, weights: Sequence[Any], inputs: list[Any], spec: CallSpec, extras: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        if self.asks:
            for weight in weights:
                if type(weight) is not nn.Parameter:
                    weight._is_param = True  # what isinstance(weight, nn.Parameter) looks at
            # All are tracked, or none; a transform of torch.func lets nobody track another one.
            if weights and not weights[0].requires_grad and (self.differentiates or _stack() is None):
                self.tracked(weights)
            if self._results and _stack() is None and type(weights[0]) is torch.Tensor:
                self._forget(inputs, spec)
        args, kwargs = spec.bind(inputs)
        # A replica is nobody else's until it is given back; fake tensors are not to stay in one.
        isolates = self._isolates or (bool(weights) and type(weights[0]) not in _PLAIN)
        try:
            replica = self._new_replica() if isolates else self._idle.pop()
        except IndexError:
            replica = self._new_replica()
        try:
            for slots, key, index in replica.slots:
                slots[key] = weights[index]
            if self._lends:
                with self._lock:  # not in the middle of a move
                    replica.lend_buffers()
            output = replica.module(*args, **kwargs)
            return output, replica.buffers() if self.moves else ()
        finally:
            if not isolates:
                if self._watches:
                    self._watch(replica)
                # A graph must not outlive its call by hanging in a slot.
                for slots, key, _ in replica.slots:
                    slots[key] = EMPTIED
                self._idle.append(replica)

    def quick_part(
        self, spec: CallSpec, run: Callable[[Sequence[Any]], Any]
    ) -> Callable[[Sequence[Any]], Any]:
        is_simple = self.only_reads and not self.asks and not self._lends and len(set(self.dtypes)) == 1
        if not is_simple or spec != CallSpec.of_arrays(spec.count, spec.noise):
            return run
        count, dtype, idle, is_surrounded = len(self.layout), self.dtypes[0], self._idle, self.is_surrounded

        def quick(leaves: Sequence[Any]) -> Any:
            """`run`, without a step between: on the smallest models each takes a fiftieth of the model's time."""
            for leaf in leaves:
                if leaf.dtype is not dtype:
                    return run(leaves)
            if is_surrounded():
                return run(leaves)
            try:
                replica = idle.pop()
            except IndexError:
                return run(leaves)  # which makes one
            inputs = leaves[count:]
            try:
                for slots, key, index in replica.slots:
                    slots[key] = leaves[index]
                output = replica.module(*inputs)
            except Exception as error:
                if steers(error):
                    raise
                return run(leaves)  # which explains it
            finally:
                for slots, key, _ in replica.slots:
                    slots[key] = EMPTIED
                idle.append(replica)
            if type(output) is not torch.Tensor or output.dtype is not dtype:
                return run(leaves)
            return apart(output, inputs)

        return quick

    def keep_for_rerun(self) -> bool:
        """From now on every call has a replica of its own, that holds its weights as long as its graph lives."""
        return self.isolate_calls()

    def isolate_calls(self) -> bool:
        changes, self._isolates = not self._isolates, True
        return changes

    def _watch(self, replica: Replica) -> None:
        """See in its first calls whether a replica holds more after each, as one does that records what it computes."""
        replica.sizes.append(count(replica.module))
        if len(replica.sizes) == 5:
            self._watches = False
            if all(a < b for a, b in zip(replica.sizes, replica.sizes[1:])):
                self._isolates = True

    def stranger(self, native: torch.Tensor) -> Stranger:
        return stranger(native, self._module, self._named, list(self._replicas))

    def _forget(self, inputs: Sequence[Any], spec: CallSpec) -> None:
        """At the first call: let the template be without results of its parameters as they were."""
        with self._lock, seeded(0, self.device):
            results, self._results = self._results, []
            if not results:
                return
            weights = [to_tensor(w, d, self.device, False) for w, d in zip(self._then, self.dtypes)]
            saved = set(map(id, self._template.state_dict(keep_vars=True).values()))
            places = [i for i, (_, _, value) in enumerate(results) if id(value) not in saved]
            for place, deletes in stale(self._new_replica, weights, places, inputs, spec.bind):
                for holder, key, _ in (results[place], self._kept[place]):
                    if deletes:
                        holder.pop(key, None)
                    elif key in holder:
                        holder[key] = None

    # -- replicas -----------------------------------------------------------------------------

    def _start(self) -> None:
        self._lock = fork_safe_lock()
        # As many as there are forwards at once. The template itself never runs: it would be copied
        # while its slots are filled.
        self._idle: deque[Replica] = deque()
        self._replicas: weakref.WeakSet[Replica] = weakref.WeakSet()

    def _new_replica(self) -> Replica:
        with self._lock:
            replica = Replica(self._template, self._placeholders(self._template), self._lends)
            self._replicas.add(replica)
        return replica

    def _placeholders(self, module: nn.Module) -> list[torch.Tensor]:
        own = dict(module.named_parameters())
        return [own[name] for name in self._named]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Nobody writes to the snapshot; `copy` cannot follow all that `Deep` can.
        twin = self.fresh()
        twin._module = Deep(self._module, {}).module
        twin._named = dict(zip(self._named, self._placeholders(twin._module)))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_idle", "_lock", "_replicas")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


def _converted(
    module: nn.Module,
    dtype: torch.dtype | None,
    device: torch.device | None,
    shared: Sequence[torch.Tensor],
) -> Deep:
    """A copy of a module in a dtype and on a device, but for some tensors, which are the module's own."""
    copied = Deep(module, {id(t): t for t in shared})
    done: dict[int, torch.Tensor] = {id(t): t for t in shared}  # tied tensors stay tied
    for part in copied.module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            for slots in (part._parameters, part._buffers):
                copied.tensors += [(slots, key, tensor) for key, tensor in slots.items()]
    for holder, key, tensor in copied.tensors:
        if id(tensor) not in done:
            done[id(tensor)] = _moved(tensor, in_precision(tensor.dtype, dtype), device)
        if done[id(tensor)] is not tensor:
            holder[key] = done[id(tensor)]
    return copied


def _moved(tensor: torch.Tensor, dtype: torch.dtype, device: torch.device | None) -> torch.Tensor:
    if tensor.dtype is dtype and device in (None, tensor.device):
        return tensor
    if not tensor.is_leaf:
        with torch.enable_grad():
            return tensor.to(device=device, dtype=dtype)
    moved = tensor.detach().to(device=device, dtype=dtype)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(moved, tensor.requires_grad)
    return moved.requires_grad_(tensor.requires_grad)
