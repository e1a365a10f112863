"""Heads for Keras backbones: parses their text form, builds new ones and cuts off old ones.

Backbone and head are two sub-models, ``network/{BACKBONE, head}``: all variables of the head lie under ``head/``, and
``@layers[-20:]`` means the last layers of the backbone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from engine import keras_private
from engine.errors import InputError
from engine.selection import groups
from engine.selection.variables import name_variables
from engine.text import nearest

POOLS = ("gap", "gmp", "flatten")
_LAYERS = {  # the pooling layers, by the rank of the features
    4: {"gap": "GlobalAveragePooling2D", "gmp": "GlobalMaxPooling2D", "flatten": "Flatten"},
    3: {"gap": "GlobalAveragePooling1D", "gmp": "GlobalMaxPooling1D", "flatten": "Flatten"},
}


class HeadError(InputError):
    """A head that is not valid, cannot be built, or cannot replace another."""


@dataclass(frozen=True)
class Head:
    """A head as written in a flag: its pooling (``POOLS``), and the layers before the logits.

    An integer among the ``parts`` is the number of units of a hidden layer with ReLU, a float the rate of a dropout.
    """

    pool: str = "gap"
    parts: tuple[int | float, ...] = ()


def parse_head(text: str) -> Head:
    """Parses a head such as ``gap``, ``gap,256,dropout=0.5`` or ``flatten,512,256``; HeadError if it is not valid."""
    pool, *items = [item.strip() for item in text.split(",")]
    if pool not in POOLS:
        raise HeadError(
            f"head={text!r} is not a valid head; expected it to begin with gap, gmp or flatten{nearest(pool, list(POOLS))}"
        )
    parts: list[int | float] = []
    for item in items:
        if re.fullmatch(r"\d{1,6}", item) and int(item) > 0:
            parts.append(int(item))
        elif (match := re.fullmatch(r"dropout=(0?\.\d+|0)", item)) is not None:
            parts.append(float(match.group(1)))
        else:
            raise HeadError(
                f"head={text!r}: `{item}` is not a valid part; expected a hidden layer (a whole number of units) or dropout=R "
                "with 0 <= R < 1, as in gap,256,dropout=0.5"
            )
    return Head(pool, tuple(parts))


def add_head(backbone: Any, head: Head, outputs: int) -> Any:
    """Builds the Keras model of a backbone and a new head with ``outputs`` logits.

    The last layer starts small (truncated normal, 0.02), hidden ones as in He et al. (arXiv:1502.01852). Raises HeadError
    if the features have a rank that the head cannot pool.
    """
    import keras

    image = keras.Input(backbone.input_shape[1:], name="image")
    features = backbone(image)
    layers: list[Any] = []
    if len(features.shape) > 2:
        if len(features.shape) not in _LAYERS:
            raise HeadError(f"head={head.pool!r}: the features have shape {list(features.shape)}; expected rank 2 to 4")
        layers.append(getattr(keras.layers, _LAYERS[len(features.shape)][head.pool])(name="pool"))
    for number, part in enumerate(head.parts):
        if isinstance(part, int):
            layers.append(keras.layers.Dense(part, "relu", kernel_initializer="he_normal", name=f"hidden_{number}"))
        else:
            layers.append(keras.layers.Dropout(part, name=f"dropout_{number}"))
    small = keras.initializers.TruncatedNormal(stddev=0.02)
    layers.append(keras.layers.Dense(outputs, kernel_initializer=small, name="logits"))
    return keras.Model(image, keras.Sequential(layers, name="head")(features), name="network")


def cut_head(model: Any, spec: str) -> Any:
    """The model without its last layer with weights: from its input to its features.

    Raises HeadError if the model is not a graph of layers, or its last layer is a whole network.
    """
    import keras

    tensor, shape = model.outputs[0], None
    while shape is None:
        layer, inputs = _made_by(tensor)
        if len(inputs) != 1:
            raise HeadError(
                f"model={spec!r}: its head cannot be cut off: its outputs come from the layer {layer.name!r}, "
                f"which joins {len(inputs)} tensors"
            )
        weights = list(getattr(layer, "weights", ()))
        if weights and isinstance(layer, keras.Model) and not groups.in_head(layer.name):
            raise HeadError(
                f"model={spec!r}: its head cannot be cut off: its last layer is the whole model {layer.name!r}; "
                "save that model on its own, or build the network in py:module:factory"
            )
        tensor = inputs[0]
        shape = tensor.shape if weights else None
    name = model.name if not re.fullmatch(r"(functional|sequential|model)(_\d+)?", model.name) else "backbone"
    return keras.Model(model.inputs[0], tensor, name="backbone" if groups.in_head(name) else name)


def remove_activation(model: Any, spec: str) -> tuple[Any, str]:
    """The model with logits as outputs, and a note on what was removed ("" if it had them already).

    A final softmax or sigmoid is found in the traced graph, whichever layer computes it. It is removed because the losses
    here expect logits. Raises HeadError if it comes from a layer that cannot be removed or changed.
    """
    import keras

    kind = last_operation(model)
    if kind not in ("Softmax", "Sigmoid"):
        return model, ""
    owner, layer = model, None
    inputs: list[Any] = []
    while layer is None or isinstance(layer, keras.Model):
        owner = layer if layer is not None else model
        layer, inputs = _made_by(owner.outputs[0])
    if len(keras_private.inbound_nodes(layer)) == 1 and getattr(layer, "activation", None) is not None:
        layer.activation = keras.activations.linear
    elif owner is model and len(inputs) == 1 and not getattr(layer, "weights", ()):
        model = keras.Model(model.inputs[0], inputs[0], name=model.name)
    if last_operation(model) in ("Softmax", "Sigmoid"):
        raise HeadError(
            f"model={spec!r}: it ends in {kind.lower()} (layer {layer.name!r}), which cannot be removed, but the loss expects "
            "logits; --head=gap gives it a new head"
        )
    return model, f"the final {kind.lower()} was removed, since the loss expects logits"


def last_operation(model: Any) -> str:
    """The type of the operation that computes a network's output, such as "Softmax"."""
    import tensorflow as tf

    shape = [1, *(size or 64 for size in model.input_shape[1:])]
    traced = tf.function(lambda image: model(image, training=False), autograph=False)
    return output_operation(traced.get_concrete_function(tf.TensorSpec(shape, tf.float32)))


def output_operation(concrete: Any) -> str:
    """The type of the operation that computes a traced function's only output, identities and casts aside."""
    operation = concrete.outputs[0].op
    while operation.type in ("Identity", "Cast") and operation.inputs:
        operation = operation.inputs[0].op
    return str(operation.type)


def choose_upper(network: Any) -> str:
    """The text of a filter for a Keras model's last 20 layers, or for all it has besides the head ("" if nothing)."""
    rest = [entry for entry in name_variables(network) if "head" not in entry.groups and entry.kind == "weight"]
    if any(name == "" and index >= count - 20 for entry in rest for name, index, count in entry.layers):
        return "@layers[-20:]"
    return "@all" if rest else ""


def _made_by(tensor: Any) -> tuple[Any, list[Any]]:
    """The layer that computed a Keras tensor, and the tensors that it read."""
    history = getattr(tensor, "_keras_history", None)
    if history is None:
        raise HeadError(
            "the model is not a graph of Keras layers; build it in py:module:factory with the head that it needs"
        )
    node = keras_private.inbound_nodes(history.operation)[history.node_index]
    return history.operation, list(node.input_tensors)
