"""A bridge as a Keras layer, on whichever backend Keras runs: with the model's parameters as the layer's weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Self

import keras
import numpy as np
import optree

from gradbridge import trees
from gradbridge.bridge import Bridge
from gradbridge.call_spec import CallSpec
from gradbridge.errors import HostError, OptionError, Unsupported
from gradbridge.execution.shapes import output_spec
from gradbridge.lifting import OpenSpec, open_outputs
from gradbridge.protocol import ArraySpec
from gradbridge_keras.variables import unique


def as_layer(
    bridge: Bridge,
    *,
    name: str | None = None,
    dtype: Any = None,
    trainable: bool = True,
    made_by: Callable[[], Any] | None = None,
) -> BridgeLayer:
    """A Keras layer that computes a bridged model: what `Bridge.as_layer` returns.

    It fits, evaluates and predicts in Sequential, functional and subclassed models; `save_weights` and `load_weights`
    have its weights as those of any layer. Where the bridge was made with ``mode="train"``, it is in train mode in `fit` and
    with ``training=True``, and in eval mode else; one in eval mode stays in it. `copy.deepcopy` gives a layer with weights
    of its own.

    Args:
        bridge: over any guest. The layer has a bridge of its own, for the system that Keras runs on.
        name: of the layer.
        dtype: of its weights, or a dtype policy; None for Keras' own. The model is computed in the weights' dtype;
            with a mixed policy the outputs alone have the compute dtype.
        trainable: whether the weights are trained.
        made_by: a function that makes such a bridge. With it a model that has the layer can be saved as a whole, by
            `model.save("….keras")`. Whoever loads that imports this module, so that Keras knows the class, and gives
            the function, as ``custom_objects={"make": make}``, or registers it with
            `keras.saving.register_keras_serializable`.

    Returns:
        A new layer, whose inputs are the model's: ``layer(x)``, ``layer(x, mask=m)``.

    Raises:
        OptionError: `made_by` is not a function, or makes no such bridge.
    """
    if made_by is not None:
        _require_same(made_by, bridge)
    return BridgeLayer(made_by or _Held(bridge), bridge, name=name, dtype=dtype, trainable=trainable)


#: Before the names of what is saved of a layer and is not a weight.
_MOVED = "moved."


@keras.saving.register_keras_serializable("gradbridge")
class BridgeLayer(keras.layers.Layer):
    """A bridged model as a layer.

    Args:
        guest: makes the bridge, of the layer itself or of one that is made from its config.
        bridge: of the layer; None for what `guest` makes.
        **options: of a layer.
    """

    def __init__(self, guest: Callable[[], Any], bridge: Bridge | None = None, **options: Any) -> None:
        # Weights are handed over as they are: who computes with them decides about their dtype.
        super().__init__(autocast=False, **options)
        self._guest = guest
        adapter, how = (bridge or _bridge_of(guest())).made_with()
        self._bridge = Bridge(adapter, **{**how, "host": keras.backend.backend()})
        #: The same in eval mode; None before that was asked for.
        self._evaluated: Bridge | None = None
        self._declared, self._seed = how["outputs"], how["seed"]
        self.supports_jit = keras.backend.backend() == "jax"
        layout, params = adapter.layout, keras.ops.convert_to_numpy(self._bridge.params)
        self._own = tuple(
            self.add_weight(
                shape=shape,
                initializer=_Present(value),
                dtype=self.variable_dtype,
                name=weight,
            )
            for weight, shape, value in zip(_names(layout.names), layout.shapes, layout.cut(params))
        )
        self.built = True

    @property
    def bridge(self) -> Bridge:
        """The bridge that it computes with; its params are the model's as it was bridged, not the layer's weights."""
        return self._bridge

    def call(self, *inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """The model at the layer's weights.

        Args:
            *inputs, **kwargs: the model's.
            training: as for any layer of Keras, which says True in `fit`. It decides for a bridge that was made with
                ``mode="train"``; one in eval mode stays in it.
        """
        if not training and self._evaluated is None:
            self._evaluated = self._bridge.in_eval_mode()
        bridge = self._bridge if training else self._evaluated
        weights = dict(zip(self._bridge.layout.names, map(keras.ops.convert_to_tensor, self._own)))
        return keras.tree.map_structure(self._given, bridge(weights, *inputs, **kwargs))

    def compute_output_spec(self, *inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Shapes and dtypes of the outputs, before there are any, in either mode."""
        leaves, structure = trees.flatten((inputs, kwargs))
        places = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")]
        given = [
            OpenSpec(
                tuple(leaves[i].shape), np.dtype(_numpys(keras.backend.standardize_dtype(leaves[i].dtype)))
            )
            for i in places
        ]
        adapter = self._bridge.made_with()[0]

        def told(specs: Sequence[ArraySpec]) -> tuple[Sequence[ArraySpec], optree.PyTreeSpec | None]:
            filled = list(leaves)
            for i, spec in zip(places, specs):
                filled[i] = spec
            found = output_spec(adapter, self._declared, filled, CallSpec(structure, self._seed))
            return trees.flatten(found)

        try:
            specs, outputs = open_outputs(told, given)
        except Unsupported as error:
            raise HostError(
                f"the layer {self.name!r} was called symbolically, where the shapes of its outputs must be known before it "
                f"runs, and {error}; say outputs=(shape, dtype), or a function of the inputs, where you bridge it"
            ) from error
        return trees.unflatten(outputs, [self._spec(s) for s in specs])

    def compute_output_shape(self, *input_shapes: Any) -> Any:
        """Shapes of the outputs for inputs of these shapes, in the layer's dtype: what layers around it ask."""
        given = keras.tree.map_shape_structure(
            lambda s: keras.KerasTensor(s, self.compute_dtype), input_shapes
        )
        return keras.tree.map_structure(lambda output: output.shape, self.compute_output_spec(*given))

    def get_config(self) -> dict[str, Any]:
        """Of a layer; with `guest`, which is serialized where it was given as `made_by`."""
        return {**super().get_config(), "guest": self._guest}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A layer like one whose `get_config` that was."""
        config = dict(config)
        if isinstance(config["guest"], dict):
            config["guest"] = keras.saving.deserialize_keras_object(config["guest"])
        layer: Self = super().from_config(config)
        return layer

    def save_own_variables(self, store: Any) -> None:
        """The weights, and what training has moved."""
        super().save_own_variables(store)
        for name, array in self._bridge.made_with()[0].statistics().items():
            store[f"{_MOVED}{name}"] = array

    def load_own_variables(self, store: Any) -> None:
        """What `save_own_variables` has saved."""
        arrays = {key: np.array(store[key]) for key in list(store.keys())}
        moved = {key.removeprefix(_MOVED): arrays.pop(key) for key in list(arrays) if key.startswith(_MOVED)}
        if moved:
            self._bridge.made_with()[0].set_statistics(moved)
        super().load_own_variables(arrays)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Keras copies by way of a file, where no model of another framework has room. The guest serves all copies.
        moves = self._bridge.made_with()[0].statistics()
        bridge = copy.deepcopy(self._bridge) if moves else self._bridge
        config = {**self.get_config(), "guest": self._guest, "bridge": bridge}
        twin = memo[id(self)] = type(self)(**config)
        twin.set_weights(self.get_weights())
        return twin

    def _given(self, output: Any) -> Any:
        dtype = getattr(output, "dtype", None)
        if dtype is None or not keras.backend.is_float_dtype(keras.backend.standardize_dtype(dtype)):
            return output
        return keras.ops.cast(output, self.compute_dtype)

    def _spec(self, spec: OpenSpec) -> Any:
        dtype = self.compute_dtype if spec.dtype.kind == "f" else spec.dtype.name
        return keras.KerasTensor(spec.shape, dtype)


class _Held:
    """A bridge that a layer was made of, which is in no file."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def __call__(self) -> Bridge:
        return self._bridge

    def get_config(self) -> NoReturn:
        """Asked where it is to be written down.

        Raises:
            HostError
        """
        raise HostError(
            f"a Keras model was to be saved, pickled or copied by copy.deepcopy that has a layer over "
            f"{self._bridge.adapter.label}, and Keras does all of that by way of a file, which has no room for a model of "
            f"another framework; save the weights alone (save_weights), or make the layer with f.as_layer(made_by=make), a "
            f"function that makes the bridge, and where the model is loaded import gradbridge_keras.wrapping and give "
            f'custom_objects={{"make": make}}. For a copy: keras.models.clone_model, and set_weights'
        )


