"""The precision that a bridge computes in: the host's, unless another was asked for (law 6)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gradbridge.errors import OptionError, UnknownModelError
from gradbridge.forks import fork_safe_lock
from gradbridge.layout import name_of
from gradbridge.notices import notice
from gradbridge.protocol import Adapter


class Precision(NamedTuple):
    """The adapter that serves hosts of one dtype.

    Attributes:
        adapter: computes.
        packs: whether it takes the weights as one leaf.
        width: how many leaves a flat vector of them is.
    """

    adapter: Adapter
    packs: bool
    width: int

    @classmethod
    def of(cls, adapter: Adapter) -> Precision:
        """What an adapter says of itself."""
        packs = adapter.traits.packs
        return cls(adapter, packs, 1 if packs else len(adapter.layout))


class Precisions:
    """One model in the precisions of its hosts.

    Args:
        adapter: the model in its own dtype, or in the one that was asked for.
        follows: whether it is to compute in the dtype of the params that it is called with.

    Attributes:
        own: the model as it was bridged.
        double: for hosts of float64, which nearly all are.
    """

    def __init__(self, adapter: Adapter, follows: bool) -> None:
        self.own, self._follows = Precision.of(adapter), follows
        self._known: dict[str, Precision] = {}
        self._start()
        self.double = self.of(np.dtype(np.float64))

    def of(self, dtype: np.dtype[Any]) -> Precision:
        """What serves a host of this dtype.

        Says once, with a warning, where the model cannot be computed in it.
        """
        if not self._follows:
            return self.own
        known = self._known.get(name_of(dtype))
        if known is not None:
            return known
        with self._lock:
            if dtype.name not in self._known:
                try:
                    adapter = self.own.adapter.in_dtype(dtype.name)
                except (OptionError, UnknownModelError) as error:
                    self._say(dtype, str(error))
                    adapter = self.own.adapter
                self._known[dtype.name] = self.own if adapter is self.own.adapter else Precision.of(adapter)
            return self._known[dtype.name]

    def fall_back(self, dtype: np.dtype[Any], adapter: Adapter) -> Adapter | None:
        """The model as it was bridged, where what served hosts of this dtype has failed.

        Args:
            dtype: the host's.
            adapter: that failed.

        Returns:
            None where that is the same.
        """
        return None if adapter is self.own.adapter or not self._follows else self.own.adapter

    def settle(self, dtype: np.dtype[Any], reason: str) -> None:
        """From now on the model as it was bridged serves hosts of this dtype; says so once."""
        with self._lock:
            if self._known.get(dtype.name) is self.own:
                return
            self._known[dtype.name] = self.own
            if dtype == np.float64:
                self.double = self.own
        self._say(dtype, reason)

    def _say(self, dtype: np.dtype[Any], reason: str) -> None:
        adapter = self.own.adapter
        own = " and ".join(sorted(set(adapter.layout.dtypes))) or "the model's own dtype"
        notice(
            f"{adapter.label} cannot be computed in {dtype.name}, the precision of the params: {reason}. It computes in "
            f"{own}, and so its values and gradients have that precision; dtype='model' asks for this and is silent"
        )

    def _start(self) -> None:
        self._lock = fork_safe_lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()
