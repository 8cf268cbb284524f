"""A bridge as a layer of a framework's own kind, with its parameters as the layer's weights."""

from __future__ import annotations

from typing import Any, Self

from gradbridge.execution.precision import Precisions
from gradbridge.host import Hosts
from gradbridge.protocol import Adapter


class Wrappable:
    """The half of `Bridge` that becomes a layer of others."""

    _hosts: Hosts
    _mode: str
    _made_with: dict[str, Any]
    _precisions: Precisions
    _registry: Any
    #: The same in eval mode; None before that was asked for.
    _evaluated: Self | None

    def made_with(self) -> tuple[Adapter, dict[str, Any]]:
        """The adapter and the options that it was made with: what it takes to make another bridge of the model."""
        return self._precisions.own.adapter, {**self._made_with, "registry": self._registry}

    def in_eval_mode(self) -> Self:
        """This model in eval mode: without random masks, with the statistics that calls of this bridge move.

        Returns:
            A bridge of the same layout and options, the same one each time. Its calls read the statistics as they are at that time, and
            leave them alone. Itself, where it was made with ``mode="eval"``.

        Raises:
            Unsupported: a backend of others that does not say how.
        """
        if self._mode == "eval":
            return self
        if self._evaluated is None:
            kind: Any = type(self)
            adapter, how = self.made_with()
            self._evaluated = kind(adapter.in_eval_mode(), **{**how, "mode": "eval"})
        return self._evaluated

    def as_module(self, **options: Any) -> Any:
        """A ``torch.nn.Module`` that computes this model, whatever framework it is of.

        Its parameters are those of the layout, one `torch.nn.Parameter` each, holding the model's present values;
        the module's inputs are the model's.

        Args:
            **options: see `gradbridge_torch.wrapping.as_module`.

        Raises:
            BackendUnavailableError: torch is missing.
        """
        return self._hosts.wrapper("as_module")(self, **options)

    def as_layer(self, **options: Any) -> Any:
        """A Keras layer that computes this model, whatever framework it is of, on whichever backend Keras runs.

        Its weights are those of the layout, holding the model's present values; the layer's inputs are the model's.

        Args:
            **options: see `gradbridge_keras.wrapping.as_layer`.

        Raises:
            BackendUnavailableError: Keras is missing.
        """
        return self._hosts.wrapper("as_layer")(self, **options)
