"""All private names of Keras that the project uses, each with its purpose.

Supporting a new version of Keras means checking this file and its test: no other module imports ``keras.src`` or reads
an attribute of a Keras object that begins with an underscore. Keras is imported only when a function is called.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def flatten_layers(layer: Any, *, include_self: bool = True) -> list[Any]:
    """Returns a layer and all layers inside it, in Keras' own order."""
    return list(layer._flatten_layers(include_self=include_self))


def child_layers(layer: Any) -> Sequence[Any]:
    """Returns the layers that a layer holds directly, including layers without weights and those of custom layers."""
    return layer._layers


def own_variables(layer: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """Returns a layer's own variables: those created as trainable, and as non-trainable, whatever they are now."""
    return layer._trainable_variables, layer._non_trainable_variables


def seed_generators(layer: Any) -> Sequence[Any]:
    """Returns the seed generators of a layer such as Dropout."""
    return getattr(layer, "_seed_generators", ())


def is_built_in(layer: Any) -> bool:
    """Whether a layer's class is one of Keras' own, which list all their variables."""
    return type(layer).__module__.startswith("keras.")


def own_attributes(layer: Any) -> Iterator[tuple[str, Any]]:
    """Yields the attributes of a layer that its class sets, without those of Keras and of TensorFlow's tracking."""
    from keras import Layer, Model

    for name, value in vars(layer).items():
        if name not in vars(_blank(Model if isinstance(layer, Model) else Layer)) and not name.startswith("_self_"):
            yield name, value


@functools.cache
def _blank(kind: Any) -> Any:
    """A layer or model without anything of its own."""
    return kind()


@contextlib.contextmanager
def inference_mode(layers: Sequence[Any]) -> Iterator[None]:
    """Makes layers compute with ``training=False``, whatever they are called with, within a ``with`` block.

    Keras has no such switch: ``layer.trainable`` decides the mode of BatchNormalization only. Layers inside are called as
    the layer itself calls them.
    """
    with contextlib.ExitStack() as stack:
        for layer in layers:
            own = vars(layer)
            stack.callback(own.__setitem__ if "call" in own else own.pop, "call", own.get("call"))
            own["call"] = _in_inference(layer.call)
        yield


@contextlib.contextmanager
def replaced_moments(layers: Sequence[Any], moments: Callable[[Any, Sequence[int]], Any]) -> Iterator[None]:
    """Makes BatchNormalization layers compute ``moments(inputs, axes)`` of a batch by this function, within a ``with`` block.

    Other layers are left as they are. Their own synchronisation needs the context of a replica, in which functions cannot be traced once for all replicas.
    A call with a mask is computed as before.
    """
    with contextlib.ExitStack() as stack:
        for layer in layers:
            if not hasattr(layer, "_moments"):
                continue
            own, before = vars(layer), layer._moments

            def compute(inputs: Any, mask: Any, layer: Any = layer, before: Any = before) -> Any:
                return before(inputs, mask) if mask is not None else moments(inputs, layer._reduction_axes)

            stack.callback(own.pop, "_moments", None)
            own["_moments"] = compute
        yield


def _in_inference(call: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(call)

    @functools.wraps(call)
    def held(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.arguments["training"] = False
        return call(*bound.args, **bound.kwargs)

    return held


def stored_kernel(layer: Any) -> Any:
    """Returns the kernel variable of a layer; the public attribute of one with ``enable_lora`` is a sum."""
    found = getattr(layer, "_kernel", None)
    return layer.kernel if found is None else found


def enable_lora(layer: Any, rank: int, alpha: float, down: Any) -> None:
    """Calls ``layer.enable_lora`` with these first values; what trains is decided elsewhere, so the kernel keeps its attribute."""
    layer.enable_lora(rank, lora_alpha=alpha, a_initializer=lambda shape, dtype=None: down)
    kernel, switch = stored_kernel(layer), "trainable"
    setattr(kernel, switch, True)


def add_child(layer: Any, name: str, child: Any) -> None:
    """Makes a layer an attribute of one that is built already, which Keras refuses otherwise."""
    layer._tracker.unlock()
    setattr(layer, name, child)
    layer._tracker.lock()


def replace_call(layer: Any, call: Callable[..., Any]) -> None:
    """Makes a layer compute by another function with the same arguments, under the name and signature of its own."""
    vars(layer)["call"] = functools.wraps(layer.call)(call)


def takes_training(layer: Any) -> bool:
    """Whether a layer is told its mode, so that ``inference_mode`` can hold it."""
    return "training" in inspect.signature(layer.call).parameters


def own_losses(layer: Any) -> Sequence[Any]:
    """Returns the losses that a layer itself added during its last call, including activity regularisers."""
    return layer._get_own_losses()


def inbound_nodes(operation: Any) -> Sequence[Any]:
    """Returns the calls of a layer in functional models."""
    return operation._inbound_nodes


def slot_variables(optimizer: Any) -> list[Any]:
    """Returns the first and second moments of an Adam optimizer."""
    return [*optimizer._momentums, *optimizer._velocities]


def model_from_old_config(text: str) -> Any:
    """Builds a model, with initial weights and in safe mode, from a configuration as old ``.h5`` files have it (JSON)."""
    import keras
    from keras.src.legacy.saving import json_utils, saving_options, saving_utils
    from keras.src.saving import serialization_lib

    with saving_options.keras_option_scope(use_legacy_config=True), serialization_lib.SafeModeScope(True):
        return saving_utils.model_from_config(json_utils.decode(text), custom_objects=keras.saving.get_custom_objects())


@contextlib.contextmanager
def watched_variables(check: Callable[[Any, str], None]) -> Iterator[None]:
    """Calls ``check`` with the shape and dtype of each variable before Keras draws its value, within a ``with`` block."""
    from keras.src.backend import Variable

    initialize = Variable._initialize_with_initializer

    def checked(variable: Any, initializer: Any) -> None:
        check(variable._shape, variable._dtype)
        initialize(variable, initializer)

    Variable._initialize_with_initializer = checked
    try:
        yield
    finally:
        Variable._initialize_with_initializer = initialize


def set_policy(layer: Any, name: str) -> None:
    """Makes a built layer compute by the dtype policy of this name, even where it shares a DTypePolicyMap with others.

    The public setter changes the map, in which the policy of one layer may also be that of layers inside it.
    """
    import keras

    layer._dtype_policy = keras.dtype_policies.get(name)


def widen_inputs(model: Any, dtype: str) -> None:
    """Makes a graph of layers take floating inputs in at least this dtype: it casts to that of its input layers first."""
    import tensorflow as tf

    for tensor in model.inputs:
        own = tf.as_dtype(tensor.dtype)
        if own.is_floating and own.size < tf.as_dtype(dtype).size:
            tensor._dtype = tensor._keras_history.operation._dtype = dtype


def snake_case(name: str) -> str:
    """Converts a class name to the name that Keras gives such a layer by default.

    Example:
        >>> snake_case("BatchNormalization")
        'batch_normalization'
    """
    from keras.src.utils.naming import to_snake_case

    return str(to_snake_case(name))


def home() -> pathlib.Path:
    """Returns the folder of downloaded files: $KERAS_HOME, or ``.keras`` in the home folder."""
    from keras.src.backend import config

    return pathlib.Path(config.keras_home()).expanduser()


@contextlib.contextmanager
def replaced_get_file(get_file: Callable[..., Any]) -> Iterator[None]:
    """Makes ``keras.applications`` call ``get_file`` for its weights files, within a ``with`` block."""
    from keras.src.utils import file_utils

    before = file_utils.get_file
    file_utils.get_file = get_file
    try:
        yield
    finally:
        file_utils.get_file = before