class _Present(keras.initializers.Initializer):
    """The values that a model has."""

    def __init__(self, value: np.ndarray[Any, Any]) -> None:
        self._value = value

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        return keras.ops.convert_to_tensor(self._value, dtype)


def _names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of a layout as Keras may have them: without slashes, and on its torch backend without dots."""
    return unique([re.sub(r"[./]", "_", name) for name in names])


def _numpys(dtype: str) -> str:
    """The name by which NumPy knows a dtype; what it does not know widens."""
    return "float32" if dtype == "bfloat16" else dtype


def _bridge_of(made: Any) -> Bridge:
    """A bridge, or what a primitive is made of."""
    bridge = getattr(made, "bridge", made)
    if not isinstance(bridge, Bridge):
        raise OptionError(
            f"made_by is a function that returns a bridge, got one that returned a {type(made).__name__}"
        )
    return bridge


def _require_same(made_by: Any, bridge: Bridge) -> None:
    if not callable(made_by) or getattr(made_by, "__name__", "<lambda>") == "<lambda>":
        raise OptionError(
            f"made_by is a named function without arguments that makes the bridge, got {made_by!r}"
        )
    made = _bridge_of(made_by()).layout
    if made != bridge.layout:
        raise OptionError(
            f"made_by makes a bridge with other params than this one: expected\n{bridge.layout}\ngot\n{made}"
        )
