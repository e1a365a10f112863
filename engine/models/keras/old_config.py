"""Brings the configuration of a model that Keras 2 saved up to date, so that Keras 3 can build the model in safe mode.

Only what means the same in both is rewritten: arguments that Keras 3 dropped, where they have their neutral value; the notation
of calls in a graph of layers; and simple arithmetic on tensors, for which Keras 2 wrote ``TFOpLambda`` layers. Everything
else is left to Keras, which refuses what it does not know.
"""

from __future__ import annotations

from typing import Any

from engine.models.keras.leaves import modern_name

# Arguments of Keras 2 that Keras 3 does not accept, with the values that mean the same as leaving them out.
_DROPPED: dict[str, tuple[Any, ...]] = {
    "time_major": (False,),
    "rng_type": ("stateful", "legacy_stateful", "stateless", None),
    "renorm": (False,),
    "renorm_clipping": (None, {}),
    "renorm_momentum": (0.99, None),
    "virtual_batch_size": (None,),
    "adjustment": (None,),
}
_ANY_VALUE = ("fused", "query_shape", "key_shape", "value_shape", "softmax_robust_masking")
_ONE_GROUP = ("DepthwiseConv", "SeparableConv", "Transpose")  # classes without groups in Keras 3
_WRAPPED = ("layer", "forward_layer", "backward_layer", "cell", "cells")  # arguments that are layers
_GRAPHS = ("Functional", "Model", "Sequential")
_ADD, _MULTIPLY = ("__operators__.add", "math.add"), ("__operators__.mul", "math.multiply")
_SUBTRACT, _DIVIDE = ("__operators__.sub", "math.subtract"), ("__operators__.truediv", "math.truediv", "math.divide")


def is_old(keras_version: str) -> bool:
    """Whether a file was written by a Keras before 3."""
    return keras_version.strip()[:2] in ("1.", "2.")


def rename_layers(config: Any) -> Any:
    """The configuration of a model with the names of its layers as Keras 3 writes them: it does not allow slashes."""
    names = {name for name in _names(config) if "/" in name}
    modern = {name: modern_name(name) for name in names}
    taken = _names(config) - names
    new = {old: name for old, name in modern.items() if name not in taken and list(modern.values()).count(name) == 1}

    def update(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: update(each) for key, each in value.items()}
        if isinstance(value, list):
            return [update(each) for each in value]
        return new.get(value, value) if isinstance(value, str) else value

    return update(config) if new else config


def _names(config: Any) -> set[str]:
    """The names of all layers in a configuration."""
    if isinstance(config, list):
        return set[str]().union(*map(_names, config))
    if not isinstance(config, dict):
        return set()
    own = config.get("config") if "class_name" in config else None
    name = own.get("name") if isinstance(own, dict) else None
    return ({name} if isinstance(name, str) else set()).union(*map(_names, config.values()))


def update_config(config: Any) -> Any:
    """The configuration of a Keras 2 model, layer or part of one, as Keras 3 reads it; the given one is not changed."""
    if isinstance(config, list):
        return [update_config(item) for item in config]
    if not isinstance(config, dict):
        return config
    if not isinstance(config.get("class_name"), str) or not isinstance(config.get("config"), dict):
        return {key: update_config(value) for key, value in config.items()}
    # without a module, Keras looks the class up among its own, as in old .h5 files
    layer = {k: v for k, v in config.items() if k not in ("module", "registered_name", "build_config")}
    layer["config"] = _update_arguments(layer["class_name"], layer["config"])
    if layer["class_name"] in _GRAPHS and isinstance(layer["config"].get("layers"), list):
        layer["config"] = _update_graph(layer["config"])
    return layer


