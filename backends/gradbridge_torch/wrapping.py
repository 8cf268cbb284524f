"""A bridge as a torch module: with the model's parameters as the module's own."""

from __future__ import annotations

import copy
import functools
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from gradbridge import trees
from gradbridge.bridge import Bridge
from gradbridge.errors import OptionError
from gradbridge.lifting.choosing import AUTO
from gradbridge_torch.crossing import copied
from gradbridge_torch.views import numbers


def as_module(bridge: Bridge, *, dtype: torch.dtype | str | None = None, device: Any = None) -> BridgeModule:
    """A torch module that computes a bridged model: what `Bridge.as_module` returns.

    Optimizers, `state_dict`, copies, `torch.func.functional_call` and `DistributedDataParallel` have it as any other
    module.

    Args:
        bridge: over any guest.
        dtype: of its floating parameters, a floating dtype of torch or its name; None for those of the layout.
        device: of its parameters; None for torch's own.

    Returns:
        A new module, whose inputs are the model's: ``module(x)``, ``module(x, mask=m)``.

    Raises:
        OptionError: `dtype` is not a floating dtype.
    """
    return BridgeModule(bridge, dtype, device)


class BridgeModule(nn.Module):
    """A bridged model as a module: one `torch.nn.Parameter` for each of the layout, of its name, shape and dtype.

    A dot in a name makes a submodule, so that the keys of `state_dict` are the layout's names. What torch has no
    parameter called, because modules have an attribute of that name, gets a ``_`` behind it.

    All floating parameters ask for a gradient; `requires_grad_(False)` freezes. Outputs have the parameters' dtype,
    and the model is computed in it unless its bridge has one of its own. What is not a parameter of the layout, as
    buffers of a torch guest, stays in the bridge; what training moves of it is in the `state_dict`, too.

    Where the bridge was made with ``mode="train"``, `eval` and `train` mean what they mean in torch: after `eval` calls have
    no random masks, and read the statistics that those in train mode have moved. A bridge in eval mode stays in it:
    `train` changes nothing then.

    Copies share the bridge, but for one in train mode that moves statistics, of which a deep copy has its own. A pickle holds it, so that what pickles is what the guest is: functions by their names in
    their module, not lambdas; `state_dict` needs none of that.

    Args:
        bridge: the model, whose present values the parameters get.
        dtype: of floating parameters; None for the layout's.
        device: of the parameters.
    """

    def __init__(self, bridge: Bridge, dtype: torch.dtype | str | None = None, device: Any = None) -> None:
        super().__init__()
        adapter, how = bridge.made_with()
        # One that is bound to another host could not take tensors; one that is bound to torch would not notice
        # that another system follows an input.
        self._bridge = bridge if how["host"] == AUTO else Bridge(adapter, **{**how, "host": AUTO})
        #: The same in eval mode; None before that was asked for.
        self._evaluated: Bridge | None = None
        #: Where the parameters are: a path of attributes for each of the layout.
        self._paths: tuple[tuple[str, ...], ...] = ()
        self._names = self._bridge.layout.names
        layout, wanted = self._bridge.layout, None if dtype is None else _floating(dtype)
        groups: dict[tuple[str, ...], tuple[str, ...]] = {(): ()}
        for (name, _, own), value in zip(layout, layout.cut(self._bridge.params)):
            *prefix, last = name.split(".")
            for depth in range(len(prefix)):
                group = tuple(prefix[: depth + 1])
                if group not in groups:
                    parent = groups[group[:-1]]
                    part = _free(self._at(parent), group[-1])
                    self._at(parent).add_module(part, nn.Module())
                    groups[group] = (*parent, part)
            owner = groups[tuple(prefix)]
            last = _free(self._at(owner), last)
            kind: torch.dtype = getattr(torch, own, torch.float64)
            tensor = torch.tensor(
                value, dtype=wanted if wanted and kind.is_floating_point else kind, device=device
            )
            parameter = nn.Parameter(tensor, requires_grad=kind.is_floating_point)
            self._at(owner).register_parameter(last, parameter)
            self._paths += ((*owner, last),)

    @property
    def bridge(self) -> Bridge:
        """The bridge that it computes with; its params are the model's as it was bridged, not the module's."""
        return self._bridge

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The model at the module's parameters.

        Args:
            *inputs, **kwargs: as for a call of the bridge, without the params.

        Returns:
            What the model returns, with tensors for arrays.
        """
        # By way of attributes: functional_call, parametrizations and replicas put other tensors there.
        weights = {name: self._at(path) for name, path in zip(self._names, self._paths)}
        outputs = self._in_mode()(weights, *inputs, **kwargs)
        # Without parameters it is the inputs that say who calls, and they may be NumPy's.
        return outputs if weights else trees.mapped(_tensor, outputs)

    def train(self, mode: bool = True) -> Self:
        """Go over to train mode, or to eval mode, where the bridge was made with ``mode="train"``.

        Raises:
            Unsupported: a backend of others that does not say how its model is evaluated.
        """
        super().train(mode)
        self._in_mode()
        return self

    def extra_repr(self) -> str:
        """What the model is, and in which mode."""
        return repr(self._in_mode())

    def _in_mode(self) -> Bridge:
        if self.training:
            return self._bridge
        if self._evaluated is None:
            self._evaluated = self._bridge.in_eval_mode()
        return self._evaluated

    def _at(self, path: tuple[str, ...]) -> Any:
        return functools.reduce(getattr, path, self)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, array in self._bridge.made_with()[0].statistics().items():
            destination[prefix + name] = torch.from_numpy(array)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list[str],
        *more: Any,
    ) -> None:
        adapter = self._bridge.made_with()[0]
        names = adapter.statistics()
        arrays = {name: state_dict.pop(prefix + name) for name in names if prefix + name in state_dict}
        if strict:
            missing += [prefix + name for name in names if name not in arrays]
        if arrays:
            adapter.set_statistics({name: numbers(tensor) for name, tensor in arrays.items()})
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *more)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # The guest stays as it is (law 5), so that one serves all copies; and not every guest can be copied.
        memo[id(self._evaluated)] = None
        if not self._bridge.made_with()[0].statistics():
            memo[id(self._bridge)] = self._bridge
        twin = memo[id(self)] = self.__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


def _free(module: nn.Module, name: str) -> str:
    """A name that is not an attribute of a module yet, and that torch takes."""
    while not name or hasattr(module, name):
        name += "_"
    return name


def _floating(dtype: Any) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise OptionError(
            f'as_module(dtype=…) takes a floating dtype, torch.float64 or "float64", got {dtype!r}'
        )
    return found


def _tensor(output: Any) -> Any:
    return copied(np.asarray(output)) if isinstance(output, (np.ndarray, np.generic)) else output
