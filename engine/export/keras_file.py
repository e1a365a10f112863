"""A ``.keras`` file of a network that Keras built, for a user's own code."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from engine.errors import InputError
from engine.export.checking import ExportError
from engine.export.outputs import Output
from engine.export.subject import Subject
from engine.selection.variables import is_keras
from engine.training.precision import widen

_ACTIVATIONS = {"softmax": "softmax", "sigmoid": "sigmoid"}
_NAME = "probabilities"


def save_keras(subject: Subject, path: pathlib.Path) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    """Writes the network as a Keras model that gives probabilities, and loads it again.

    Inputs must be prepared outside, since a layer that did so would be one that the user's model never had: the record
    says how. Several outputs stay a dict by task. Returns a function from inputs to logits, computed by the loaded model, and entries of the record.

    Raises InputError if Keras did not build the network, and ExportError if Keras cannot save or load it.
    """
    if not is_keras(subject.network):
        raise InputError(
            f"format=keras: {subject.model} did not come from Keras; savedmodel and tflite take any model, and safetensors "
            "takes a ViT or an encoder of texts (bert:)"
        )
    import keras

    network = subject.network
    functional = isinstance(network, (keras.Sequential, keras.Model)) and getattr(network, "outputs", None)
    if subject.several and not functional:
        raise InputError(
            f"format=keras: {subject.model} has several outputs and is not a graph of layers; savedmodel and tflite take any model"
        )
    activated = {each.task: _name(each) for each in subject.outputs if functional and each.loss in _ACTIVATIONS}
    if activated:
        network = keras.Model(network.inputs, _activate(subject, activated), name=network.name)
    try:
        network.save(str(path))
        loaded = keras.models.load_model(str(path), compile=False)
    except Exception as error:  # Keras raises whatever a layer's own code raises
        raise ExportError(f"{subject.model}: Keras cannot save it and load it again: {str(error)[:300]}") from error
    logits = loaded
    if activated:
        logits = keras.Model(
            loaded.inputs,
            {
                each.name: loaded.get_layer(activated[each.task]).input
                if each.task in activated
                else loaded.output[each.task]
                for each in subject.outputs
            },
        )
    said = subject.by_output(lambda each: "probabilities" if each.task in activated else each.name)

    def run(given: Any) -> Any:
        named = {name: tf.constant(value) for name, value in subject.name_inputs(given).items()}
        found = logits(subject.inputs.prepare(named), training=False)
        if isinstance(found, Mapping) and not activated:  # by their tasks
            found = {each.name: found[each.task] for each in subject.outputs}
        return tf.nest.map_structure(lambda each: widen(each).numpy(), found)

    return run, {"outputs_are": said, "prepare": subject.inputs.describe_preparation()}


def _name(output: Output) -> str:
    """The name of the layer that gives the probabilities of an output."""
    return f"{output.prefix}{_NAME}"


def _activate(subject: Subject, activated: Mapping[str, str]) -> Any:
    """The outputs of the network, by task if there are several, with probabilities in place of logits."""
    import keras

    def give(output: Output) -> Any:
        found = subject.network.output[output.task] if subject.several else subject.network.outputs[0]
        if output.task not in activated:
            return found
        # at least 32 bits, as losses compute them
        dtype = str(widen(tf.zeros([], found.dtype)).dtype.name)
        return keras.layers.Activation(_ACTIVATIONS[output.loss], name=activated[output.task], dtype=dtype)(found)

    return subject.by_output(give)
