"""A ``.keras`` file of a network that Keras built, for a user's own code."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import tensorflow as tf

from engine.errors import InputError
from engine.export.checking import ExportError
from engine.export.subject import Subject
from engine.selection.variables import is_keras
from engine.training.precision import widen

_ACTIVATIONS = {"softmax": "softmax", "sigmoid": "sigmoid"}
_NAME = "probabilities"


def save_keras(subject: Subject, path: pathlib.Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """Writes the network as a Keras model that gives probabilities, and loads it again.

    Images must be prepared outside, since a layer that did so would be one that the user's model never had: the record
    says how. Returns a function from float images to logits, computed by the loaded model, and entries of the record.

    Raises InputError if Keras did not build the network, and ExportError if Keras cannot save or load it.
    """
    if not is_keras(subject.network):
        raise InputError(
            f"format=keras: {subject.model} did not come from Keras; savedmodel and tflite take any model, and safetensors "
            "takes a ViT"
        )
    import keras

    network, kind = subject.network, _ACTIVATIONS.get(subject.loss)
    functional = isinstance(network, (keras.Sequential, keras.Model)) and getattr(network, "outputs", None)
    activated = bool(functional and kind)
    if activated:
        outputs = keras.layers.Activation(kind, name=_NAME, dtype=subject_dtype(subject))(network.outputs[0])
        network = keras.Model(network.inputs, outputs, name=network.name)
    try:
        network.save(str(path))
        loaded = keras.models.load_model(str(path), compile=False)
    except Exception as error:  # Keras raises whatever a layer's own code raises
        raise ExportError(f"{subject.model}: Keras cannot save it and load it again: {str(error)[:300]}") from error
    logits = keras.Model(loaded.inputs, loaded.get_layer(_NAME).input) if activated else loaded
    images = asdict(subject.normalise) | {"of": "images in [0, 1]: (image - mean) / std, per channel"}
    extra = {"outputs_are": "probabilities" if activated else subject.output, "prepare": images}

    def run(images: np.ndarray) -> np.ndarray:
        return widen(logits(subject.normalise(tf.constant(images)), training=False)).numpy()

    return run, extra


def subject_dtype(subject: Subject) -> str:
    """The dtype of probabilities: at least 32 bits, as losses compute them."""
    return str(widen(tf.zeros([], subject.network.outputs[0].dtype)).dtype.name)
