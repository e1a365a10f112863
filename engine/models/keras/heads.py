"""Heads for Keras backbones: parses their text form, builds new ones and cuts off old ones.

Backbone and head are two sub-models, ``network/{BACKBONE, head}``: all variables of the head lie under ``head/``, and
``@layers[-20:]`` means the last layers of the backbone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine import keras_private
from engine.errors import InputError
from engine.models.spec import name_heads
from engine.selection import groups
from engine.selection.variables import name_variables
from engine.text import join_words, nearest

POOLS = ("gap", "gmp", "flatten")
DENSE = ("unet", "aspp")  # an output for each pixel (engine.models.keras.dense_heads)
CENTERS = "centers"  # maps of the centres of objects (engine.models.keras.center_head)
STRIDES = (4, 8, 16)  # of these maps
_PROBABILITIES = ("Softmax", "Sigmoid")
_HIDDEN = ("Relu", "Relu6", "LeakyRelu", "Elu", "Selu")  # never the last operation of logits
_LAYERS = {  # the pooling layers, by the rank of the features
    4: {"gap": "GlobalAveragePooling2D", "gmp": "GlobalMaxPooling2D", "flatten": "Flatten"},
    3: {"gap": "GlobalAveragePooling1D", "gmp": "GlobalMaxPooling1D", "flatten": "Flatten"},
}


class HeadError(InputError):
    """A head that is not valid, cannot be built, or cannot replace another."""


@dataclass(frozen=True)
class Head:
    """A head as written in a flag: its pooling (``POOLS``) or decoder (``DENSE``), and the layers before the logits.

    An integer among the ``parts`` is the number of units of a hidden layer with ReLU (of filters, in a decoder), a float the
    rate of a dropout. ``stride`` are the pixels of the image for each cell of a map of centres.
    """

    pool: str = "gap"
    parts: tuple[int | float, ...] = ()
    stride: int = 4

    @property
    def dense(self) -> bool:
        """Whether it has outputs for each pixel."""
        return self.pool in DENSE

    @property
    def on_stages(self) -> bool:
        """Whether it makes maps of the feature maps of a trunk."""
        return self.dense or self.pool == CENTERS


def parse_head(text: str) -> Head:
    """Parses a head such as ``gap``, ``gap,256,dropout=0.5`` or ``flatten,512,256``; HeadError if it is not valid."""
    pool, *items = [item.strip() for item in text.split(",")]
    if pool not in (known := [*POOLS, *DENSE, CENTERS]):
        raise HeadError(
            f"head={text!r} is not a valid head; expected it to begin with gap, gmp or flatten, or, for an output for each "
            f"pixel, with unet or aspp, or, for boxes around objects, with centers{nearest(pool, known)}"
        )
    parts: list[int | float] = []
    stride = None
    for item in items:
        if pool == CENTERS and (match := re.fullmatch(r"stride=(\d{1,4})", item)) is not None:
            if stride is not None or int(match.group(1)) not in STRIDES:
                raise HeadError(f"head={text!r}: `{item}` is not valid; expected stride={join_words(STRIDES)}, once")
            stride = int(match.group(1))
            continue
        if re.fullmatch(r"\d{1,6}", item) and int(item) > 0:
            parts.append(int(item))
        elif (match := re.fullmatch(r"dropout=(0?\.\d+|0)", item)) is not None:
            parts.append(float(match.group(1)))
        else:
            raise HeadError(
                f"head={text!r}: `{item}` is not a valid part; expected a hidden layer (a whole number of units) or dropout=R "
                "with 0 <= R < 1, as in gap,256,dropout=0.5"
            )
    return Head(pool, tuple(parts), **({} if stride is None else {"stride": stride}))


def add_head(backbone: Any, head: Head, outputs: int | Mapping[str, int]) -> Any:
    """Builds the Keras model of a backbone and a new head with ``outputs`` logits; for several tasks, one head for each.

    The last layer starts small (truncated normal, 0.02), hidden ones as in He et al. (arXiv:1502.01852). The heads of tasks
    share the pooling; that of the task ``age`` has the variables ``head/age/...``, and the model returns a dict by task.
    Raises HeadError if the features have a rank that the head cannot pool.
    """
    import keras

    image = keras.Input(backbone.input_shape[1:], name="image")
    features = backbone(image)
    pool = _pooling(features, head)
    if not isinstance(outputs, Mapping):
        layers = [*([] if pool is None else [pool]), *_top_layers(head, outputs)]
        return keras.Model(image, keras.Sequential(layers, name="head")(features), name="network")
    pooled = features if pool is None else pool(features)
    shared = keras.Input(pooled.shape[1:], name="shared.features")
    names = name_heads(outputs)
    tops = {
        task: keras.Sequential(_top_layers(head, count), name=names[task])(shared) for task, count in outputs.items()
    }
    return keras.Model(image, keras.Model(shared, tops, name="head")(pooled), name="network")


def _pooling(features: Any, head: Head) -> Any | None:
    """The layer that makes a vector of the features of an image; None if they are one."""
    import keras

    rank = len(features.shape)
    if rank <= 2:
        return None
    if rank not in _LAYERS:
        raise HeadError(f"head={head.pool!r}: the features have shape {list(features.shape)}; expected rank 2 to 4")
    return getattr(keras.layers, _LAYERS[rank][head.pool])(name="pool")


def _top_layers(head: Head, outputs: int) -> list[Any]:
    """The hidden layers of a head, and the one with its logits."""
    import keras

    layers: list[Any] = []
    for number, part in enumerate(head.parts):
        if isinstance(part, int):
            layers.append(keras.layers.Dense(part, "relu", kernel_initializer="he_normal", name=f"hidden_{number}"))
        else:
            layers.append(keras.layers.Dropout(part, name=f"dropout_{number}"))
    small = keras.initializers.TruncatedNormal(stddev=0.02)
    layers.append(keras.layers.Dense(outputs, kernel_initializer=small, name="logits"))
    return layers


def cut_head(model: Any, spec: str, kind: str) -> tuple[Any, str]:
    """The model without its top, from its input to its features, and a note on what was cut off.

    The shape of the outputs decides whether there is a top. A feature map has none, and neither have features that were
    pooled from one, or that end in a ReLU or a normalisation: such a model keeps all its layers. Otherwise the last layer
    with a kernel, and what follows it, is the top. ``kind`` is the type of the operation that computes the outputs; what
    ends in a softmax or sigmoid always has a top, unless that is computed at every place of a map.

    Raises HeadError if the model is not a graph of layers, or its last layer is a whole network with a top.
    """
    import keras

    tensor, removed = _find_top(model, spec, kind)
    name = model.name if not re.fullmatch(r"(functional|sequential|model)(_\d+)?", model.name) else "backbone"
    backbone = keras.Model(model.inputs[0], tensor, name="backbone" if groups.in_head(name) else name)
    if not removed:
        what = "a feature map" if len(tensor.shape) > 2 else "features without a top"
        return backbone, f"no layer is cut off: its outputs of {_size(tensor)} are {what}"
    *after, top = removed
    rest = "".join(f", {layer.name}" for layer in reversed(after))
    return backbone, f"cut off: its top {top.name} with {_size(model.outputs[0])} outputs{rest}"


def _find_top(model: Any, spec: str, kind: str) -> tuple[Any, list[Any]]:
    """The tensor that holds the features of a model, and the layers after it, from the last to the first."""
    import keras

    output = model.outputs[0]
    classifies = kind in _PROBABILITIES
    if _is_map(output) or (len(output.shape) > 2 and not classifies) or kind in _HIDDEN:
        return output, []
    tensor, removed = output, []
    while True:
        layer, inputs = find_maker(tensor)
        weights = list(getattr(layer, "weights", ()))
        has_kernel = any(len(weight.shape) > 1 for weight in weights)
        if isinstance(layer, keras.layers.InputLayer) or (weights and not has_kernel and not classifies):
            return output, []
        if weights and isinstance(layer, keras.Model) and not groups.in_head(layer.name):
            if not _find_top(layer, spec, kind)[1]:
                return output, []
            raise HeadError(
                f"model={spec!r}: its head cannot be cut off: its last layer is the whole model {layer.name!r}; "
                "save that model on its own, or build the network in py:module:factory"
            )
        if len(inputs) != 1:
            raise HeadError(
                f"model={spec!r}: its head cannot be cut off: its outputs come from the layer {layer.name!r}, "
                f"which joins {len(inputs)} tensors"
            )
        removed.append(layer)
        tensor = inputs[0]
        if has_kernel:
            return tensor, removed
        if _is_map(tensor) and not classifies:
            return output, []


def _is_map(tensor: Any) -> bool:
    """Whether a tensor has features at several places of an image, or for several tokens."""
    return any(size != 1 for size in tensor.shape[1:-1])


def _size(tensor: Any) -> str:
    return "x".join("any" if size is None else str(size) for size in tensor.shape[1:])


def remove_activation(model: Any, spec: str, kind: str) -> tuple[Any, str]:
    """The model with logits as outputs, and a note on what was removed ("" if it had them already).

    ``kind`` is the type of the operation that computes the outputs (``output_operation``), so that a final softmax or sigmoid
    is found whichever layer computes it. It is removed because the losses here expect logits. Raises HeadError if it comes from a layer that cannot be removed or changed.
    """
    import keras

    if kind not in _PROBABILITIES:
        return model, ""
    owner, layer = model, None
    inputs: list[Any] = []
    while layer is None or isinstance(layer, keras.Model):
        owner = layer if layer is not None else model
        layer, inputs = find_maker(owner.outputs[0])
    if len(keras_private.inbound_nodes(layer)) == 1 and getattr(layer, "activation", None) is not None:
        layer.activation = keras.activations.linear
    elif owner is model and len(inputs) == 1 and not getattr(layer, "weights", ()):
        model = keras.Model(model.inputs[0], inputs[0], name=model.name)
    if output_operation(trace(model)) in _PROBABILITIES:
        raise HeadError(
            f"model={spec!r}: it ends in {kind.lower()} (layer {layer.name!r}), which cannot be removed, but the loss expects "
            "logits; --head=gap gives it a new head"
        )
    return model, f"the final {kind.lower()} was removed, since the loss expects logits"


def trace(model: Any, size: tuple[int, int] = (64, 64)) -> Any:
    """A Keras model in inference mode, as a concrete function of one image; ``size`` counts where the model takes any."""
    import tensorflow as tf

    height, width, channels = model.input_shape[1:]
    spec = tf.TensorSpec([1, height or size[0], width or size[1], channels], tf.float32)
    return tf.function(lambda image: model(image, training=False), autograph=False).get_concrete_function(spec)


def output_operation(concrete: Any, number: int = 0) -> str:
    """The type of the operation that computes an output of a traced function, identities and casts aside."""
    operation = concrete.outputs[number].op
    while operation.type in ("Identity", "Cast") and operation.inputs:
        operation = operation.inputs[0].op
    return str(operation.type)


def choose_upper(network: Any) -> str:
    """The text of a filter for a Keras model's last 20 layers, or for all it has besides the head ("" if nothing)."""
    rest = [entry for entry in name_variables(network) if "head" not in entry.groups and entry.kind == "weight"]
    if any(name == "" and index >= count - 20 for entry in rest for name, index, count in entry.layers):
        return "@layers[-20:]"
    return "@all" if rest else ""


def find_maker(tensor: Any) -> tuple[Any, list[Any]]:
    """The layer that computed a Keras tensor, and the tensors that it read."""
    history = getattr(tensor, "_keras_history", None)
    if history is None:
        raise HeadError(
            "the model is not a graph of Keras layers; build it in py:module:factory with the head that it needs"
        )
    node = keras_private.inbound_nodes(history.operation)[history.node_index]
    return history.operation, list(node.input_tensors)
