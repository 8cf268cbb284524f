"""A bridge as a layer of a framework's own kind, with its parameters as the layer's weights."""

from __future__ import annotations

from typing import Any

from gradbridge.host import Hosts


class Wrappable:
    """The half of `Bridge` that becomes a layer of others."""

    _hosts: Hosts

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
