"""Heads for Keras backbones: their text form, building one, and cutting an old one off.

The parts are put together as ``network/{BACKBONE, head}``, two sub-models: all variables of the
head lie under ``head/``, and ``@layers[-20:]`` means the backbone's last layers.
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
_LAYERS = {  # by rank of the features: what averages, takes the largest, or keeps all
    4: {"gap": "GlobalAveragePooling2D", "gmp": "GlobalMaxPooling2D", "flatten": "Flatten"},
    3: {"gap": "GlobalAveragePooling1D", "gmp": "GlobalMaxPooling1D", "flatten": "Flatten"},
}


class HeadError(InputError):
    """A head that cannot be read, built, or put in the place of another."""


@dataclass(frozen=True)
class Head:
    """A head as written in a flag.

    Attributes:
        pool: "gap" (mean over positions), "gmp" (maximum) or "flatten" (all positions).
        parts: in order, a whole number is a hidden layer of so many units with ReLU, a float the
            rate of a dropout. The last layer, one output a class, comes by itself.
    """

    pool: str = "gap"
    parts: tuple[int | float, ...] = ()


def parse(text: str) -> Head:
    """Reads ``gap``, ``gap,256,dropout=0.5``, ``flatten,512,256``.

    Raises:
        HeadError: another pooling, or a part that is no number of units and no dropout=R.
    """
    pool, *items = [item.strip() for item in text.split(",")]
    if pool not in POOLS:
        raise HeadError(f"head={text!r}: it begins with {', '.join(POOLS)}{nearest(pool, list(POOLS))}")
    parts: list[int | float] = []
    for item in items:
        if re.fullmatch(r"\d{1,6}", item) and int(item) > 0:
            parts.append(int(item))
        elif (match := re.fullmatch(r"dropout=(0?\.\d+|0)", item)) is not None:
            parts.append(float(match.group(1)))
        else:
            raise HeadError(
                f"head={text!r}: `{item}` is no hidden layer (a whole number of units) and no dropout=R with "
                "0 <= R < 1; as in gap,256,dropout=0.5"
            )
    return Head(pool, tuple(parts))


def compose(backbone: Any, head: Head, outputs: int) -> Any:
    """A Keras model: ``backbone``, then a new head of float ``outputs`` logits.

    The last layer starts small (truncated normal, 0.02), hidden ones as He et al. (arXiv:1502.01852).
    """
    import keras

    image = keras.Input(backbone.input_shape[1:], name="image")
    features = backbone(image)
    layers: list[Any] = []
    if len(features.shape) > 2:
        if len(features.shape) not in _LAYERS:
            raise HeadError(
                f"head={head.pool!r}: the features have shape {list(features.shape)}; rank 2 to 4 is wanted"
            )
        layers.append(getattr(keras.layers, _LAYERS[len(features.shape)][head.pool])(name="pool"))
    for number, part in enumerate(head.parts):
        if isinstance(part, int):
            layers.append(keras.layers.Dense(part, "relu", kernel_initializer="he_normal", name=f"hidden_{number}"))
        else:
            layers.append(keras.layers.Dropout(part, name=f"dropout_{number}"))
    small = keras.initializers.TruncatedNormal(stddev=0.02)
    layers.append(keras.layers.Dense(outputs, kernel_initializer=small, name="logits"))
    return keras.Model(image, keras.Sequential(layers, name="head")(features), name="network")


def cut(model: Any, spec: str) -> Any:
    """The model up to what its last layer with weights reads: its features.

    Raises:
        HeadError: the model is no graph of layers, or its last layer is a whole network.
    """
    import keras

    tensor, shape = model.outputs[0], None
    while shape is None:
        layer, inputs = _made_by(tensor)
        if len(inputs) != 1:
            raise HeadError(
                f"model={spec!r}: no layer can be cut off: its outputs come from the layer {layer.name!r}, "
                f"which joins {len(inputs)} tensors"
            )
        weights = list(getattr(layer, "weights", ()))
        if weights and isinstance(layer, keras.Model) and not groups.in_head(layer.name):
            raise HeadError(
                f"model={spec!r}: no layer can be cut off: its last layer is the whole model {layer.name!r}; "
                "save that one by itself, or build the model in py:module:factory"
            )
        tensor = inputs[0]
        shape = tensor.shape if weights else None
    name = model.name if not re.fullmatch(r"(functional|sequential|model)(_\d+)?", model.name) else "backbone"
    return keras.Model(model.inputs[0], tensor, name="backbone" if groups.in_head(name) else name)


def without_activation(model: Any, spec: str) -> tuple[Any, str]:
    """The model with logits for outputs, and what was done in words ("" where it had them already).

    A last softmax or sigmoid is found in the traced graph, whatever layer made it. It is then taken
    off: the losses here want logits, and the gradient of a loss on probabilities is not that of
    training.

    Raises:
        HeadError: it ends in probabilities, and not by a layer from which that can be taken.
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
            f"model={spec!r}: it ends in {kind.lower()} (layer {layer.name!r}), which cannot be taken off; "
            "logits are wanted: --head=gap puts a new head on it"
        )
    return model, f"the last {kind.lower()} is taken off: losses here want logits"


def last_operation(model: Any) -> str:
    """Type of the operation that makes a network's output, such as "Softmax"."""
    import tensorflow as tf

    shape = [1, *(size or 64 for size in model.input_shape[1:])]
    traced = tf.function(lambda image: model(image, training=False), autograph=False)
    return output_operation(traced.get_concrete_function(tf.TensorSpec(shape, tf.float32)))


def output_operation(concrete: Any) -> str:
    """Type of the operation behind a traced function's only output, identities left out."""
    operation = concrete.outputs[0].op
    while operation.type in ("Identity", "Cast") and operation.inputs:
        operation = operation.inputs[0].op
    return str(operation.type)


def upper(network: Any) -> str:
    """Filter text for a Keras model's last 20 layers, or what there is beside the head ("" if nothing)."""
    rest = [entry for entry in name_variables(network) if "head" not in entry.groups and entry.kind == "weight"]
    if any(name == "" and index >= count - 20 for entry in rest for name, index, count in entry.layers):
        return "@layers[-20:]"
    return "@all" if rest else ""


def _made_by(tensor: Any) -> tuple[Any, list[Any]]:
    """The layer that made a Keras tensor, and the tensors that it read."""
    history = getattr(tensor, "_keras_history", None)
    if history is None:
        raise HeadError("the model is no graph of Keras layers; build it in py:module:factory with the head it needs")
    node = keras_private.inbound_nodes(history.operation)[history.node_index]
    return history.operation, list(node.input_tensors)
