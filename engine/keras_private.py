"""Every private name of Keras that the project uses, each with what it is used for.

The next Keras is a job for this file and its test: nothing else imports ``keras.src`` or reads an attribute of a Keras
object that begins with an underscore. Keras is imported when a function is called.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def flatten_layers(layer: Any, *, include_self: bool = True) -> list[Any]:
    """A layer and all layers inside it, in Keras' own order."""
    return list(layer._flatten_layers(include_self=include_self))


def child_layers(layer: Any) -> Sequence[Any]:
    """The layers that a layer holds directly, those without weights and inside of custom layers included."""
    return layer._layers


def own_variables(layer: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """(made trainable, made not trainable): a layer's own variables, whatever ``trainable`` says now."""
    return layer._trainable_variables, layer._non_trainable_variables


def seed_generators(layer: Any) -> Sequence[Any]:
    """The seed generators that a layer keeps, such as Dropout's."""
    return getattr(layer, "_seed_generators", ())


def own_losses(layer: Any) -> Sequence[Any]:
    """What a layer itself added by ``add_loss`` in the last call, activity regularisers included."""
    return layer._get_own_losses()


def inbound_nodes(operation: Any) -> Sequence[Any]:
    """The calls of a layer in a functional model."""
    return operation._inbound_nodes


def slot_variables(optimizer: Any) -> list[Any]:
    """Adam's first and second moments."""
    return [*optimizer._momentums, *optimizer._velocities]


def snake_case(name: str) -> str:
    """The name that Keras gives a layer of a class by itself.

    Example:
        >>> snake_case("BatchNormalization")
        'batch_normalization'
    """
    from keras.src.utils.naming import to_snake_case

    return str(to_snake_case(name))


def home() -> pathlib.Path:
    """Where Keras keeps downloaded files: $KERAS_HOME, or ``.keras`` in the home folder."""
    from keras.src.backend import config

    return pathlib.Path(config.keras_home()).expanduser()


@contextlib.contextmanager
def replaced_get_file(get_file: Callable[..., Any]) -> Iterator[None]:
    """Within this scope, ``keras.applications`` asks ``get_file`` for its weights files instead of downloading them."""
    from keras.src.utils import file_utils

    before = file_utils.get_file
    file_utils.get_file = get_file
    try:
        yield
    finally:
        file_utils.get_file = before
