"""Makes the layers of a Keras model compute as ``--precision`` says, whatever the model was saved with.

What does not follow is found in the traced network: a layer whose code converts to another dtype, or a graph of its own.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from engine import keras_private
from engine.graphs import tracing
from engine.graphs.op_kinds import is_product
from engine.models.spec import ModelSpecError, Request
from engine.selection.variables import is_keras, name_variables
from engine.text import join_some


def set_precision(request: Request, network: Any) -> tuple[str, ...]:
    """Sets the dtype in which every layer of a built Keras model computes, and describes what does not follow.

    Variables keep their dtype. A layer with a quantised kernel keeps that, and computes the rest as requested. Raises
    ModelSpecError if the weights have another dtype than the request's.
    """
    expected = tf.as_dtype(request.dtype).name
    entries = name_variables(network) if not is_keras(network) or network.weights else ()
    found = {entry.variable.dtype.name for entry in entries if entry.kind == "weight"}
    if other := sorted(found - {expected}):
        way_out = "; --precision=float64 trains it" if other == ["float64"] else ""
        if other == ["float32"]:
            way_out = "; --precision=float32, mixed_bfloat16 and mixed_float16 train it"
        raise ModelSpecError(
            f"model={request.spec!r}: its weights are {', '.join(other)}; expected {expected}{way_out}"
        )
    if not is_keras(network):
        return ()
    import keras

    quantised: dict[str, list[str]] = {}
    for layer in keras_private.flatten_layers(network):
        policy = layer.dtype_policy
        if not tf.as_dtype(policy.compute_dtype or "float32").is_floating:
            continue  # such as a look-up
        if isinstance(layer, keras.Model) and getattr(layer, "inputs", None):
            keras_private.widen_inputs(layer, expected)
        if policy.quantization_mode is not None:
            quantised.setdefault(policy.quantization_mode, []).append(layer.name)
            _set_quantised(request, layer, f"{policy.name.partition('_from_')[0]}_from_{request.policy}")
        elif not isinstance(layer, keras.layers.InputLayer):
            keras_private.set_policy(layer, request.policy)
            if hasattr(layer, "finalize_state"):
                layer.finalize_state()  # Normalization keeps its statistics in the dtype that it computed in
    return tuple(
        f"kernels stay {kind} whatever --precision says ({_names(names)})" for kind, names in quantised.items()
    )


def _set_quantised(request: Request, layer: Any, policy: str) -> None:
    try:
        keras_private.set_policy(layer, policy)
    except ValueError as error:
        raise ModelSpecError(
            f"precision={request.policy}: the quantised layer {layer.name!r} of {request.spec} cannot compute so: {error}"
        ) from None


def check_precision(request: Request, network: Any, traced: Any) -> tuple[str, ...]:
    """Describes what in a traced network computes in another dtype than the request's.

    Raises ModelSpecError if that is float16 and the request has no loss scale, or if a model that is not a Keras model does
    not compute as requested.
    """
    expected = tf.as_dtype(request.compute)
    other: dict[str, list[str]] = {}
    kinds = set()
    for op in tracing.inline_calls(traced).graph.get_operations():
        for dtype in {tensor.dtype for tensor in op.outputs if tensor.dtype.is_floating}:
            product = is_product(op.type)
            kinds |= {dtype} if product else set()
            if dtype != expected and (product or dtype.size == 2):
                other.setdefault(dtype.name, []).append(op.name.rpartition("/")[0] or op.name)
    if request.compute != request.dtype and not is_keras(network) and expected not in kinds:
        raise ModelSpecError(
            f"precision={request.policy}: {request.name} returns a tf.Module, which itself decides the precision it computes "
            "in; only vit:, cnn: and Keras models follow --precision"
        )
    if expected != tf.float16 and tf.float16 in kinds:
        raise ModelSpecError(
            f"precision={request.policy}: {request.spec} computes in float16 whatever --precision says "
            f"({_names(other['float16'])}); --precision=mixed_float16 trains it with the loss scale that float16 needs"
        )
    return tuple(
        f"a part computes in {name} whatever --precision says ({_names(names)})" for name, names in other.items()
    )


def _names(names: list[str]) -> str:
    return join_some(list(dict.fromkeys(names)))