def _update_arguments(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key in _ANY_VALUE or (key in _DROPPED and value in _DROPPED[key]):
            continue
        if key == "groups" and value == 1 and any(name in kind for name in _ONE_GROUP):
            continue
        if key == "noise_shape" and value is None:
            continue
        if kind.startswith("SpatialDropout") and key == "trainable":
            continue
        if kind.startswith("SeparableConv") and key.startswith("kernel_") and key != "kernel_size":
            continue  # Keras 2 wrote these of its base class; the layer has depthwise_ and pointwise_ ones
        if key == "dtype" and isinstance(value, dict) and str(value.get("class_name", "")).startswith("Policy"):
            value = value.get("config", {}).get("name", value)
        if key == "axis" and kind == "BatchNormalization" and isinstance(value, list) and len(value) == 1:
            value = value[0]
        if key.endswith("_initializer") and isinstance(value, dict):
            value = _update_initializer(value)
        if key not in ("inbound_nodes", "input_layers", "output_layers"):
            value = update_config(value)
        found[key] = _with_module(value) if key in _WRAPPED else value
    return found


def _with_module(layer: Any) -> Any:
    """A layer inside another one, such as that of Bidirectional, with the module where Keras 3 looks for its class."""
    if isinstance(layer, list):
        return [_with_module(each) for each in layer]
    if not isinstance(layer, dict) or "class_name" not in layer:
        return layer
    module = "keras.models" if layer["class_name"] in _GRAPHS else "keras.layers"
    return {**layer, "module": module, "registered_name": None}


def _update_initializer(value: dict[str, Any]) -> dict[str, Any]:
    """Initial values are replaced by the file's weights, but Keras must accept their configuration."""
    config = {key: each for key, each in (value.get("config") or {}).items() if key != "dtype"}
    if config.get("distribution") == "normal":
        config["distribution"] = "truncated_normal"
    return {**value, "config": config}


def _update_graph(config: dict[str, Any]) -> dict[str, Any]:
    """Rewrites the calls of the layers in a Functional model as Keras 3 writes them."""
    layers = [layer for layer in config["layers"] if isinstance(layer, dict)]
    graph = dict(config)
    first = _first_nodes(layers)
    for key in ("input_layers", "output_layers"):
        if key in graph:
            graph[key] = _update_ends(graph[key], layers, first)
    graph["layers"] = [_update_operation(_update_calls(layer, first)) for layer in config["layers"]]
    return graph


def _first_nodes(layers: list[dict[str, Any]]) -> dict[str, int]:
    """The number of a layer's first call: Keras 2 counts how a nested model was made as its call 0; Keras 3 does not."""
    return {
        str(layer.get("name")): 1 if layer.get("class_name") in _GRAPHS else 0
        for layer in layers
        if layer.get("name") is not None
    }


def _update_ends(ends: Any, layers: list[dict[str, Any]], first: dict[str, int]) -> Any:
    kinds = {layer.get("name"): layer.get("class_name") for layer in layers}

    def update(end: Any) -> Any:
        if _is_reference(end, first):  # Keras 3 itself subtracts 1 for functional models here
            return [end[0], max(end[1] - (kinds[end[0]] == "Sequential"), 0), *end[2:]]
        return [update(each) for each in end] if isinstance(end, list) else end

    found = update(ends)
    # one tensor in a list was a tensor in Keras 2, but is a list of one in Keras 3
    return found[0] if isinstance(found, list) and len(found) == 1 and isinstance(found[0], list) else found


def _is_reference(value: Any, first: dict[str, int]) -> bool:
    return (
        isinstance(value, list)
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and value[0] in first
        and all(isinstance(number, int) for number in value[1:3])
    )


def _update_calls(layer: Any, first: dict[str, int]) -> Any:
    nodes = layer.get("inbound_nodes") if isinstance(layer, dict) else None
    if not isinstance(nodes, list) or any(isinstance(node, dict) for node in nodes):
        return layer

    def tensor(value: Any) -> Any:
        if _is_reference(value, first):
            history = [value[0], max(value[1] - first[value[0]], 0), value[2]]
            return {
                "class_name": "__keras_tensor__",
                "config": {"shape": [None], "dtype": "float32", "keras_history": history},
            }
        if isinstance(value, list):
            return [tensor(each) for each in value]
        return {key: tensor(each) for key, each in value.items()} if isinstance(value, dict) else value

    def call(node: Any) -> Any:
        entries = (
            [node] if node and isinstance(node[0], str) else node
        )  # operations have a node without a list around it
        known = all(isinstance(e, list) and len(e) in (3, 4) and isinstance(e[0], str) for e in entries)
        if not entries or not known:
            return node
        given = [entry[2] if entry[0] == "_CONSTANT_VALUE" else tensor(entry[:3]) for entry in entries]
        kwargs = entries[0][3] if len(entries[0]) == 4 and isinstance(entries[0][3], dict) else {}
        return {"args": given if len(given) == 1 else [given], "kwargs": tensor(kwargs)}

    return {**layer, "inbound_nodes": [call(node) for node in nodes]}


def _update_operation(layer: Any) -> Any:
    """Replaces arithmetic in the graph by a layer of Keras 3: Rescaling with a number, Add, Subtract or Multiply of two tensors."""
    if not isinstance(layer, dict) or layer.get("class_name") != "TFOpLambda" or len(layer["inbound_nodes"]) != 1:
        return layer
    node, function = layer["inbound_nodes"][0], layer["config"].get("function")
    if not isinstance(node, dict) or len(node["args"]) != 1 or "y" not in node["kwargs"]:
        return layer
    x, y = node["args"][0], node["kwargs"]["y"]
    numbers = [isinstance(each, (int, float)) and not isinstance(each, bool) for each in (x, y)]
    tensors = [isinstance(each, dict) and each.get("class_name") == "__keras_tensor__" for each in (x, y)]
    kind, arguments, called = "", {}, x
    if all(tensors):
        kind = next(
            (
                name
                for name, all_ in (("Add", _ADD), ("Multiply", _MULTIPLY), ("Subtract", _SUBTRACT))
                if function in all_
            ),
            "",
        )
        called = [x, y]
    elif tensors[0] and numbers[1]:
        scale = {**dict.fromkeys(_MULTIPLY, y), **dict.fromkeys(_DIVIDE, 1 / y if y else None)}.get(function, 1.0)
        offset = {**dict.fromkeys(_ADD, y), **dict.fromkeys(_SUBTRACT, -y)}.get(function, 0.0)
        kind, arguments = "Rescaling", {"scale": scale, "offset": offset}
    elif numbers[0] and tensors[1]:
        scale = {**dict.fromkeys(_MULTIPLY, x), **dict.fromkeys(_SUBTRACT, -1.0)}.get(function, 1.0)
        offset = {**dict.fromkeys(_ADD, x), **dict.fromkeys(_SUBTRACT, x)}.get(function, 0.0)
        kind, arguments, called = "Rescaling", {"scale": scale, "offset": offset}, y
        kind = "" if function in _DIVIDE else kind
    if not kind or function not in (*_ADD, *_MULTIPLY, *_SUBTRACT, *_DIVIDE) or arguments.get("scale", 1) is None:
        return layer
    config = {key: layer["config"][key] for key in ("name", "trainable", "dtype") if key in layer["config"]}
    return {
        **layer,
        "class_name": kind,
        "config": {**config, **arguments},
        "inbound_nodes": [{"args": [called], "kwargs": {}}],
    }


def unsupported_layers(config: Any) -> list[str]:
    """The operations of TensorFlow in a configuration that have no layer in Keras 3, such as ``tf.math.reduce_mean``."""
    if isinstance(config, list):
        return [name for item in config for name in unsupported_layers(item)]
    if not isinstance(config, dict):
        return []
    if config.get("class_name") in ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"):
        inner = config.get("config") or {}
        return [f"tf.{inner['function']}" if "function" in inner else str(inner.get("name"))]
    return [name for item in config.values() for name in unsupported_layers(item)]
