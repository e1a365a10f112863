"""All private names of Keras that the project uses, each with its purpose.

Supporting a new version of Keras means checking this file and its test: no other module imports ``keras.src`` or reads
an attribute of a Keras object that begins with an underscore. Keras is imported only when a function is called.
"""

from __future__ import annotations

import contextlib
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


def own_losses(layer: Any) -> Sequence[Any]:
    """Returns the losses that a layer itself added during its last call, including activity regularisers."""
    return layer._get_own_losses()


def inbound_nodes(operation: Any) -> Sequence[Any]:
    """Returns the calls of a layer in functional models."""
    return operation._inbound_nodes


def slot_variables(optimizer: Any) -> list[Any]:
    """Returns the first and second moments of an Adam optimizer."""
    return [*optimizer._momentums, *optimizer._velocities]


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
